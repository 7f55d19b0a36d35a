"""Scaled dot-product attention behind one function; the only import of xformers."""

import functools
import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_scale.errors import InputError, nearest

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "xformers", "sdpa")


def attention(query: Tensor, key: Tensor, value: Tensor, backend: str) -> Tensor:
    """Attend over tokens: softmax(Q Kᵀ / √d) V (arXiv 1706.03762, equation 1).

    All tensors are [N, T, num_heads, head_size]; ``backend`` is an answer of ``choose_backend``.
    """
    if backend == "xformers":
        from xformers.ops import memory_efficient_attention

        return memory_efficient_attention(query, key, value)  # [N, T, H, d]
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))  # 3 x [N, H, T, d]
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)  # [N, T, H, d]


def check_backend(requested: str) -> None:
    """Refuse a name that is no backend with an InputError."""
    if requested not in BACKENDS:
        raise InputError(f"attention {requested!r} is unknown{nearest(requested, BACKENDS)}")


def choose_backend(requested: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """Return ``"xformers"`` or ``"sdpa"``; the choice and its reason are logged once.

    ``"auto"`` takes xformers wherever it can run.

    Raises:
        InputError: an unknown name, or xformers asked for where it cannot run.
    """
    return _choose_backend(requested, device.type, dtype)


@functools.cache
def _choose_backend(requested: str, device_type: str, dtype: torch.dtype) -> str:
    check_backend(requested)
    obstacle = "attention 'sdpa' was asked for" if requested == "sdpa" else _obstacle(device_type, dtype)
    if requested == "xformers" and obstacle:
        raise InputError(f"attention 'xformers' cannot run here: {obstacle}; set attention to 'auto' or 'sdpa'")
    backend, reason = ("sdpa", obstacle) if obstacle else ("xformers", "it is installed and has an operator")
    logger.info("attention on %s in %s: %s (%s)", device_type, dtype, backend, reason)
    return backend


def _obstacle(device_type: str, dtype: torch.dtype) -> str:
    """Say what keeps xformers from running, or return an empty string."""
    if device_type != "cuda":
        return f"xformers has no operator for device '{device_type}'"
    if dtype == torch.float64:
        return f"xformers has no operator for {dtype}"
    try:
        import xformers.ops  # noqa: F401
    except ImportError as error:
        return f"xformers cannot be imported ({error})"
    return ""
