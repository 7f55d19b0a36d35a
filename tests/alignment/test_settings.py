"""Settings of alignment: each acts or is refused, and old runs have none."""

from pathlib import Path

import pytest
import torch
from torch import nn

from dit_scale.config import Config, config_from, load_config, resolved
from dit_scale.errors import InputError
from dit_scale.interop.published import load_into
from dit_scale.latents import LatentSpec
from dit_scale.models import DiT, Projectors
from dit_scale.recipe import model_of
from dit_scale.weights import load_trained
from tests.alignment.encoders import save_encoder

NEEDED = ["run_dir=r", "data.path=d", "model.name=DiT-S/2"]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["alignment.weight=1"],
            "alignment.weight=1.0 has no effect with alignment.encoders=[]; leave it out, or give",
        ),
        (
            ["alignment.encoders=[a]", "alignment.projector=conv", "alignment.projector_width=9"],
            "projector=conv; leave",
        ),
        (["alignment.encoders=a"], "alignment.encoders=a is not a list of texts; give a list such as [a, b]"),
        (["alignment.encoders=[a,b,a]"], "alignment.encoders names a twice; give each once"),
        (["alignment.encoders=[a,b]", "alignment.encoder_digests=[x]"], "has 1 for 2 encoders; give one for each"),
        (["alignment.encoders=[a]", "alignment.spatial_norm=1.5"], "spatial_norm=1.5 is out of range; give a number"),
        (["alignment.encoders=[a]", "alignment.after_block=0"], "after_block=0 is out of range; give a whole number"),
    ],
)
def test_what_has_no_effect_or_is_wrong_is_refused(overrides: list[str], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(Config, None, [*NEEDED, *overrides])
    assert sentence in str(caught.value)


def test_the_configuration_of_an_older_run_has_no_alignment() -> None:
    values = resolved(load_config(Config, None, NEEDED))
    del values["alignment"]
    assert config_from(Config, values) == load_config(Config, None, NEEDED)


def test_the_network_has_projectors_in_training_alone(tmp_path: Path) -> None:
    save_encoder("siglip", tmp_path / "siglip")
    names = f"alignment.encoders=[efficientnet,{tmp_path / 'siglip'}]"
    config = load_config(Config, None, [*NEEDED, names, "alignment.after_block=3", "alignment.projector=conv"])
    with torch.device("meta"):
        trained = model_of(config, LatentSpec(4, 8), 3, in_training=True)
        sampled = model_of(config, LatentSpec(4, 8), 3)
    assert trained.config.projectors == Projectors(after_block=3, widths=(1280, 24), kind="conv", width=2048)
    assert sampled.config.projectors is None
    assert trained.state_dict().keys() - sampled.state_dict().keys() == {
        f"projectors.{index}.{kind}" for index in (0, 1) for kind in ("weight", "bias")
    }


def small(widths: tuple[int, ...] = ()) -> DiT:
    projectors = Projectors(after_block=1, widths=widths, width=6) if widths else None
    sizes = {"latent_size": 4, "patch_size": 2, "hidden_size": 16, "depth": 1, "num_heads": 2, "num_classes": 2}
    model = DiT(**sizes, projectors=projectors)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def test_weights_of_projectors_are_dropped_and_no_others() -> None:
    aligned, plain = small((5, 3)), small()
    load_trained(plain, aligned.state_dict(), "x")
    assert torch.equal(plain.get_parameter("x_embedder.proj.weight"), aligned.get_parameter("x_embedder.proj.weight"))
    with pytest.raises(InputError, match=r"early\.weight is"):
        load_trained(plain, aligned.state_dict() | {"early.weight": torch.zeros(2)}, "x")
    with pytest.raises(InputError, match=r"projectors\.0\.0\.bias is absent there"):
        load_trained(aligned, plain.state_dict(), "x")


@pytest.mark.parametrize(("theirs", "is_taken"), [((5, 3), True), ((5, 4), False), ((5,), False), ((), False)])
def test_fine_tuning_takes_projectors_where_all_fit(theirs: tuple[int, ...], is_taken: bool) -> None:
    model, given = small((5, 3)), small(theirs).state_dict()
    own = {name: value.clone() for name, value in model.state_dict().items()}
    load_into(model, given, "x")
    for name, value in model.state_dict().items():
        if name != "pos_embed":
            assert torch.equal(value, own[name] if name.startswith("projectors.") and not is_taken else given[name])
