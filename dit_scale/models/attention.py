"""Scaled dot-product attention behind one function."""

import functools
import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dit_scale import memory_efficient
from dit_scale.errors import InputError
from dit_scale.models.config import check_choice, choices_of

logger = logging.getLogger(__name__)

BACKENDS = choices_of("attention")
ON_CUDA = ("xformers", "cudnn", "flash")
"""Kernels that a CUDA device may have, of which the fastest is found by timing them."""

_HOPPER = (9, 0)


def attention(query: Tensor, key: Tensor, value: Tensor, backend: str) -> Tensor:
    """Attend over tokens: softmax(Q Kᵀ / √d) V (arXiv 1706.03762, equation 1).

    All tensors are [N, T, num_heads, head_size]; ``backend`` is an answer of ``choose_backend``.
    """
    if backend == "xformers":
        return memory_efficient.attend(query, key, value)  # [N, T, H, d]
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))  # 3 x [N, H, T, d]
    return _BY_NAME[backend](query, key, value).transpose(1, 2)  # [N, T, H, d]


def _sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value)


def _matmul(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Two matrix products around a softmax in fp32 (or fp64): a compiler fuses it, at T x T numbers a head."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)  # [N, H, T, T]
    exact = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(dim=-1, dtype=exact).to(value.dtype) @ value


def _only(kernel: SDPBackend) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(kernel):
            return F.scaled_dot_product_attention(query, key, value)

    return attend


_BY_NAME: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "sdpa": _sdpa,
    "matmul": _matmul,
    "cudnn": _only(SDPBackend.CUDNN_ATTENTION),
    "flash": _only(SDPBackend.FLASH_ATTENTION),
}


def choose_backend(
    requested: str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    is_compiled: bool = False,
    has_kernels: bool = True,
) -> str:
    """Return a backend other than ``"auto"``; the choice and its reason are logged once.

    ``"auto"`` takes PyTorch's own choice on Hopper and later, and xformers on other GPUs where it can run; on a CPU
    PyTorch's own kernel or, in blocks that are compiled and in bf16, matrix products, which take half of its time.
    With kernels turned off it takes matrix products, of which PyTorch knows every derivative.

    Raises:
        InputError: an unknown name, or a kernel asked for where it cannot run.
    """
    if device.type == "meta":  # nothing is computed: what counts is whether the weights of all pairs of tokens exist
        return "matmul" if requested == "matmul" or (requested == "auto" and not has_kernels) else "sdpa"
    return _choose_backend(requested, device.type, dtype, is_compiled, has_kernels)


@functools.cache
def _choose_backend(requested: str, device_type: str, dtype: torch.dtype, is_compiled: bool, has_kernels: bool) -> str:
    check_choice("attention", requested)
    if requested == "auto" and not has_kernels:
        backend, reason = "matmul", "kernels are off"
    elif requested == "auto":
        backend, reason = _automatic(device_type, dtype, is_compiled)
    else:
        obstacle = ""
        if requested == "xformers" and not has_kernels:
            obstacle = "it is no operator of PyTorch's, and kernels are off"
        elif requested == "xformers":
            obstacle = _obstacle(device_type, dtype)
        elif requested in ON_CUDA and device_type != "cuda":
            obstacle = f"it has no operator for device '{device_type}'"
        elif requested in ON_CUDA and dtype not in (torch.bfloat16, torch.float16):
            obstacle = f"it computes in bf16 and fp16, not in {str(dtype).removeprefix('torch.')}"
        if obstacle:
            raise InputError(f"attention '{requested}' cannot run here: {obstacle}; set attention to 'auto' or 'sdpa'")
        backend, reason = requested, "it was asked for"
    logger.info("attention on %s in %s: %s (%s)", device_type, dtype, backend, reason)
    return backend


def _automatic(device_type: str, dtype: torch.dtype, is_compiled: bool) -> tuple[str, str]:
    """Return a backend and the reason for it."""
    if device_type == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_capability() >= _HOPPER:
        return "sdpa", "PyTorch takes cuDNN's kernel, the fastest on this GPU"
    if not (obstacle := _obstacle(device_type, dtype)):
        return "xformers", "it is installed and has an operator"
    if device_type == "cpu" and dtype == torch.bfloat16 and is_compiled:
        return "matmul", "blocks are compiled, and a CPU's own kernel is slow in bf16"
    return "sdpa", obstacle


def _obstacle(device_type: str, dtype: torch.dtype) -> str:
    """Say what keeps xformers from running, or return an empty string."""
    if device_type != "cuda":
        return f"xformers has no operator for device '{device_type}'"
    if unloaded := memory_efficient.obstacle():
        return "; ".join(unloaded)
    if not torch.cuda.is_available():
        return "there is no GPU for xformers"
    probe = torch.zeros(1, 8, 1, 64, device=device_type, dtype=dtype, requires_grad=True)
    try:
        memory_efficient.attend(probe, probe, probe)
    except NotImplementedError as error:  # xformers' way to say that no operator takes such tensors here
        return f"xformers has no operator for {dtype} on this GPU ({' '.join(str(error).split())[:400]})"
    return ""
