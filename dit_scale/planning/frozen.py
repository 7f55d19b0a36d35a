"""What the frozen encoders of alignment cost, measured on tensors of shapes alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from dit_scale.alignment import outline_of
from dit_scale.parameters import num_parameters


@dataclass(frozen=True)
class Frozen:
    """Networks that run forward alone and are never trained; all of them together, of one image."""

    parameters: int = 0
    flops: int = 0
    """Of matrix products and convolutions, two a multiply-add."""
    written: int = 0
    """Numbers in the tensors that its operations write."""
    widest: int = 0
    """Numbers in the widest of these."""

    @property
    def workspace(self) -> int:
        """Numbers that live at once at most: what a layer reads and writes, and the residual beside it."""
        return 3 * self.widest


NO_ENCODERS = Frozen()


@cache
def frozen_of(encoders: Sequence[str], grid_side: int) -> Frozen:
    """Return what encoders by these names cost a network with so many tokens a side; they run one after the other."""
    each = [_measured(name, grid_side) for name in encoders]
    return Frozen(
        parameters=sum(one.parameters for one in each),
        flops=sum(one.flops for one in each),
        written=sum(one.written for one in each),
        widest=max((one.widest for one in each), default=0),
    )


@cache
def _measured(name: str, grid_side: int) -> Frozen:
    with torch.device("meta"):
        encoder = outline_of(name).build(grid_side)
    # DINOv3 computes its positions under autocast, which the meta device lacks: a CPU's tensors without memory.
    with FakeTensorMode(allow_non_fake_inputs=True):
        encoder.to_empty(device="cpu")
        with FlopCounterMode(display=False) as flops, _Writes() as writes:
            encoder(torch.empty(1, 3, 256, 256, dtype=torch.uint8))
    return Frozen(num_parameters(encoder), flops.get_total_flops(), sum(writes.sizes), max(writes.sizes))


class _Writes(TorchDispatchMode):
    """Notes the size of every tensor that is computed, views apart."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor) and not func.is_view:  # type: ignore[attr-defined]
            self.sizes.append(output.numel())
        return output
