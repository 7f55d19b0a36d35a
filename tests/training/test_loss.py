"""Losses with names: one on hidden states beside an objective, and an objective with two times an image."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from dit_scale import draws
from dit_scale.conditioning import Labels
from dit_scale.diffusion import Term, Terms, build_objective, total
from dit_scale.diffusion.losses import LabelledDenoiser, sample_mean
from dit_scale.draws import Stream
from dit_scale.latents import LatentSpec
from dit_scale.models import DiT
from dit_scale.training.early import EarlyLoss
from dit_scale.training.loss import LossFunction, Pass
from tests.networks import fill

LATENTS = LatentSpec(channels=2, size=4, scale=(0.5,))
MOMENTS = torch.randn(3, *LATENTS.moments_shape, generator=torch.Generator().manual_seed(0))
LABELS, POSITIONS = torch.tensor([0, 1, 2]), torch.arange(3) + 10


class Network(nn.Module):
    """Three blocks of one linear layer on tokens, one a pixel; the time is added to all channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        self.asked: list[dict[str, Any]] = []

    def forward(self, latent: Tensor, time: Tensor, label: Tensor, **asked: Any) -> Any:
        self.asked.append(asked)
        tokens = latent.flatten(2).transpose(1, 2) + time.view(len(time), -1).float().sum(dim=1)[:, None, None]
        states = []
        for block in self.blocks:
            tokens = torch.tanh(block(tokens))
            states.append(tokens)
        output = tokens.transpose(1, 2).unflatten(2, (4, 4))
        if "hidden" not in asked:
            return output
        return output, [states[number - 1] for number in asked["hidden"]]


@dataclass(frozen=True)
class Likeness:
    """How far a block's tokens are from what a frozen network makes of the latent."""

    frozen: nn.Module
    hidden: tuple[int, ...] = (2,)

    def terms(self, seen: Pass) -> Terms:
        target = self.frozen(seen.latent.flatten(2).transpose(1, 2))
        return {"likeness": Term(sample_mean((seen.hidden[self.hidden[0]] - target) ** 2), 0.5)}


@dataclass(frozen=True)
class Evenness:
    """A regulariser on the first and the second block."""

    hidden: tuple[int, ...] = (2, 1)

    def terms(self, seen: Pass) -> Terms:
        assert set(seen.hidden) == {1, 2}
        return {"evenness": Term(sample_mean(seen.hidden[1] ** 2), 2.0)}


def test_losses_beside_the_objective_see_the_hidden_states_they_ask_for() -> None:
    frozen = nn.Linear(2, 2).requires_grad_(False)
    objective, network = build_objective("flow"), Network()
    plain = LossFunction(objective, LATENTS, seed=7, label_dropout=0.0, condition=Labels(3))
    both = LossFunction(objective, LATENTS, 7, 0.0, Labels(3), (Likeness(frozen), Evenness()))
    expected = plain(network, MOMENTS, LABELS, POSITIONS)
    found = both(network, MOMENTS, LABELS, POSITIONS)
    assert network.asked == [{}, {"hidden": (1, 2)}]  # nothing is asked for where no loss needs it
    assert list(found) == ["mse", "likeness", "evenness"]
    assert torch.equal(found["mse"].value, expected["mse"].value)
    assert torch.equal(total(expected), expected["mse"].value)
    weighted = found["mse"].value + 0.5 * found["likeness"].value + 2.0 * found["evenness"].value
    assert torch.equal(total(found), weighted)
    total(found).mean().backward()
    for number, block in enumerate(network.blocks):
        assert isinstance(block.weight, nn.Parameter) and block.weight.grad is not None
        assert block.weight.grad.abs().sum() > 0, f"block {number} is not taught"
    assert frozen.weight.grad is None


@dataclass(frozen=True)
class MeanVelocity:
    """The velocity averaged between two times, with one network call at each of two times."""

    num_times: ClassVar[int] = 2
    solvers: ClassVar[tuple[str, ...]] = ("euler",)
    default_solver: ClassVar[str] = "euler"

    def times_from_uniform(self, uniform: Tensor) -> Tensor:
        assert uniform.shape[1:] == (2,)
        return uniform.sort(dim=1).values

    def noise_levels(self, network_time: Tensor) -> Tensor:
        return network_time

    def loss(self, denoiser: LabelledDenoiser, latent: Tensor, noise: Tensor, time: Tensor) -> Terms:
        start, end = time.float().unbind(dim=1)
        noised = (1 - end)[:, None, None, None] * latent + end[:, None, None, None] * noise
        average = denoiser(noised, time)
        now = denoiser(noised, torch.stack((end, end), dim=1))
        error = sample_mean((average - (noise - latent)) ** 2)
        return {"average": Term(error), "consistency": Term(sample_mean((average - now) ** 2) * (end - start), 0.1)}


def test_an_objective_may_draw_several_times_an_image() -> None:
    function = LossFunction(MeanVelocity(), LATENTS, 7, 0.0, Labels(3), (Likeness(nn.Linear(2, 2)),))
    network = Network()
    together = function(network, MOMENTS, LABELS, POSITIONS)
    assert list(together) == ["average", "consistency", "likeness"]
    assert network.asked == [{"hidden": (2,)}, {}]  # the states are those of the objective's first call
    for i in range(3):
        alone = function(network, MOMENTS[i : i + 1], LABELS[i : i + 1], POSITIONS[i : i + 1])
        assert torch.allclose(total(alone), total(together)[i : i + 1], rtol=1e-5)


def test_more_draws_an_image_leave_the_first_as_it_was() -> None:
    one = draws.uniform(7, Stream.TIME, POSITIONS)
    several = draws.uniform(7, Stream.TIME, POSITIONS, (2, 3))
    assert several.shape == (3, 2, 3)
    assert torch.equal(several[:, 0, 0], one)
    assert several.unique().numel() == several.numel()


@pytest.mark.parametrize("name", ["gaussian", "flow"])
def test_an_early_layer_learns_by_the_objectives_squared_error(name: str) -> None:
    """Its loss is that of a network that ends there, and its gradient stops there."""
    torch.manual_seed(0)
    sizes = {"latent_size": 4, "patch_size": 2, "in_channels": 2, "hidden_size": 16, "depth": 2, "num_heads": 2}
    model = DiT(**sizes, num_classes=3, early_block=1)
    fill(model, std=0.2)
    objective = build_objective(name)
    function = LossFunction(objective, LATENTS, 7, 0.1, Labels(3), (EarlyLoss(objective, 0.5),))
    terms = function(model, MOMENTS, LABELS, POSITIONS)
    assert list(terms) == (["mse", "vb", "early"] if name == "gaussian" else ["mse", "early"])
    assert terms["early"].weight == 0.5
    plain = LossFunction(objective, LATENTS, 7, 0.1, Labels(3))
    ends_there = partial(early_output, model)
    assert torch.equal(terms["early"].value, plain(ends_there, MOMENTS, LABELS, POSITIONS)["mse"].value)
    assert torch.equal(terms["mse"].value, plain(model, MOMENTS, LABELS, POSITIONS)["mse"].value)
    terms["early"].value.mean().backward()
    assert model.early_layer.linear.weight.grad.abs().sum() > 0
    assert model.blocks[0].mlp.fc1.weight.grad.abs().sum() > 0
    assert model.blocks[1].mlp.fc1.weight.grad is None and model.final_layer.linear.weight.grad is None


def early_output(model: DiT, noised: Tensor, time: Tensor, label: Tensor) -> Tensor:
    return model(noised, time, label, hidden=("early_layer",))[1][0]
