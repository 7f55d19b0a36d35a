"""The networks that came after DiT, against outputs and gradients of the published code (tests/golden/recipes)."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dit_scale.models import DiT
from dit_scale.models.embeddings import grid_rotation
from tests.parity import assert_parity, load_json, load_tensors

RECIPES = ("lightning_a", "lightning_b", "ddt_a", "repa_a", "repa_b")
_LIGHTNING = {"norm": "rmsnorm", "mlp": "swiglu", "rope": True}


@dataclass
class Recipe:
    """A small network as published, with its reference inputs and outputs."""

    model: DiT
    io: dict[str, Tensor]
    facts: dict[str, Any]
    tables: dict[str, Tensor]
    """What the published state dict holds and is computed here."""


def settings_of(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return a published configuration in the words of ``NetworkConfig``."""
    sizes = {name: config[name] for name in ("in_channels", "num_classes")} | {"latent_size": config["input_size"]}
    sizes |= {"patch_size": config.get("patch_size", 1), "learn_sigma": False}
    wide = {name: config[name] for name in ("hidden_size", "depth", "num_heads")}
    if name.startswith("ddt"):
        wide = {name: first for name, (first, _) in wide.items()} | {f"head_{k}": last for k, (_, last) in wide.items()}
        return sizes | wide | _LIGHTNING | {"time_embedding": "fourier"}
    if name.startswith("repa"):
        return sizes | wide | {"qk_norm": config["qk_norm"]}
    return (
        sizes
        | wide
        | {
            "norm": "rmsnorm" if config["use_rmsnorm"] else "layernorm",
            "mlp": "swiglu" if config["use_swiglu"] else "gelu",
            "rope": config["use_rope"],
            "qk_norm": config["use_qknorm"],
            "adaln_shift": not config["wo_shift"],
        }
    )


def load_recipe(name: str) -> Recipe:
    """Build a network with its published weights, of which only what is computed and projectors are left out."""
    facts, weights = load_json(f"recipes/{name}"), load_tensors(f"recipes/{name}_weights")
    tables = {key: weights.pop(key) for key in list(weights) if "feat_rope" in key or key.startswith("projectors.")}
    model = DiT(**settings_of(name, facts["config"]))
    model.load_state_dict(weights, strict=True)
    return Recipe(model, load_tensors(f"recipes/{name}_io"), facts, tables)


@pytest.mark.parametrize("name", RECIPES)
def test_forward_as_published(name: str) -> None:
    recipe = load_recipe(name)
    output = recipe.model(recipe.io["x"], recipe.io["t"], recipe.io["y"])
    # ddt_a's are as large as 18: its own rounding is 9e-5 away from what fp64 gives.
    largest = recipe.io["out"].abs().max().item()
    assert_parity(f"{name} out", output, recipe.io["out"], atol=1e-5 * max(1.0, largest))


def losses_of(name: str, recipe: Recipe) -> dict[str, Tensor]:
    """Return the published losses, one a sample: flows with t = 1 at the data (LightningDiT) or at the noise (RAE)."""
    io = recipe.io
    time = io["loss_t"][:, None, None, None]
    noise, data = io["loss_x0"], io["loss_x1"]
    forwards = name.startswith("lightning")
    noised, velocity = (
        (time * data + (1 - time) * noise, data - noise)
        if forwards
        else ((1 - time) * data + time * noise, noise - data)
    )
    output = recipe.model(noised, io["loss_t"], io["loss_y"])
    losses = {"loss_mse": (output - velocity).square().mean(dim=(1, 2, 3))}
    if forwards:
        losses["loss_cos"] = (1 - F.cosine_similarity(output, velocity, dim=1)).mean(dim=(1, 2))
    return losses


@pytest.mark.parametrize("name", ["lightning_a", "lightning_b", "ddt_a"])
def test_losses_and_the_gradient_of_every_parameter_as_published(name: str) -> None:
    recipe = load_recipe(name)
    losses = losses_of(name, recipe)
    for key, found in losses.items():
        assert_parity(f"{name} {key}", found, recipe.io[key])
    torch.stack([loss.mean() for loss in losses.values()]).sum().backward()
    trained = {key: value for key, value in recipe.model.named_parameters() if value.requires_grad}
    expected = recipe.facts["grad_norms"]
    assert trained.keys() == expected.keys()
    for key, parameter in trained.items():
        assert parameter.grad is not None, key
        assert_parity(f"{name} gradient of {key}", parameter.grad.norm(), expected[key], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["lightning_a", "lightning_b", "ddt_a"])
def test_rotations_as_published(name: str) -> None:
    recipe = load_recipe(name)
    prefixes = ("enc_feat_rope", "dec_feat_rope") if name == "ddt_a" else ("feat_rope",)
    for stack, prefix in zip(recipe.model.config.stacks, prefixes, strict=True):
        found = grid_rotation(stack.head_size, recipe.model.grid_side, torch.device("cpu"))
        for table, kind in zip(found, ("cos", "sin"), strict=True):
            assert_parity(f"{name} {prefix} {kind}", table, recipe.tables[f"{prefix}.freqs_{kind}"])
