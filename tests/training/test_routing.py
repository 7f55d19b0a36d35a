"""Which tokens a step routes: a function of the seed and the image's position in the stream, and of nothing else."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dit_scale.conditioning import Labels
from dit_scale.config import Config, load_config
from dit_scale.diffusion import build_objective, total
from dit_scale.errors import InputError
from dit_scale.latents import LatentSpec
from dit_scale.models import DiT, Route
from dit_scale.recipe import model_of
from dit_scale.training.loss import LossFunction
from dit_scale.training.routing import TokenDraws, token_draws
from tests.networks import fill

LATENTS = LatentSpec(channels=2, size=8)
DRAWS = TokenDraws(num_tokens=16, num_kept=4, path_drop=0.5, num_routed_images=24)
MOMENTS = torch.randn(8, *LATENTS.moments_shape, generator=torch.Generator().manual_seed(0))
POSITIONS = torch.arange(8) + 16
LABELS = torch.arange(8) % 3


def network() -> DiT:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"latent_size": 8, "patch_size": 2, "hidden_size": 16, "depth": 4, "num_heads": 2}
    model = DiT(**sizes, in_channels=2, num_classes=3, route=Route(2, 3, "learnt"))
    fill(model, std=0.2)
    return model


def loss_function(routing: TokenDraws | None, seed: int = 7) -> LossFunction:
    return LossFunction(build_objective("flow"), LATENTS, seed, 0.1, Labels(3), routing=routing)


def test_an_images_loss_does_not_depend_on_its_batch() -> None:
    model, function = network(), loss_function(DRAWS)
    together = total(function(model, MOMENTS, LABELS, POSITIONS))
    parts = [slice(0, 3), slice(3, 8)]
    apart = [total(function(model, MOMENTS[part], LABELS[part], POSITIONS[part])) for part in parts]
    torch.testing.assert_close(torch.cat(apart), together, rtol=1e-5, atol=0)
    dense = total(loss_function(None)(model, MOMENTS, LABELS, POSITIONS))
    assert (dense - together).abs().min() > 1e-6  # every image's is another problem


def test_steps_are_routed_up_to_the_last_image_of_the_phase_and_paths_dropped_to_the_end() -> None:
    told: list[dict[str, Tensor]] = []

    def spy(noised: Tensor, time: Tensor, label: Tensor, **routed: Tensor) -> Tensor:
        told.append(routed)
        return torch.zeros(len(label), 4, 8, 8)

    function = loss_function(DRAWS)
    for first in (0, 16, 24, 32):
        function.at(first)(spy, MOMENTS, LABELS, torch.arange(8) + first)
    assert [sorted(routed) for routed in told] == [["kept_tokens", "path_dropped"]] * 2 + [["path_dropped"]] * 2
    assert told[0]["kept_tokens"].shape == (8, 4)
    assert not torch.equal(told[0]["kept_tokens"], told[1]["kept_tokens"])
    told.clear()
    loss_function(None).at(0)(spy, MOMENTS, LABELS, POSITIONS)
    assert told == [{}]


def test_paths_are_dropped_at_the_rate_that_was_asked_for() -> None:
    positions = torch.arange(20_000)
    routed = TokenDraws(16, 4, path_drop=0.05).draw(7, positions)
    assert routed["path_dropped"].double().mean().item() == pytest.approx(0.05, abs=0.005)
    share = torch.bincount(routed["kept_tokens"].flatten(), minlength=16) / len(positions)
    torch.testing.assert_close(share, torch.full((16,), 0.25), rtol=0, atol=0.015)
    assert "path_dropped" not in TokenDraws(16, 4).draw(7, positions)


def configured(*overrides: str) -> Config:
    return load_config(Config, "quickstart", ["run_dir=r", "data.path=d", "model.depth=6", *overrides])


def test_a_configuration_says_how_many_tokens_and_for_how_long() -> None:
    config = configured("routing.ratio=0.75", "routing.until_step=10", "train.global_batch_size=8")
    model = model_of(config, LatentSpec(4, 16), 3)
    tokens = model.grid_side**2
    assert token_draws(config, model) == TokenDraws(tokens, tokens // 4, 0.0, 80)
    assert model.config.route == Route(3, None, "entered", 0.75)
    dense = configured()
    assert token_draws(dense, model_of(dense, LatentSpec(4, 16), 3)) is None


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["routing.from_block=2"], "routing.from_block=2 has no effect with routing.ratio=0"),
        (["routing.fill=learnt"], "has no effect with routing.ratio=0"),
        (["routing.ratio=0.5", "routing.path_drop=0.1"], "give routing.fill=learnt"),
        (["routing.ratio=1"], "routing.ratio=1"),
        (["routing.ratio=0.5", "routing.to_block=2"], "routing.to_block=2 is before routing.from_block=3"),
        (["routing.ratio=0.5", "routing.to_block=9"], "from block 3 to block 9 does not fit a network of 6 blocks"),
    ],
)
def test_settings_that_do_not_fit_are_one_sentence(overrides: list[str], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence.replace(".", r"\.")):
        model_of(configured(*overrides), LatentSpec(4, 16), 3)
