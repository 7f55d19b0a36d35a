"""Where the time of an action goes, by kernel and by class of kernels."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

_CLASSES = (  # the first that matches
    (
        "compiled, fused",
        r"^triton_(poi|per|red|for)|^_(norm|gelu)_|CompiledFunction|Torch-Compiled|inductor|cpp_fused|extern",
    ),
    ("attention", r"attention|flash|fmha|sdpa"),
    ("matrix products", r"addmm|\bmm\b|aten::bmm|matmul|linear|gemm|cutlass|mkldnn|conv|nvjet|xmma|triton_tem|splitK"),
    ("optimizer and EMA", r"adam|lerp|multi_tensor|Optimizer"),
    ("norms", r"layer_norm|norm"),
    ("copies", r"copy|_to_copy|cat|clone|memcpy|memset|contiguous|fill"),
)
KINDS = (*(name for name, _ in _CLASSES), "all else")


@dataclass(frozen=True)
class Kernel:
    """One kernel of an action, or one operator on a CPU."""

    name: str
    seconds: float
    """Of all its calls."""
    calls: int


def kernels_of(action: Callable[[], object], device: str) -> list[Kernel]:
    """Return what an action ran, as the profiler saw it, the longest first."""
    on_gpu = device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        action()
        if on_gpu:
            torch.cuda.synchronize()
    found = []
    for event in profiler.key_averages():
        if on_gpu and (event.device_type != DeviceType.CUDA or event.is_user_annotation):
            continue  # the host's side of what the GPU did
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        found.append(Kernel(event.key, microseconds / 1e6, event.count))
    return sorted(found, key=lambda kernel: -kernel.seconds)


def shares_by_class(kernels: list[Kernel]) -> dict[str, float]:
    """Return the share of the time that each class of kernels takes."""
    seconds = dict.fromkeys(KINDS, 0.0)
    for kernel in kernels:
        seconds[_class_of(kernel.name)] += kernel.seconds
    total = sum(seconds.values()) or 1.0
    return {name: value / total for name, value in seconds.items()}


def _class_of(name: str) -> str:
    return next((kind for kind, pattern in _CLASSES if re.search(pattern, name, re.IGNORECASE)), "all else")
