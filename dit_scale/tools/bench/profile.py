"""Where the time of an action goes, by the class of kernels."""

import re
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

_CLASSES = (  # the first that matches
    ("matrix products", r"addmm|\bmm\b|aten::bmm|matmul|linear|gemm|cutlass|mkldnn|conv|nvjet|xmma"),
    ("attention", r"attention|flash|fmha"),
    ("optimizer and EMA", r"adam|lerp|multi_tensor|Optimizer"),
    ("compiled, fused", r"triton|CompiledFunction|Torch-Compiled|inductor|cpp_fused|extern"),
    ("norms", r"layer_norm|norm"),
    ("copies", r"copy|_to_copy|cat|clone|memcpy|memset|contiguous|fill"),
)
KINDS = (*(name for name, _ in _CLASSES), "all else")


def kernel_classes(action: Callable[[], object], device: str) -> dict[str, float]:
    """Return the share of an action's time that each class of kernels takes, as the profiler sees it."""
    on_gpu = device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        action()
        if on_gpu:
            torch.cuda.synchronize()
    seconds = dict.fromkeys(KINDS, 0.0)
    for event in profiler.key_averages():
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        seconds[_class_of(event.key)] += own
    total = sum(seconds.values()) or 1.0
    return {name: value / total for name, value in seconds.items()}


def _class_of(name: str) -> str:
    return next((kind for kind, pattern in _CLASSES if re.search(pattern, name, re.IGNORECASE)), "all else")
