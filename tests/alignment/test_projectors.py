"""Projectors and the alignment loss are REPA's; the network without them is as it was."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dit_scale.diffusion import total
from dit_scale.diffusion.losses import Term, sample_mean
from dit_scale.errors import InputError
from dit_scale.models import DiT, Projectors
from dit_scale.training.alignment import Alignment, normalised_over_places
from dit_scale.training.loss import Pass
from tests.parity import assert_parity, load_json, load_tensors

SIZES: dict[str, Any] = {"latent_size": 8, "patch_size": 2, "hidden_size": 32, "depth": 2, "num_heads": 2}
MLP = Projectors(after_block=1, widths=(6, 5), width=7)


class Fixed(nn.Module):
    """An encoder whose features are known."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.known = features

    def forward(self, crops: Tensor) -> Tensor:
        return self.known


def published(name: str) -> tuple[DiT, dict[str, Tensor], dict[str, Any]]:
    facts = load_json(f"recipes/{name}")
    config = facts["config"]
    projectors = Projectors(
        after_block=config["encoder_depth"], widths=tuple(config["z_dims"]), width=config["projector_dim"]
    )
    model = DiT(
        latent_size=config["input_size"],
        learn_sigma=False,
        projectors=projectors,
        **{name: config[name] for name in ("patch_size", "in_channels", "hidden_size", "depth", "num_heads")},
        num_classes=config["num_classes"],
    )
    model.load_state_dict(load_tensors(f"recipes/{name}_weights"), strict=True)
    return model, load_tensors(f"recipes/{name}_io"), facts


@pytest.mark.parametrize("name", ["repa_a", "repa_b"])
def test_projections_are_as_published(name: str) -> None:
    model, io, facts = published(name)
    asked = [f"projectors.{index}" for index in range(len(facts["config"]["z_dims"]))]
    output, projected = model(io["x"], io["t"], io["y"], hidden=asked)
    assert_parity(f"{name} out", output, io["out"])
    for index, found in enumerate(projected):
        assert_parity(f"{name} projected_{index}", found, io[f"projected_{index}"])


@pytest.mark.parametrize("name", ["repa_a", "repa_b"])
def test_the_loss_and_every_gradient_are_as_published(name: str) -> None:
    model, io, facts = published(name)
    targets = [io[f"loss_target_{index}"] for index in range(len(facts["config"]["z_dims"]))]
    alignment = Alignment([Fixed(target) for target in targets], facts["projection_coefficient"], 0.0)  # type: ignore
    data, noise, t = io["loss_data"], io["loss_noise"], io["loss_t"]
    noised = (1 - t)[:, None, None, None] * data + t[:, None, None, None] * noise  # REPA's time: 0 at the data
    velocity, hidden = model(noised, t, io["loss_y"], hidden=alignment.hidden)
    denoising = sample_mean((velocity - (noise - data)) ** 2)
    crops = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    asked = dict(zip(alignment.hidden, hidden, strict=True))
    terms = alignment.terms(Pass(t, data, noise, t, asked, velocity, crops))
    assert_parity(f"{name} loss_denoising", denoising, io["loss_denoising"])
    assert terms["alignment"].value.shape == (4,)
    assert_parity(f"{name} loss_projection", terms["alignment"].value.mean()[None], io["loss_projection"])
    total({"mse": Term(denoising)} | terms).mean().backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained.keys() == facts["grad_norms"].keys()
    for key, expected in facts["grad_norms"].items():
        gradient = trained[key].grad
        assert gradient is not None
        assert_parity(f"{name} gradient of {key}", gradient.norm(), expected, rtol=1e-3)


def test_other_weights_begin_as_without_projectors() -> None:
    torch.manual_seed(3)
    plain = DiT(**SIZES, num_classes=3).state_dict()
    torch.manual_seed(3)
    aligned = DiT(**SIZES, num_classes=3, projectors=MLP).state_dict()
    assert {name for name in aligned if name not in plain} == {
        f"projectors.{index}.{layer}.{kind}" for index in (0, 1) for layer in (0, 2, 4) for kind in ("weight", "bias")
    }
    assert all(torch.equal(value, aligned[name]) for name, value in plain.items())
    assert not aligned["projectors.0.0.bias"].any()
    bound = (6 / (32 + 7)) ** 0.5  # Xavier uniform, as all linear layers of the published network
    assert 0.9 * bound < aligned["projectors.0.0.weight"].abs().max() <= bound


def test_a_convolution_sees_neighbours_on_the_grid() -> None:
    torch.manual_seed(0)
    model = DiT(**SIZES, num_classes=3, projectors=Projectors(after_block=2, widths=(6,), kind="conv"))
    assert model.get_parameter("projectors.0.weight").shape == (6, 32, 3, 3)
    tokens = torch.zeros(1, 16, 32)
    before = model.projectors[0](tokens)
    tokens[0, 5] = 1.0  # row 1, column 1 of 4 x 4
    changed = (model.projectors[0](tokens) - before).abs().sum(dim=-1)[0].view(4, 4) > 0
    assert changed.nonzero().tolist() == [[row, column] for row in range(3) for column in range(3)]


def test_targets_normalised_over_places() -> None:
    features = torch.randn(2, 16, 5, generator=torch.Generator().manual_seed(0)) + 3.0
    found = normalised_over_places(features, 0.6)
    for image in range(2):
        for channel in range(5):
            values = features[image, :, channel].tolist()
            mean = sum(values) / 16
            deviation = (sum((value - mean) ** 2 for value in values) / 15) ** 0.5
            expected = [(value - 0.6 * mean) / (deviation + 1e-6) for value in values]
            assert found[image, :, channel].tolist() == pytest.approx(expected, rel=1e-4)
    hidden = {"projectors.0": torch.randn(2, 16, 5)}
    crops, nothing = torch.zeros(2, 3, 2, 2, dtype=torch.uint8), torch.zeros(2)
    seen = Pass(nothing, nothing, nothing, nothing, hidden, nothing, crops)  # type: ignore
    losses = [
        Alignment([Fixed(target)], 1.0, part).terms(seen)["alignment"].value  # type: ignore
        for target, part in ((features, 0.6), (found, 0.0), (features, 0.0))
    ]
    assert torch.allclose(losses[0], losses[1])
    assert not torch.allclose(losses[0], losses[2])


@pytest.mark.parametrize("asked", ["projectors.0", "projectors.2", "blocks.0", 3])
def test_a_side_layer_that_is_not_there_is_refused(asked: int | str) -> None:
    projectors = None if asked == "projectors.0" else MLP
    model = DiT(**SIZES, num_classes=3, projectors=projectors)
    with pytest.raises(InputError, match=f"hidden state {asked} is asked for"):
        model(torch.zeros(1, 4, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.long), hidden=[asked])


def test_projectors_after_a_block_that_is_not_there_are_refused() -> None:
    with pytest.raises(InputError, match="after_block 8 is not one of 2 blocks; give 1 to 2"):
        DiT(**SIZES, num_classes=3, projectors=Projectors(after_block=8, widths=(5,)))
