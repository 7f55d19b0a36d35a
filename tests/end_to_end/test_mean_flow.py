"""An objective with two times an image, added in one file, is trained and sampled as a user does it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dit_scale.conditioning import Labels
from dit_scale.config import Config, DataConfig, DiffusionConfig, ModelConfig
from dit_scale.diffusion import Terms
from dit_scale.diffusion.losses import LabelledDenoiser, sample_mean
from dit_scale.diffusion.objective import OBJECTIVES
from dit_scale.latents import LatentSpec
from dit_scale.planning.measuring import products_of
from dit_scale.recipe import model_of
from dit_scale.training.loss import LossFunction
from tests.end_to_end.mean_flow import MeanFlow
from tests.end_to_end.runs import losses, settings
from tests.launch import run
from tests.networks import fill

MODULE = "tests.end_to_end.mean_flow"
LATENTS = LatentSpec(channels=2, size=4, scale=(0.5,))


def test_two_times_are_trained_and_sampled(shards: Path, tmp_path: Path) -> None:
    run_dir, flow = tmp_path / "run", ["diffusion.name=flow", "engine.kernels=off", "engine.zero_stage=2"]
    run(settings(shards, run_dir, *flow, "train.steps=8"), ranks=2, module=MODULE)
    found = losses(run_dir)
    assert len(found) == 8 and sum(found[4:]) < sum(found[:4])
    few = ["--num-samples", 2, "--num-sampling-steps", 2, "--kernels", "off"]
    run(["sample", run_dir, *few, "--out", tmp_path / "out"], module=MODULE)
    assert len(list((tmp_path / "out" / "images").iterdir())) == 2
    refused = run(["sample", run_dir, *few, "--out", tmp_path / "flow"], check=False)  # without MeanFlow
    assert refused.returncode == 2 and "another model: further_t_embedders.0." in refused.stderr


def test_the_loss_has_the_networks_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    """As two evaluations near by give it, of images whose times LossFunction draws."""
    monkeypatch.setitem(OBJECTIVES, "flow", MeanFlow)
    model = ModelConfig("custom", 2, 16, 2, 2, label_dropout=0.0)
    config = Config(run_dir="r", data=DataConfig(path="d"), model=model, diffusion=DiffusionConfig("flow"))
    network = model_of(config, LATENTS, 3, kernels="off")
    assert network.num_times == 2 and products_of(network.config).training > 0  # which plan measures
    torch.manual_seed(0)
    fill(network, std=0.2)
    network.double()
    labels, given = torch.tensor([0, 1, 2, 0]), []

    class Noted(MeanFlow):
        def loss(self, denoiser: LabelledDenoiser, latent: Tensor, noise: Tensor, time: Tensor) -> Terms:
            given.append((latent, noise, time))
            return super().loss(denoiser, latent, noise, time)

    function = LossFunction(Noted(), LATENTS, 0, 0.0, Labels(3))
    found = function(network, torch.randn(4, *LATENTS.moments_shape), labels, torch.arange(4))["mse"].value
    ((latent, noise, times),) = given
    (t, r), step = times.unbind(dim=1), 1e-3

    def mean(t: Tensor) -> Tensor:
        noised = latent + t[:, None, None, None] * (noise - latent)
        return -network(noised, 1 - torch.stack((t, r), dim=1), labels)[:, :2]

    assert (t > r).all()
    derivative = (mean(t + step) - mean(t - step)) / (2 * step)
    error = mean(t) - (noise - latent) + (t - r)[:, None, None, None] * derivative
    torch.testing.assert_close(found.double(), sample_mean(error**2), rtol=1e-3, atol=0.0)
    assert not torch.allclose(found.double(), sample_mean((mean(t) - (noise - latent)) ** 2), rtol=1e-2)
