"""What a network costs, measured on tensors of shapes alone, so that no block can be forgotten: the meta device.

A network of one block and one of two tell what a block takes and what the rest does; two more, whose blocks are all
routed, what a block of fewer tokens does. Nothing is computed.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
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
from dit_scale.models.route import Route

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
    routed: int
    """Of a block that some tokens go around; without such ones as of any block."""
    rest: int
    """Of all that is no block."""
    widest: int
    """The two largest tensors of a block."""


def with_all_tokens(config: NetworkConfig) -> NetworkConfig:
    """Return the network whose tokens all go through all blocks, as after routing.until_step."""
    return config if config.route is None else replace(config, route=replace(config.route, ratio=0.0))


@cache
def products_of(config: NetworkConfig) -> Products:
    """Return a network's matrix products as PyTorch's own counter counts them."""
    block, routed, rest = _parts(config, lambda small: _products(_on_meta(small, torch.float32, has_kernels=False)))
    num_routed = len(config.routed_blocks)
    num_dense = config.depth - num_routed
    return Products(*(c + num_dense * a + num_routed * b for a, b, c in zip(block, routed, rest, strict=True)))


@cache
def kept_of(config: NetworkConfig, bytes_per_number: int, on_gpu: bool) -> Kept:
    """Return what autograd keeps of operations one by one: with a GPU's kernels, or with PyTorch's alone.

    Without Triton a GPU has none of our kernels, and so are the figures of a machine without Triton.
    """
    if on_gpu and kernels_of_a_gpu() is None:
        log.warning("Triton is not installed: activations are counted without our kernels, which keep 15% less")
    dtype = {2: torch.bfloat16, 4: torch.float32}[bytes_per_number]
    (block,), (routed,), (rest,) = _parts(config, lambda small: [sum(_kept(_on_meta(small, dtype, on_gpu)))])
    one = _kept(_on_meta(replace(config, depth=1, route=None), dtype, on_gpu))
    return Kept(block, routed, rest, sum(sorted(one)[-2:]))


def _parts(config: NetworkConfig, measure: Callable[[NetworkConfig], Sequence[int]]) -> list[list[int]]:
    """Return what is measured of a block, of a routed block, and of all that is no block."""

    def block_and_rest(route: Route | None) -> tuple[list[int], list[int]]:
        one, two = (measure(replace(config, depth=depth, route=_throughout(route, depth))) for depth in (1, 2))
        block = [second - first for first, second in zip(one, two, strict=True)]
        return block, [first - each for first, each in zip(one, block, strict=True)]

    block, rest = block_and_rest(None)
    if config.route is None:
        return [block, block, rest]
    return [block, *block_and_rest(config.route)]


def _throughout(route: Route | None, depth: int) -> Route | None:
    return route and replace(route, from_block=1, to_block=depth)


def _on_meta(config: NetworkConfig, dtype: torch.dtype, has_kernels: bool) -> DiT:
    with torch.device("meta"):
        model = DiT(**vars(config)).to(dtype)
    if not has_kernels:
        model.turn_off_kernels()
    return model


def _output(model: DiT) -> Tensor:
    """Return the output of a training step's pass; with an early layer, the sum of both."""
    latent = torch.empty(1, model.in_channels, model.latent_size, model.latent_size, device="meta")
    timestep, condition = torch.empty(1, device="meta"), model.condition.empty(1, "meta")
    num_kept = model.config.num_kept
    is_routed = num_kept < model.config.num_tokens
    kept_tokens = torch.empty(1, num_kept, dtype=torch.long, device="meta") if is_routed else None
    inputs = latent.to(model.pos_embed.dtype), timestep, condition
    if not model.config.early_block:
        return model(*inputs, kept_tokens=kept_tokens)
    output, (early,) = model(*inputs, hidden=("early_layer",))
    return output + early


def _products(model: DiT) -> Products:
    attention = torch.ops.aten.bmm  # of a block, nothing else multiplies image by image
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            output = _output(model)
        with FlopCounterMode(display=False) as backward:
            output.sum().backward()
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
