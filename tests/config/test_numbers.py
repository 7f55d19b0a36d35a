"""Every numeric field has a range, and refuses what is out of it in one sentence that begins with the key."""

from dataclasses import fields
from typing import Any, Literal, get_origin

import pytest

from dit_scale.checkpoint.post_hoc import gamma_of
from dit_scale.config import Config, EncodeConfig, TrainSection, load_config
from dit_scale.config.fields import Range, numbers_in, unwrap
from dit_scale.errors import InputError
from tests.config.walk import Place, parametrized, parts, places


def is_numeric(kind: Any) -> bool:
    kind, _ = unwrap(kind)
    return get_origin(kind) is not Literal and bool(parts(kind) & {int, float, Any})


NUMERIC = [place for place in places() if is_numeric(place.entry.type)]


def test_the_walk_finds_fields_of_every_shape() -> None:
    found = {place.key for place in NUMERIC}
    shapes = {"train.steps", "data.cache_bytes", "train.extra_ema_decays", "preview.guidance_interval", "data.path"}
    assert shapes | {"evaluation.solver_options", "autoencoder.scale", "seed", "solver_options"} <= found
    assert not {"engine.zero_stage", "engine.compile", "run_dir"} & found


@parametrized(iter(NUMERIC))
def test_a_range_stands_beside_the_field(place: Place) -> None:
    limits = place.entry.metadata.get("range")
    assert isinstance(limits, Range), f"give {place.key} = number(…, at_least=…)"
    assert all(limits.holds(number) for _, number in numbers_in(place.entry.default, place.key))


@parametrized(iter(NUMERIC))
def test_what_is_out_of_range_is_refused(place: Place) -> None:
    limits: Range = place.entry.metadata["range"]
    wrong = ["nan", "inf", "-inf"]
    wrong += [f"{low - 1:g}" for low in [limits.at_least] if low is not None]
    wrong += [f"{high + 1:.17g}" for high in [limits.at_most] if high is not None]
    wrong += [f"{bound:g}" for bound in (limits.above, limits.below) if bound is not None]
    for number in wrong:
        with pytest.raises(InputError) as caught:
            load_config(place.schema, None, [*place.needed, f"{place.key}={_written(place, number)}"])
        said = str(caught.value)
        assert said.startswith(place.key), said
        assert f"{number.partition('.')[0]}" in said
        assert "; give " in said
        assert "\n" not in said


def _written(place: Place, number: str) -> str:
    kind, _ = unwrap(place.entry.type)
    if kind is Any or get_origin(kind) is dict:
        return f"{{a: .{number}}}" if kind is Any and number in ("nan", "inf") else f"{{a: {number}}}"
    if get_origin(kind) is tuple:
        return f"[{number}, {number}]"
    return number


@parametrized(place for place in NUMERIC if not unwrap(place.entry.type)[1])
def test_null_is_refused_where_the_type_does_not_say_so(place: Place) -> None:
    with pytest.raises(InputError, match=f"^{place.key}=null is not .*; give "):
        load_config(place.schema, None, [*place.needed, f"{place.key}=null"])


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.max_grad_norm=-1", "train.max_grad_norm=-1.0 is out of range; give a number above 0, or null"),
        ("train.max_grad_norm=0", "train.max_grad_norm=0.0 is out of range; give a number above 0, or null"),
        ("train.spike_factor=-3", "train.spike_factor=-3.0 is out of range; give 0, or a number above 1"),
        ("train.spike_factor=0.5", "train.spike_factor=0.5 is out of range; give 0, or a number above 1"),
        ("preview.cfg_scale=-2", "preview.cfg_scale=-2.0 is out of range; give a number of 0 or more"),
        ("diffusion.num_timesteps=0", "diffusion.num_timesteps=0 is out of range; give a whole number of 1 or more"),
        ("train.learning_rate=nan", "train.learning_rate=nan is not a number; give a number of 0 or more"),
        ("train.steps=1" + "0" * 400, "0 is out of range; give a whole number of 1 or more"),
        ("train.learning_rate=inf", "train.learning_rate=inf is not finite; give a number of 0 or more"),
        ("train.extra_ema_decays=[0.5,1]", "train.extra_ema_decays[1]=1.0 is out of range; give a number in [0, 1)"),
        ("data.path={a: 1, b: -1}", "data.path.b=-1 is out of range; give a number above 0"),
        ("train.steps=1e3", "train.steps=1e3 is not a whole number; give a whole number of 1 or more"),
        ("train.extra_ema_decays=0.5", "is not a list of numbers; give a list such as [0.1, 0.2]"),
        ("preview.classes=[1,two]", "preview.classes[1]=two is not a whole number; give a whole number of 0 or more"),
        ("preview.guidance_interval=[0.5]", "is not a list of 2 numbers"),
    ],
)
def test_what_issue_and_users_gave(override: str, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(Config, None, ["run_dir=r", "data.path=d", override])
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("schema", "overrides", "sentence"),
    [
        (
            EncodeConfig,
            ["image_size=63", "autoencoder.name=pca"],
            "image_size=63 is not divisible by autoencoder.pca_p",
        ),
        (EncodeConfig, ["autoencoder.name=pca", "autoencoder.pca_channels=193"], "above 192, the numbers in a patch"),
        (EncodeConfig, ["autoencoder.scale=[]"], "autoencoder.scale=[] holds no number"),
        (Config, ["preview.guidance_interval=[0.8,0.1]"], "preview.guidance_interval=[0.8, 0.1] does not rise"),
        (Config, ["train.extra_ema_decays=[0.5,0.50]"], "train.extra_ema_decays holds 0.5 twice"),
        (Config, ["train.rate_schedule=cosine", "train.final_learning_rate=1"], "is above train.learning_rate=0.0001"),
        (Config, ["diffusion.num_timesteps=20"], "preview.num_sampling_steps=50 is above diffusion.num_timesteps=20"),
        (Config, ["model.label_dropout=0"], "preview.cfg_scale=4.0 guides, but model.label_dropout=0"),
        (Config, ["model.condition=none"], "preview.cfg_scale=4.0 guides, but model.condition=none leaves nothing to"),
        (Config, ["validation.every_steps=5"], "validation.every_steps=5 needs held-out records"),
        (Config, ["data.path={}"], "data.path={} is neither a folder nor {folder: weight"),
        (Config, ["data.path={a: x}"], "data.path gives 'a' the weight x; give a number above 0"),
    ],
)
def test_fields_that_do_not_fit_each_other(schema: type, overrides: list[str], sentence: str) -> None:
    needed = ["source.path=s", "output=o"] if schema is EncodeConfig else ["run_dir=r", "data.path=d"]
    with pytest.raises(InputError) as caught:
        load_config(schema, None, [*needed, *overrides])
    assert sentence in str(caught.value)


def test_the_widest_average_is_the_widest_that_there_is() -> None:
    (entry,) = (entry for entry in fields(TrainSection) if entry.name == "power_ema_widths")
    widest = entry.metadata["range"].at_most
    assert gamma_of(widest) > 0
    with pytest.raises(InputError):
        gamma_of(widest + 1e-6)


@pytest.mark.parametrize(
    ("limits", "right", "wrong", "words"),
    [
        (Range(at_least=1), (1, 5), (0.5,), "1 or more"),
        (Range(above=0), (1e-9,), (0,), "above 0"),
        (Range(at_least=0, below=1), (0, 0.5), (1, -0.1), "in [0, 1)"),
        (Range(above=0, at_most=0.28), (0.28,), (0, 0.29), "in (0, 0.28]"),
        (Range(above=1, or_zero=True), (0, 1.5), (1, -1), "0 or above 1"),
        (Range(at_most=2**62), (-1, 2**62), (2**62 + 1,), "2^62 or less"),
        (Range(), (-1e300,), (float("nan"), float("inf")), ""),
    ],
)
def test_ranges(limits: Range, right: tuple[float, ...], wrong: tuple[float, ...], words: str) -> None:
    assert all(map(limits.holds, right))
    assert not any(map(limits.holds, wrong))
    assert str(limits) == words
