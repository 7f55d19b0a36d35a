"""The step's arithmetic: draws that belong to the image, and nothing taken from a global generator."""

import pytest
import torch

from dit_scale.conditioning import Labels
from dit_scale.diffusion import build_objective, total
from dit_scale.latents import LatentSpec
from dit_scale.models import DiT
from dit_scale.training.loss import LossFunction

LATENTS = LatentSpec(channels=2, size=4, scale=(0.5,))


def loss_function(name: str, label_dropout: float = 0.1) -> LossFunction:
    return LossFunction(build_objective(name), LATENTS, seed=7, label_dropout=label_dropout, condition=Labels(3))


def model() -> DiT:
    torch.manual_seed(0)
    made = DiT(latent_size=4, patch_size=2, in_channels=2, hidden_size=16, depth=1, num_heads=2, num_classes=3)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made


@pytest.mark.parametrize("name", ["gaussian", "flow"])
def test_an_images_loss_does_not_depend_on_its_batch(name: str) -> None:
    moments, labels, positions = torch.randn(6, *LATENTS.moments_shape), torch.arange(6) % 3, torch.arange(100, 106)
    network = model()
    together = total(loss_function(name)(network, moments, labels, positions))
    alone = torch.cat(
        [
            total(loss_function(name)(network, moments[i : i + 1], labels[i : i + 1], positions[i : i + 1]))
            for i in range(6)
        ]
    )
    assert torch.allclose(together, alone, rtol=1e-5)


@pytest.mark.parametrize("name", ["gaussian", "flow"])
def test_a_step_takes_nothing_from_the_global_generator(name: str) -> None:
    moments = torch.zeros(2, *LATENTS.moments_shape)
    network = model()
    state = torch.get_rng_state()
    total(loss_function(name)(network, moments, torch.zeros(2).long(), torch.arange(2))).sum().backward()
    assert torch.equal(torch.get_rng_state(), state)


def test_labels_are_dropped_at_the_rate_that_was_asked_for() -> None:
    seen: list[torch.Tensor] = []

    def denoiser(noised_latent: torch.Tensor, timestep: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        seen.append(label)
        return torch.zeros(len(label), 4, 4, 4)

    count = 20_000
    loss_function("gaussian", 0.25)(
        denoiser, torch.zeros(count, *LATENTS.moments_shape), torch.ones(count).long(), torch.arange(count)
    )
    assert (seen[0] == 3).double().mean().item() == pytest.approx(0.25, abs=0.01)
    assert set(seen[0].tolist()) == {1, 3}
