"""A key without effect under the choices made is refused by name, unless a later choice made it so."""

from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args

import pytest
import yaml

from dit_scale.checkpoint import Checkpoint
from dit_scale.config import (
    Config,
    EncodeConfig,
    SampleConfig,
    config_from,
    load_config,
    load_options,
    resolved,
    to_yaml,
    used,
)
from dit_scale.config.fields import When, is_choice, shown, unwrap
from dit_scale.config.options import _flag
from dit_scale.errors import InputError
from dit_scale.training.run_folder import check_resume
from tests.config.walk import Place, parametrized, places

NEEDED = ["run_dir=r", "data.path=d"]


@pytest.mark.parametrize(
    ("schema", "overrides", "sentence"),
    [
        (
            Config,
            ["diffusion.name=flow", "diffusion.prediction=v"],
            "prediction=v has no effect with diffusion.name=flow; leave it out, or give diffusion.name=gaussian",
        ),
        (
            Config,
            ["diffusion.name=flow", "diffusion.schedule=cosine"],
            "schedule=cosine has no effect with diffusion.name",
        ),
        (
            Config,
            ["diffusion.name=flow", "diffusion.num_timesteps=9"],
            "num_timesteps=9 has no effect with diffusion.name",
        ),
        (Config, ["diffusion.time_distribution=logit_normal"], "has no effect with diffusion.name=gaussian"),
        (Config, ["diffusion.name=flow", "diffusion.logit_mean=1"], "give diffusion.time_distribution=logit_normal"),
        (Config, ["diffusion.cosine_weight=1"], "give diffusion.name=flow"),
        (Config, ["diffusion.time_at_data=0"], "give diffusion.name=flow"),
        (Config, ["diffusion.time_interval=[0.1,1]"], "give diffusion.name=flow"),
        (Config, ["diffusion.time_shift=null"], "give diffusion.name=flow"),
        (Config, ["diffusion.name=flow", "diffusion.time_shift_base=64"], "give diffusion.time_shift=null"),
        (Config, ["diffusion.name=flow", "diffusion.min_snr_gamma=5"], "give diffusion.name=gaussian"),
        (Config, ["data.shuffle_window_blocks=3"], "give data.shuffle_block_records above 0"),
        (Config, ["train.final_learning_rate=1e-5"], "give train.rate_schedule=cosine"),
        (Config, ["engine.zero_stage=0", "engine.offload_optimizer=true"], "give engine.zero_stage=1, 2 or 3"),
        (Config, ["engine.zero_stage=0", "engine.bucket_elements=5"], "give engine.zero_stage=1, 2 or 3"),
        (Config, ["engine.zero_stage=3", "engine.reduce_to_owners=false"], "give engine.zero_stage=1 or 2"),
        (Config, ["engine.hierarchical_partitioning=true"], "give engine.zero_stage=3"),
        (Config, ["engine.activation_budget=0.5"], "has no effect with engine.compile=false"),
        (Config, ["checkpoint.best_by=fid"], "give checkpoint.keep_best above 0"),
        (Config, ["validation.num_images=5"], "give validation.every_steps above 0"),
        (Config, ["evaluation.solver=ddpm"], "give evaluation.every_steps above 0"),
        (Config, ["evaluation.batch_size=3"], "give evaluation.every_steps above 0"),
        (Config, ["preview.every_steps=0", "preview.classes=[1]"], "give preview.every_steps above 0"),
        (
            Config,
            ["wandb.mode=disabled", "wandb.name=x"],
            "has no effect with wandb.mode=disabled; leave it out, or give",
        ),
        (Config, ["diffusion.name=flow", "diffusion.prediction=epsilon"], "has no effect with diffusion.name=flow"),
        (Config, ["data.cache=c"], "has no effect with data.path=d; leave it out, or give data.path in object storage"),
        (Config, ["data.cache_bytes=5"], "has no effect with data.path=d"),
        (Config, ["data.request_batches=64"], "has no effect with data.path=d"),
        (Config, ["preview.cfg_scale=1", "preview.guidance_channels=3"], "has no effect with preview.cfg_scale=1.0"),
        (Config, ["preview.cfg_scale=1", "preview.guidance_interval=[0,1]"], "has no effect with preview.cfg_scale=1."),
        (Config, ["evaluation.every_steps=5", "evaluation.guidance_channels=3"], "with evaluation.cfg_scale=1.0"),
        (Config, ["model.condition=none", "model.label_dropout=0.1"], "or give another model.condition"),
        (Config, ["preview.cfg_scale=1", "preview.guide_by=early"], "has no effect with preview.cfg_scale=1.0"),
        (
            Config,
            ["diffusion.early_weight=0.3"],
            "has no effect with model.early_block=0; leave it out, or give model.",
        ),
        (EncodeConfig, ["autoencoder.pca_channels=5"], "give autoencoder.name=pca"),
        (EncodeConfig, ["autoencoder.name=pca", "autoencoder.revision=main"], "or give another autoencoder.name"),
        (EncodeConfig, ["autoencoder.name=fitted", "autoencoder.revision=main"], "or give another autoencoder.name"),
        (EncodeConfig, ["autoencoder.name=pca", "autoencoder.fit_steps=5"], "give autoencoder.name=fitted"),
        (EncodeConfig, ["autoencoder.name=pca", "autoencoder.compile=true"], "or give another autoencoder.name"),
        (EncodeConfig, ["autoencoder.name=pca", "autoencoder.precision=bf16"], "or give another autoencoder.name"),
        (
            EncodeConfig,
            ["autoencoder.measure_scale=true", "autoencoder.scale=[0.5]"],
            "give autoencoder.measure_scale=fal",
        ),
        (EncodeConfig, ["autoencoder.name=.", "autoencoder.revision=main"], "a local folder; leave it out"),
        (EncodeConfig, ["source.format=folders", "source.labels=x"], "give source.format=auto, flat or tars"),
    ],
)
def test_a_key_without_effect_is_refused_by_name(schema: type, overrides: list[str], sentence: str) -> None:
    needed = NEEDED if schema is Config else ["source.path=s", "output=o"]
    with pytest.raises(InputError) as caught:
        load_config(schema, None, [*needed, *overrides])
    assert str(caught.value).startswith(f"{overrides[-1].partition('=')[0]}=")
    assert sentence in str(caught.value)
    with pytest.raises(InputError, match="has no effect"):
        load_config(schema, None, [*needed, *reversed(overrides)])  # the order of words says nothing


def test_a_value_may_have_an_effect_that_others_have_not() -> None:
    config = load_config(Config, None, [*NEEDED, "diffusion.name=flow", "diffusion.prediction=x0"])
    assert config.diffusion.prediction == "x0"
    assert config_from(Config, resolved(config)) == config
    assert used(config) == config


def test_an_interval_of_times_rises() -> None:
    with pytest.raises(InputError, match=r"diffusion.time_interval=\[0\.5, 0\.5\] does not rise"):
        load_config(Config, None, [*NEEDED, "diffusion.name=flow", "diffusion.time_interval=[0.5,0.5]"])


def test_a_file_alone_is_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("evaluation:\n  solver: ddpm\n")
    with pytest.raises(InputError, match=r"evaluation\.solver=ddpm has no effect with evaluation\.every_steps=0"):
        load_config(Config, path, NEEDED)


def test_what_a_later_choice_makes_moot_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "diffusion: {name: flow, time_distribution: logit_normal, logit_std: 2}\n"
        "preview: {cfg_scale: 2, every_steps: 5}\n"
    )
    config = load_config(Config, path, [*NEEDED, "diffusion.name=gaussian", "preview.every_steps=0"])
    assert (config.diffusion.time_distribution, config.diffusion.logit_std) == ("uniform", 1.0)
    assert config.preview.cfg_scale == 4.0
    path.write_text(to_yaml(config))
    assert load_config(Config, path) == config
    with pytest.raises(InputError, match=r"diffusion\.logit_mean=1.0 has no effect"):
        load_config(Config, path, [*NEEDED, "diffusion.logit_mean=1"])


@parametrized(place for place in places() if place.entry.metadata.get("only_if") and place.schema is not SampleConfig)
def test_a_key_without_effect_is_refused_at_its_default_too(place: Place, tmp_path: Path) -> None:
    """With the choices that the schema itself makes, or the first one against it."""
    condition, prefix = place.entry.metadata["only_if"], place.key.removesuffix(place.entry.name)
    choice = next(entry for entry in fields(place.section) if entry.name == condition.name)
    values = get_args(choice.type) if is_choice(choice.type) else (1,) if unwrap(choice.type)[0] in (int, float) else ()
    some = (False, True) if choice.type is bool else (*values, *condition.but, "d")
    others = [value for value in some if _breaks(condition, value)]
    needed = [*place.needed, f"{prefix}{condition.name}={shown(others[0])}"]
    needed += ["preview.cfg_scale=1"] if prefix == "model." else []  # a model without a condition is not guided
    key = f"{place.key}={shown(place.entry.default)}"
    with pytest.raises(InputError, match=rf"^{place.key}=.* has no effect with {prefix}{condition.name}="):
        load_config(place.schema, None, [*needed, key])
    path = tmp_path / "config.yaml"
    name = place.entry.name
    path.write_text(f"{prefix.rstrip('.')}:\n  {name}: {shown(place.entry.default)}\n")
    config = load_config(place.schema, path, needed)  # the choice came later
    path.write_text(f"# dit_scale 0.1.0\n{yaml.safe_dump(resolved(config))}")
    assert load_config(place.schema, path) == config
    with pytest.raises(InputError, match="has no effect"):
        load_config(place.schema, path, [key])


def _breaks(condition: When, value: Any) -> bool:
    return not condition.holds(SimpleNamespace(**{condition.name: value}))


def test_a_comment_that_names_the_program_makes_no_resolved_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for comment in ("dit_scale settings of mine", "dit_scale: my run", "dit_scale 2 nodes", "dit_scale"):
        path.write_text(f"# {comment}\ndiffusion: {{name: flow, prediction: epsilon}}\n")
        with pytest.raises(InputError, match=r"diffusion\.prediction=epsilon has no effect"):
            load_config(Config, path, NEEDED)


def test_a_resolved_file_may_be_changed_by_one_choice(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(load_config(Config, None, [*NEEDED, "diffusion.prediction=v"])))
    assert load_config(Config, path, ["diffusion.name=flow"]).diffusion.prediction == "epsilon"
    path.write_text(path.read_text().replace("name: gaussian", "name: flow"))  # a copy, changed by hand
    with pytest.raises(InputError, match=r"diffusion\.prediction=v has no effect with diffusion\.name=flow"):
        load_config(Config, path)
    path.write_text(path.read_text().replace("prediction: v", "prediction: epsilon"))
    assert load_config(Config, path).diffusion.name == "flow"


def test_an_option_without_effect_is_refused_by_its_name() -> None:
    with pytest.raises(
        InputError, match=r"^--guidance-channels=3 has no effect with --cfg-scale=1\.0; leave it out, or"
    ):
        load_options(SampleConfig, {"guidance_channels": "3"}, _flag, are_all=True)
    given = {"guidance_channels": "3", "cfg_scale": "1.5"}
    assert load_options(SampleConfig, given, _flag, are_all=True).guidance_channels == 3  # type: ignore[arg-type]


def test_several_folders_of_which_one_is_elsewhere() -> None:
    given = ["run_dir=r", "data.cache=c"]
    assert load_config(Config, None, [*given, "data.path={a: 1, s3://b/c: 2}"]).data.cache == "c"
    with pytest.raises(InputError, match=r"data.cache=c has no effect with data.path={a: 1, b: 2}; .* such as s3://"):
        load_config(Config, None, [*given, "data.path={a: 1, b: 2}"])


def test_what_an_older_version_stored_is_read(tmp_path: Path) -> None:
    before = resolved(load_config(Config, None, [*NEEDED, "diffusion.name=flow"]))
    before["diffusion"]["prediction"] = "v"
    before["train"] |= {"max_grad_norm": -1.0, "spike_factor": 0.5}
    stored = config_from(Config, before)
    assert (stored.diffusion.prediction, stored.train.max_grad_norm) == ("v", -1.0)
    assert used(stored).diffusion == load_config(Config, None, [*NEEDED, "diffusion.name=flow"]).diffusion
    path = tmp_path / "config.yaml"
    path.write_text("source: {path: s}\noutput: o\nautoencoder: {name: pca, precision: bf16}\n")
    assert load_config(EncodeConfig, path, is_stored=True).autoencoder.precision == "fp32"
    with pytest.raises(InputError, match=r"autoencoder\.precision=bf16 has no effect"):
        load_config(EncodeConfig, path)


def test_a_run_folders_own_file_goes_on_with_what_an_older_version_took(tmp_path: Path) -> None:
    """A copy is refused, as any file is in which someone may have meant it."""
    stored = resolved(load_config(Config, None, [*NEEDED, "model.condition=none", "preview.cfg_scale=1"]))
    stored["model"]["label_dropout"], stored["preview"]["guidance_channels"] = 0.3, 3
    path = tmp_path / "config.yaml"
    path.write_text(f"# dit_scale 0.1.0\n{yaml.safe_dump(stored)}")
    with pytest.raises(InputError, match=r"model\.label_dropout=0\.3 has no effect with model\.condition=none"):
        load_config(Config, path)
    (tmp_path / "checkpoints").mkdir()
    config = load_config(Config, path, ["train.steps=9"])
    assert (config.model.label_dropout, config.preview.guidance_channels, config.train.steps) == (0.1, None, 9)
    with pytest.raises(InputError, match=r"preview\.guidance_channels=2 has no effect"):
        load_config(Config, path, ["preview.guidance_channels=2"])
    saved = SimpleNamespace(config=stored, data={"fingerprint": "f"}, position=SimpleNamespace(step=3))
    check_resume(cast(Checkpoint, SimpleNamespace(kinds=["master"], description=saved)), config, saved.data)


def test_a_condition_names_another_field_of_its_section() -> None:
    found = 0
    for place in places():
        names = {entry.name for entry in fields(place.section)} - {place.entry.name}
        condition = place.entry.metadata.get("only_if")
        assert condition is None or condition.name in names, place.key
        found += condition is not None
    assert found > 15
