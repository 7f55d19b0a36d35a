"""Loss and gradients of every way to compute a step against plain fp32, eager: how far each may be, and is."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dit_scale.conditioning import Labels
from dit_scale.config import EngineConfig
from dit_scale.diffusion import build_objective, total
from dit_scale.errors import InputError
from dit_scale.latents import LatentSpec
from dit_scale.models import DiT
from dit_scale.parameters import DTYPES
from dit_scale.training.loss import LossFunction
from dit_scale.zero.engine import wrap_blocks
from tests.networks import fill, kept_bytes

LATENTS = LatentSpec(channels=4, size=16, scale=(0.5,))
IMAGES = 8


@pytest.fixture(autouse=True)
def _compiled_anew() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


SWITCHED: dict[str, Any] = {
    **{"norm": "rmsnorm", "mlp": "swiglu", "rope": True, "qk_norm": True, "time_embedding": "fourier"},
    **{"depth": 2, "head_hidden_size": 128, "head_depth": 1, "head_num_heads": 2},
}


def model(**changes: Any) -> DiT:
    torch.manual_seed(0)
    sizes = {"latent_size": 16, "patch_size": 2, "hidden_size": 96, "depth": 3, "num_heads": 2, "num_classes": 5}
    made = DiT(**sizes | changes)
    fill(made, std=0.05)
    return made


def loss_and_gradients(engine: EngineConfig, **changes: Any) -> tuple[float, dict[str, Tensor]]:
    """Return the mean loss and the gradient of each parameter, in fp32, of one batch."""
    dtype = DTYPES[engine.precision]
    network = model(**changes).to(dtype)
    wrap_blocks(network, engine)
    moments = torch.randn(IMAGES, *LATENTS.moments_shape, generator=torch.Generator().manual_seed(1))
    loss_function = LossFunction(build_objective("gaussian"), LATENTS, seed=0, label_dropout=0.5, condition=Labels(5))
    positions = torch.arange(IMAGES)
    losses = total(loss_function(lambda x, t, y: network(x.to(dtype), t, y), moments, positions % 5, positions))
    losses.mean().backward()
    gradients = {name: p.grad.float() for name, p in network.named_parameters() if p.grad is not None}
    return losses.mean().item(), gradients


def relative_error(gradients: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """Return the largest error of a parameter's gradient, over the gradient's length."""
    assert gradients.keys() == reference.keys()
    return max(((gradients[name] - value).norm() / value.norm()).item() for name, value in reference.items())


@pytest.mark.parametrize(
    ("engine", "of_loss", "of_gradients"),
    [
        (EngineConfig(precision="fp32", checkpoint_every_blocks=1), 1e-6, 1e-6),
        (EngineConfig(precision="fp32", compile=True), 1e-6, 2e-6),
        (EngineConfig(precision="fp32", compile=True, activation_budget=0.3), 1e-6, 2e-6),
        (EngineConfig(precision="bf16"), 1e-3, 2e-2),
        (EngineConfig(precision="bf16", compile=True), 1e-3, 2e-2),
        (EngineConfig(precision="bf16", compile=True, checkpoint_every_blocks=2), 1e-3, 2e-2),
        (EngineConfig(precision="bf16", compile=True, activation_budget=0.3), 1e-3, 2e-2),
        (EngineConfig(precision="bf16", fp8=True), 1e-2, 1e-1),
    ],
)
def test_stays_close_to_plain_fp32(engine: EngineConfig, of_loss: float, of_gradients: float) -> None:
    loss, gradients = loss_and_gradients(engine)
    reference_loss, reference = loss_and_gradients(EngineConfig(precision="fp32"))
    assert loss == pytest.approx(reference_loss, rel=of_loss)
    assert relative_error(gradients, reference) < of_gradients


@pytest.mark.parametrize(
    ("engine", "of_loss", "of_gradients"),
    [
        (EngineConfig(precision="fp32", compile=True, checkpoint_every_blocks=2), 1e-6, 5e-6),
        (EngineConfig(precision="bf16", compile=True), 5e-3, 5e-2),
        (EngineConfig(precision="bf16", fp8=True), 2e-2, 2e-1),
    ],
)
def test_a_network_with_every_switch_does_too(engine: EngineConfig, of_loss: float, of_gradients: float) -> None:
    loss, gradients = loss_and_gradients(engine, **SWITCHED)
    reference_loss, reference = loss_and_gradients(EngineConfig(precision="fp32"), **SWITCHED)
    assert loss == pytest.approx(reference_loss, rel=of_loss)
    assert relative_error(gradients, reference) < of_gradients


@pytest.mark.parametrize("is_compiled", [False, True])
def test_blocks_keep_what_the_budget_leaves_them(is_compiled: bool) -> None:
    """Compiled blocks keep less with a smaller budget; those that are not cannot."""
    kept = [_bytes_kept(EngineConfig(precision="fp32", compile=is_compiled, activation_budget=b)) for b in (1.0, 0.2)]
    assert kept[1] < 0.6 * kept[0] if is_compiled else kept[1] == kept[0]


def _bytes_kept(engine: EngineConfig) -> int:
    torch._dynamo.reset()
    network = model()
    wrap_blocks(network, engine)
    latent, time = torch.randn(IMAGES, *LATENTS.shape), torch.arange(IMAGES)
    return kept_bytes(network, lambda: network(latent, time, time % 5))


def test_fp8_without_torchao_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.float8", None)  # what a missing module looks like
    with pytest.raises(InputError, match=r"engine.fp8 needs torchao .*; pip install torchao"):
        wrap_blocks(model(), EngineConfig(fp8=True))
