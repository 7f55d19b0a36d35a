"""One configuration: what `model.*` of a file sets, what presets set and what `DiT` takes are the same."""

import inspect
import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import torch

from dit_scale.config import FIXED_FOR_A_RUN, Config, ModelConfig, config_from, load_config
from dit_scale.errors import InputError
from dit_scale.latents import LatentSpec
from dit_scale.models import PRESETS, DiT, NetworkConfig, build_model
from dit_scale.models.config import FROM_DATA, FROM_SECTIONS
from dit_scale.models.presets import SIZES
from dit_scale.recipe import model_of
from tests.networks import fill

NETWORK = {entry.name: entry for entry in fields(NetworkConfig)}
SCHEMA = {entry.name: entry for entry in fields(ModelConfig)}
SMALL = {"latent_size": 8, "num_classes": 3, "patch_size": 2, "hidden_size": 16, "depth": 1, "num_heads": 2}


def test_a_configuration_file_sets_every_field_that_data_objective_and_sections_do_not() -> None:
    assert list(SCHEMA) == ["name", *(name for name in NETWORK if name not in FROM_DATA + FROM_SECTIONS)]
    fixed = {key.removeprefix("model.") for key in FIXED_FOR_A_RUN if key.startswith("model.")}
    assert fixed == set(SCHEMA) - {"attention"}, "what changes the function stays for a run"


@pytest.mark.parametrize("name", [name for name in SCHEMA if name != "name"])
def test_defaults_and_choices_are_the_networks(name: str) -> None:
    ours, theirs = SCHEMA[name], NETWORK[name]
    assert ours.default in (None, theirs.default)  # null is the preset's
    if ours.default is None:
        assert theirs.default is not MISSING or name in SIZES, "every preset gives what has no default"
    if get_origin(theirs.type) is Literal:
        assert {choice for kind in (ours.type, *get_args(ours.type)) for choice in get_args(kind) or [kind]} >= set(
            get_args(theirs.type)
        )
    else:
        assert theirs.type in (ours.type, *get_args(ours.type))


def test_presets_set_fields_of_the_network_and_all_sizes() -> None:
    for preset in PRESETS.values():
        assert set(SIZES) <= set(preset) <= set(NETWORK) - {*FROM_DATA, *FROM_SECTIONS}


def test_a_network_keeps_its_configuration() -> None:
    with torch.device("meta"):
        model = build_model("DiT-S/2", latent_size=32, num_classes=10, depth=2)
    assert model.config == NetworkConfig(
        latent_size=32, num_classes=10, patch_size=2, hidden_size=384, depth=2, num_heads=6
    )
    assert hash(model.config) == hash(NetworkConfig(**vars(model.config)))  # so that what is measured can be kept


def test_editors_see_the_keywords() -> None:
    keywords = inspect.signature(DiT).parameters
    assert list(keywords) == list(NETWORK)
    assert keywords["mlp_ratio"].default == 4.0 and keywords["depth"].annotation is int


def test_a_network_is_told_each_of_several_times() -> None:
    torch.manual_seed(0)
    one = DiT(**SMALL)
    torch.manual_seed(0)
    two = DiT(**SMALL, num_times=2)
    ours, theirs = dict(one.named_parameters()), dict(two.named_parameters())
    further = [name for name in theirs if name not in ours]
    assert len(further) == 4 and all(name.startswith("further_t_embedders.0.mlp.") for name in further)
    assert theirs[further[0]].std().item() == pytest.approx(0.02, rel=0.1)
    fill(two, std=0.2)
    latent, label = torch.randn(2, 4, 8, 8), torch.tensor([0, 1])
    times = torch.tensor([[0.9, 0.1], [0.8, 0.3]])
    outputs = [two(latent, moved, label) for moved in (times, times + torch.tensor([0.1, 0.0]), times.flip(1))]
    assert not any(torch.allclose(outputs[0], other) for other in outputs[1:])
    with pytest.raises(InputError, match="num_times 0 is below 1"):
        DiT(**SMALL, num_times=0)


def test_an_unknown_keyword_is_an_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'mlp_ration'"):
        DiT(**SMALL | {"mlp_ration": 4.0})


@pytest.mark.parametrize(("retired", "same"), [("cudnn-padded", "cudnn"), ("flash-padded", "flash")])
def test_a_checkpoint_that_names_a_retired_kernel_is_read(tmp_path: Path, retired: str, same: str) -> None:
    settings = {"run_dir": "r", "data": {"path": "d"}, "model": {"name": "DiT-S/8", "depth": 1, "attention": retired}}
    stored = config_from(Config, settings)
    assert model_of(stored, LatentSpec(4, 8), 3).attention == same
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(settings))
    assert load_config(Config, path) == stored
    with pytest.raises(InputError, match=f"attention '{retired}' is unknown; did you mean '{same}'"):
        DiT(**SMALL | {"attention": retired})
