"""What a network costs, measured on tensors of shapes alone, so that no block can be forgotten: the meta device.

A network of one block and one of two tell what a block takes and what the rest does; nothing is computed.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from dit_scale.models.config import NetworkConfig
from dit_scale.models.dit import DiT
from dit_scale.models.fused import kernels_of_a_gpu

log = logging.getLogger(__name__)


class Products(NamedTuple):
    """Floating-point operations of matrix products, two a multiply-add, of one image."""

    forward: int
    training: int
    """Forward and backward."""
    attention: int
    """Of these, between queries and keys, and weights and values."""


class Kept(NamedTuple):
    """Bytes that autograd keeps of one image for backward."""

    block: int
    rest: int
    """Of all that is no block."""
    widest: int
    """The two largest tensors of a block."""


@cache
def products_of(config: NetworkConfig) -> Products:
    """Return a network's matrix products as PyTorch's own counter counts them."""
    one, two = (_products(_on_meta(config, depth, torch.float32, has_kernels=False)) for depth in (1, 2))
    return Products(*(first + (config.depth - 1) * (second - first) for first, second in zip(one, two, strict=True)))


@cache
def kept_of(config: NetworkConfig, bytes_per_number: int, on_gpu: bool) -> Kept:
    """Return what autograd keeps of operations one by one: with a GPU's kernels, or with PyTorch's alone.

    Without Triton a GPU has none of our kernels, and so are the figures of a machine without Triton.
    """
    if on_gpu and kernels_of_a_gpu() is None:
        log.warning("Triton is not installed: activations are counted without our kernels, which keep 15% less")
    dtype = {2: torch.bfloat16, 4: torch.float32}[bytes_per_number]
    one, two = (_kept(_on_meta(config, depth, dtype, on_gpu)) for depth in (1, 2))
    block = sum(two) - sum(one)
    return Kept(block, sum(one) - block, sum(sorted(one)[-2:]))


def _on_meta(config: NetworkConfig, depth: int, dtype: torch.dtype, has_kernels: bool) -> DiT:
    projectors = config.projectors and replace(config.projectors, after_block=1)
    with torch.device("meta"):
        model = DiT(**vars(replace(config, depth=depth, projectors=projectors))).to(dtype)
    if not has_kernels:
        model.turn_off_kernels()
    return model


def _output(model: DiT) -> Tensor:
    """Return one number that depends on all that training asks of a network."""
    latent = torch.empty(1, model.in_channels, model.latent_size, model.latent_size, device="meta")
    timestep, condition = torch.empty(1, device="meta"), model.condition.empty(1, "meta")
    asked = [f"projectors.{index}" for index in range(len(model.projectors))]
    found = model(latent.to(model.pos_embed.dtype), timestep, condition, hidden=asked)
    return sum((part.sum() for part in found[1]), found[0].sum()) if asked else found.sum()


def _products(model: DiT) -> Products:
    attention = torch.ops.aten.bmm  # of a block, nothing else multiplies image by image
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            output = _output(model)
        with FlopCounterMode(display=False) as backward:
            output.backward()
    counts = [counter.get_flop_counts()["Global"].get(attention, 0) for counter in (forward, backward)]
    both = forward.get_total_flops() + backward.get_total_flops()
    return Products(forward.get_total_flops(), both, sum(counts))


def _kept(model: DiT) -> list[int]:
    """Return the bytes of each tensor that is kept, the weights apart."""
    weights = [parameter.untyped_storage() for parameter in model.parameters()]
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[id(storage)] = storage  # held, so that no other takes its place
        return tensor

    with _OneKernel(), saved_tensors_hooks(note, lambda tensor: tensor):
        _output(model)
    known = set(map(id, weights))
    return [storage.nbytes() for place, storage in kept.items() if place not in known]


class _OneKernel(TorchFunctionMode):
    """Attention by a kernel, which all keep the same: queries, keys, values, what it returns, and sums in fp32.

    The meta device has but products and a softmax, and would keep the weights of all pairs of tokens.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args)[0]
        return func(*args, **(kwargs or {}))
