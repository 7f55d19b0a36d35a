"""From a configuration to its objective."""

import math

import pytest
import torch

from dit_scale.config import Config, load_config
from dit_scale.diffusion import FlowMatching, GaussianDiffusion, Objective
from dit_scale.latents import LatentSpec
from dit_scale.recipe import model_of, objective_of


def objective(*overrides: str) -> Objective:
    """Return that of latents with 24 x 4 x 4 numbers."""
    sizes = ["model.name=custom", "model.patch_size=2", "model.hidden_size=8", "model.depth=1", "model.num_heads=1"]
    config = load_config(Config, None, ["run_dir=r", "data.path=d", *sizes, *overrides])
    with torch.device("meta"):
        model = model_of(config, LatentSpec(24, 4), 3)
    return objective_of(config.diffusion, model)


def test_defaults_are_the_published_ones_of_dit_and_sit() -> None:
    assert objective() == GaussianDiffusion()
    assert objective("model.learn_sigma=false") == GaussianDiffusion(learn_sigma=False)
    assert objective("diffusion.name=flow") == FlowMatching()


@pytest.mark.parametrize(
    ("given", "shift"), [("[]", 1.0), ("time_shift=2.5", 2.5), ("time_shift=null", math.sqrt(24 * 4 * 4 / 4096))]
)
def test_a_shift_is_a_number_or_follows_from_the_latent(given: str, shift: float) -> None:
    words = [f"diffusion.{given}"] if "=" in given else []
    assert objective("diffusion.name=flow", *words) == FlowMatching(time_shift=shift)


def test_each_setting_reaches_its_objective() -> None:
    flow = ["cosine_weight=1", "time_at_data=0", "time_interval=[0.1,0.9]", "time_shift=null", "time_shift_base=64"]
    flow += ["prediction=x0", "contrastive_weight=0.05", "time_distribution=logit_normal", "logit_mean=0.8"]
    assert objective("diffusion.name=flow", *(f"diffusion.{one}" for one in flow)) == FlowMatching(
        cosine_weight=1.0,
        time_at_data=0,
        time_interval=(0.1, 0.9),
        time_shift=math.sqrt(6),
        prediction="x0",
        time_distribution="logit_normal",
        logit_mean=0.8,
    )
    assert objective("diffusion.min_snr_gamma=5") == GaussianDiffusion(min_snr_gamma=5.0)
