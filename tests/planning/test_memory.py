"""The estimate against what autograd really keeps; states are compared with real engines in tests/distributed."""

from typing import Any

import pytest
import torch

from dit_scale.config import EngineConfig, TrainSection
from dit_scale.diffusion import build_objective, total
from dit_scale.latents import LatentSpec
from dit_scale.models import DiT, Route, build_model
from dit_scale.optim import block_matrices, groups_of
from dit_scale.parameters import num_trained, trained
from dit_scale.planning.measuring import kept_of
from dit_scale.planning.memory import TrainingSetup, checkpoint_bytes, estimate_memory
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


OFF = EngineConfig(kernels="off")
NARROW = {"hidden_size": 192, "num_heads": 6, "patch_size": 2}
HEAD = {"head_hidden_size": 320, "head_num_heads": 5, "head_depth": 3}


def every(blocks: int) -> EngineConfig:
    return EngineConfig(checkpoint_every_blocks=blocks)


@pytest.mark.parametrize(
    ("name", "changes", "dtype", "engine"),
    [
        ("DiT-S/2", {}, torch.float32, every(0)),
        ("DiT-S/2", {}, torch.float32, every(1)),
        ("DiT-S/2", {}, torch.bfloat16, every(0)),
        ("DiT-S/4", {}, torch.float32, every(5)),
        ("LightningDiT-B/1", NARROW, torch.bfloat16, every(0)),
        ("DiT-DH-S", NARROW | HEAD, torch.float32, every(0)),
        ("DiT-DH-S", NARROW | HEAD, torch.float32, every(4)),
        # The weights of all pairs of tokens, in fp32 and once more as they meet the values.
        ("DiT-S/2", {"attention": "matmul"}, torch.float32, every(0)),
        ("DiT-S/2", {"attention": "matmul"}, torch.bfloat16, every(0)),
        ("DiT-S/2", {}, torch.float32, OFF),
        ("DiT-S/2", {"attention": "sdpa"}, torch.bfloat16, OFF),
    ],
)
def test_activations_are_what_autograd_keeps(
    name: str, changes: dict[str, Any], dtype: torch.dtype, engine: EngineConfig
) -> None:
    images = 2
    sizes = {"depth": 6, "latent_size": 32, "num_classes": NUM_CLASSES, "learn_sigma": True}
    model = build_model(name, **sizes | changes).to(dtype)
    wrap_blocks(model, engine)
    setup = TrainingSetup(
        images,
        bytes_per_number=dtype.itemsize,
        checkpoint_every_blocks=engine.checkpoint_every_blocks,
        has_kernels=engine.kernels != "off",
        on_gpu=False,
    )
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


def test_an_optimizer_takes_what_it_keeps(xl: DiT) -> None:
    adamw, muon = (TrainSection(optimizer=name) for name in ("adamw", "muon"))
    of_adamw, of_muon = (
        estimate_memory(xl, TrainingSetup(32, zero_stage=0, bytes_per_number=4, groups=groups_of(train)))
        for train in (adamw, muon)
    )
    shapes = {name: parameter.shape for name, parameter in trained(xl).items()}
    matrices = sum(shape.numel() for name, shape in shapes.items() if block_matrices(name, shape))
    largest = max(shape.numel() for name, shape in shapes.items() if block_matrices(name, shape))
    assert of_adamw.optimizer_state == 2 * 4 * num_trained(xl)
    assert of_adamw.optimizer_state - of_muon.optimizer_state == 4 * matrices  # its momentum alone
    assert of_adamw.update_workspace == 0
    assert of_muon.update_workspace == 4 * (2 * matrices + largest)  # it does not know the guard's verdict
    assert checkpoint_bytes(xl, groups_of(adamw)) == 16 * num_trained(xl)
    assert checkpoint_bytes(xl, groups_of(muon), num_extra_emas=1) == 20 * num_trained(xl) - 4 * matrices


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
