"""The estimate against what autograd really keeps; states are compared with real engines in tests/distributed."""

import pytest
import torch

from dit_scale.config import EngineConfig
from dit_scale.diffusion import build_objective, total
from dit_scale.latents import LatentSpec
from dit_scale.models import DiT, Route, build_model
from dit_scale.planning.measuring import kept_of
from dit_scale.planning.memory import TrainingSetup, estimate_memory
from dit_scale.training.loss import LossFunction
from dit_scale.zero.engine import wrap_blocks
from tests.networks import kept_bytes

NUM_CLASSES = 10


def bytes_kept_of_a_loss(model: DiT, images: int, dtype: torch.dtype) -> int:
    """Return the bytes that a real training loss keeps for backward."""
    latents = LatentSpec(channels=4, size=model.latent_size)
    loss_function = LossFunction(build_objective("gaussian"), latents, 0, 0.1, model.condition)
    return kept_bytes(
        model,
        lambda: total(
            loss_function(
                lambda noised, time, label: model(noised.to(dtype), time, label),
                torch.randn(images, *latents.moments_shape),
                torch.zeros(images, dtype=torch.long),
                torch.arange(images),
            )
        ),
    )


@pytest.mark.parametrize(
    ("name", "dtype", "every"),
    [
        ("DiT-S/2", torch.float32, 0),
        ("DiT-S/2", torch.float32, 1),
        ("DiT-S/2", torch.bfloat16, 0),
        ("DiT-S/4", torch.float32, 5),
    ],
)
def test_activations_are_what_autograd_keeps(name: str, dtype: torch.dtype, every: int) -> None:
    images = 2
    model = build_model(name, depth=6, latent_size=32, num_classes=NUM_CLASSES).to(dtype)
    wrap_blocks(model, EngineConfig(checkpoint_every_blocks=every))
    setup = TrainingSetup(images, bytes_per_number=dtype.itemsize, checkpoint_every_blocks=every, on_gpu=False)
    assert estimate_memory(model, setup).activations == pytest.approx(
        bytes_kept_of_a_loss(model, images, dtype), rel=0.01
    )


def test_a_gpus_kernels_keep_less_than_pytorch_by_what_they_do_in_one_pass() -> None:
    pytest.importorskip("triton")
    with torch.device("meta"):
        model = build_model("DiT-S/2", depth=3, latent_size=32, num_classes=NUM_CLASSES)
    ours, pytorchs = (kept_of(model.config, 2, on_gpu).blocks[0] for on_gpu in (True, False))
    tokens = 2 * model.grid_side**2 * model.hidden_size
    # Not kept: what is normalised, twice, and the tokens between attention and MLP.
    assert (pytorchs - ours) / tokens == pytest.approx(3.0, abs=0.02)
    assert ours / tokens == pytest.approx(9.0 + 2 * model.mlp_ratio, rel=0.01)


@pytest.fixture(scope="module")
def xl() -> DiT:
    with torch.device("meta"):
        return build_model("DiT-XL/2", latent_size=32, num_classes=1000)


def test_published_and_measured_figures_of_the_largest_model(xl: DiT) -> None:
    """States of 675M parameters over 8 ranks by arXiv 1910.02054; activations an image as measured on an H200."""
    parameters = sum(parameter.numel() for parameter in xl.parameters() if parameter.requires_grad)
    estimates = [estimate_memory(xl, TrainingSetup(32, world_size=8, zero_stage=stage)) for stage in (1, 2, 3)]
    assert estimates[0].states == pytest.approx(parameters * (2 + 16 / 8), rel=0.01)
    assert estimates[2].states == pytest.approx(parameters * (2 + 16) / 8, rel=0.01)
    assert estimates[0].activations / 32 == pytest.approx(284.8e6, rel=0.01)
    alone = estimate_memory(xl, TrainingSetup(256))
    assert alone.peak == pytest.approx(85.09e9, rel=0.05)  # docs/performance.md
    recomputing = estimate_memory(xl, TrainingSetup(32, world_size=8, checkpoint_every_blocks=1))
    assert recomputing.activations / 32 == pytest.approx(17e6, rel=0.15)


def test_each_lever_takes_less(xl: DiT) -> None:
    base = estimate_memory(xl, TrainingSetup(32, world_size=8, gradient_accumulation_steps=2))
    levers = [
        TrainingSetup(16, world_size=8, gradient_accumulation_steps=4),
        TrainingSetup(32, world_size=8, zero_stage=2, gradient_accumulation_steps=2),
        TrainingSetup(32, world_size=8, checkpoint_every_blocks=1, gradient_accumulation_steps=2),
        TrainingSetup(32, world_size=16, gradient_accumulation_steps=2),
        TrainingSetup(32, world_size=8, offload_optimizer=True, gradient_accumulation_steps=2),
    ]
    assert all(estimate_memory(xl, lever).peak < base.peak for lever in levers)


@pytest.mark.parametrize(("fill", "every"), [("entered", 0), ("learnt", 0), ("learnt", 2)])
@pytest.mark.parametrize("all_tokens", [False, True])
def test_activations_of_a_routed_step_are_what_autograd_keeps(fill: str, every: int, all_tokens: bool) -> None:
    route = Route(2, 5, fill, ratio=0.75)  # type: ignore[arg-type]
    model = build_model("DiT-S/4", depth=6, latent_size=32, num_classes=NUM_CLASSES, route=route)
    wrap_blocks(model, EngineConfig(checkpoint_every_blocks=every))
    kept = None if all_tokens else torch.arange(16).expand(2, 16)
    latent, label = torch.randn(2, 4, 32, 32), torch.zeros(2, dtype=torch.long)
    found = kept_bytes(model, lambda: model(latent, torch.zeros(2), label, kept_tokens=kept))
    setup = TrainingSetup(2, bytes_per_number=4, checkpoint_every_blocks=every, on_gpu=False, all_tokens=all_tokens)
    of_the_loss = 2 * 4 * 15 * latent[0].numel()
    assert estimate_memory(model, setup).activations - of_the_loss == pytest.approx(found, rel=0.02)
