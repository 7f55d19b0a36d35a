import pytest
import torch

from dit_scale.errors import InputError
from dit_scale.models import PRESETS, DiT, build_model
from tests.parity import assert_parity, load_json

REFERENCES = load_json("presets")
AFTER_DIT = {
    "LightningDiT-B/1": None,  # by preset: millions of parameters as its paper counts them, where it does
    "LightningDiT-L/1": None,
    "LightningDiT-XL/1": 675,
    "DiT-DH-S": None,
    "DiT-DH-XL": 839,
}


def build_on_meta(reference: str) -> DiT:
    name, image_size = reference.split("@")
    with torch.device("meta"):
        return build_model(name, latent_size=int(image_size) // 8, num_classes=1000)


def test_references_cover_every_published_preset() -> None:
    ours = {"DiT-1.5B/2", "DiT-3B/2", "DiT-7B/2"}
    assert {reference.split("@")[0] for reference in REFERENCES} == set(PRESETS) - ours - set(AFTER_DIT)


@pytest.mark.parametrize("reference", REFERENCES)
def test_parameter_counts(reference: str) -> None:
    parameters = list(build_on_meta(reference).parameters())
    assert sum(p.numel() for p in parameters) == REFERENCES[reference]["params"]
    assert sum(p.numel() for p in parameters if p.requires_grad) == REFERENCES[reference]["trainable"]


@pytest.mark.parametrize("name", AFTER_DIT)
def test_those_after_dit_have_their_switches_and_sizes(name: str) -> None:
    with torch.device("meta"):
        model = build_model(name, latent_size=16, num_classes=1000, in_channels=768 if "DH" in name else 32)
    config = model.config
    assert (config.norm, config.mlp, config.rope, config.learn_sigma) == ("rmsnorm", "swiglu", True, False)
    assert (config.qk_norm, config.adaln_shift, config.patch_size) == (False, True, 1)
    if "DH" in name:
        assert (len(model.blocks), config.time_embedding) == (config.depth + 2, "fourier")
        assert [stack.head_size for stack in config.stacks] == [64 if name == "DiT-DH-S" else 72, 128]
    published = AFTER_DIT[name]
    assert published is None or sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize("reference", [r for r in REFERENCES if REFERENCES[r]["state_dict"]])
def test_state_dict_keys_and_shapes(reference: str) -> None:
    state = build_on_meta(reference).state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == REFERENCES[reference]["state_dict"]


@pytest.mark.parametrize("reference", REFERENCES)
def test_positions_as_published(reference: str) -> None:
    name, image_size = reference.split("@")
    model = build_model(name, latent_size=int(image_size) // 8, num_classes=1, depth=1)
    table = model.pos_embed
    total = table.double().abs().sum()
    assert_parity(f"presets.json {reference} pos_embed_sum_abs", total, REFERENCES[reference]["pos_embed_sum_abs"])
    first = REFERENCES[reference]["pos_embed_00_10"]
    assert_parity(f"presets.json {reference} pos_embed_00_10", table[0, 1, : len(first)], first)


def test_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'DiT-XXL/2' is not a preset; did you mean 'DiT-XL/2'\?"):
        build_model("DiT-XXL/2", latent_size=32, num_classes=10)


def test_preset_fields_can_be_overridden() -> None:
    model = build_model("DiT-S/8", latent_size=16, num_classes=10, depth=2, patch_size=4)
    assert (len(model.blocks), model.patch_size, model.hidden_size) == (2, 4, 384)


@pytest.mark.parametrize("name", ["custom", None])
def test_custom_model_needs_all_four_numbers(name: str | None) -> None:
    model = build_model(name, latent_size=8, num_classes=3, depth=1, hidden_size=32, num_heads=2, patch_size=2)
    assert model.hidden_size == 32
    with pytest.raises(InputError, match="no num_heads, patch_size"):
        build_model(name, latent_size=8, num_classes=3, depth=1, hidden_size=32)


def test_an_mlp_of_no_width_is_refused() -> None:
    with pytest.raises(InputError, match=r"mlp_ratio 0.0001 of hidden_size 384 is an MLP of width 0; give more"):
        build_model("DiT-S/8", latent_size=8, num_classes=2, mlp_ratio=0.0001)
