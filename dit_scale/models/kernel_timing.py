"""Which attention kernel is fastest on a device, and how exact each is, found by running them on a model's shape."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from dit_scale.models.attention import ON_CUDA, attention, choose_backend
from dit_scale.models.dit import DiT

_ROUNDS = 7


@dataclass(frozen=True)
class AttentionShape:
    """What attention's speed depends on."""

    batch_size: int
    num_tokens: int
    num_heads: int
    head_size: int

    @classmethod
    def of(cls, model: DiT, batch_size: int) -> "AttentionShape":
        """Return the shape of a model's blocks for so many images."""
        return cls(batch_size, model.grid_side**2, model.num_heads, model.hidden_size // model.num_heads)


def seconds_of_backends(
    shape: AttentionShape,
    device: torch.device,
    dtype: torch.dtype,
    backends: Sequence[str] = (*ON_CUDA, "sdpa"),
    is_compiled: bool = False,
) -> dict[str, float | str]:
    """Return the median seconds of forward and backward for each backend, or why one cannot run.

    Backends take turns, so that what disturbs the device for a while disturbs all of them.
    """
    runs: dict[str, Callable[[], object]] = {}
    found: dict[str, float | str] = {}
    for backend in backends:
        try:
            choose_backend(backend, device, dtype)
            runs[backend] = run = _forward_and_backward(shape, device, dtype, backend, is_compiled)
            run()  # what a first call sets up is not timed
        except Exception as error:  # a kernel refuses in its own way what it cannot do
            runs.pop(backend, None)
            why = str(error).strip().split("\n")[0] or type(error).__name__
            found[backend] = why.rpartition(" cannot run here: ")[2].partition("; set attention")[0]
    seconds: dict[str, list[float]] = {backend: [] for backend in runs}
    for _ in range(_ROUNDS):
        for backend, run in runs.items():
            seconds[backend].append(_seconds(run, device))
    return found | {backend: median(values) for backend, values in seconds.items()}


def fastest(seconds: dict[str, float | str]) -> str:
    """Return the backend that took least."""
    return min((value, backend) for backend, value in seconds.items() if isinstance(value, float))[1]


def error_of_backend(backend: str, shape: AttentionShape, device: torch.device, dtype: torch.dtype) -> float:
    """Return how far output and gradients of one image are from the formula in fp64, over the largest value of each.

    Not a number where one of them is none.
    """
    size = (4, 1, shape.num_tokens, shape.num_heads, shape.head_size)
    *inputs, direction = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(device, dtype).unbind()
    inputs = [tensor.requires_grad_() for tensor in inputs]
    exact_inputs = [tensor.detach().double().requires_grad_() for tensor in inputs]
    query, key, value = inputs
    output, exact = attention(query, key, value, backend), _attention_by_formula(*exact_inputs)
    found = [output, *torch.autograd.grad(output, inputs, direction)]
    right = [exact, *torch.autograd.grad(exact, exact_inputs, direction.double())]
    errors = [(a.double() - b).abs().max() / b.abs().max() for a, b in zip(found, right, strict=True)]
    return torch.stack(errors).max().item()


def _attention_by_formula(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(Q Kᵀ / √d) V (arXiv 1706.03762, equation 1) on [N, T, H, d]."""
    scores = torch.einsum("nqhd,nkhd->nhqk", query, key) / query.shape[-1] ** 0.5
    return torch.einsum("nhqk,nkhd->nqhd", scores.softmax(dim=-1), value)


def backend_of_training(
    requested: str, shape: AttentionShape, device: torch.device, dtype: torch.dtype, has_kernels: bool = True
) -> str:
    """Return the backend that a run takes: on a GPU the fastest where ``"auto"`` leaves it open."""
    if requested == "auto" and device.type == "cuda" and has_kernels:
        return fastest(seconds_of_backends(shape, device, dtype))
    return choose_backend(requested, device, dtype, has_kernels=has_kernels)


def _forward_and_backward(
    shape: AttentionShape, device: torch.device, dtype: torch.dtype, backend: str, is_compiled: bool
) -> Callable[[], object]:
    size = (shape.batch_size, shape.num_tokens, 3, shape.num_heads, shape.head_size)
    qkv = torch.randn(size, device=device, dtype=dtype, requires_grad=True)  # as a block's linear layer gives them
    gradient = torch.randn(shape.batch_size, shape.num_tokens, shape.num_heads, shape.head_size, device=device).to(
        dtype
    )

    def attend(packed: Tensor) -> Tensor:
        query, key, value = packed.unbind(dim=2)
        return attention(query, key, value, backend)

    if is_compiled:
        attend = torch.compile(attend, dynamic=False)

    def run() -> tuple[Tensor, ...]:
        mixed = attend(qkv)
        return torch.autograd.grad(mixed, qkv, gradient)

    return run


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """Return what a call takes: between two events on a GPU, by the clock elsewhere."""
    if device.type != "cuda":
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    run()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after)) / 1000
