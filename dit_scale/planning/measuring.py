"""What a network costs, measured on tensors of shapes alone, so that no block can be forgotten: the meta device.

A network of one block and one of two tell what a block takes and what the rest does, for each stack of blocks that are
alike; nothing is computed.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
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

    blocks: tuple[int, ...]
    """Of each block, in order."""
    rest: int
    """Of all that is no block."""
    widest: int
    """The two largest tensors of a block."""


@cache
def products_of(config: NetworkConfig) -> Products:
    """Return a network's matrix products as PyTorch's own counter counts them."""
    shallow, *deeper = (_products(_on_meta(part, torch.float32, has_kernels=False)) for part in _shallow(config))
    further = [(stack.depth - 1, two) for stack, two in zip(config.stacks, deeper, strict=True)]
    return Products(
        *(first + sum(count * (two[place] - first) for count, two in further) for place, first in enumerate(shallow))
    )


@cache
def kept_of(config: NetworkConfig, bytes_per_number: int, on_gpu: bool, has_kernels: bool = True) -> Kept:
    """Return what autograd keeps of operations one by one: with a GPU's kernels, a CPU's, or with none.

    Without Triton a GPU has none of our kernels, and so are the figures of a machine without Triton.
    """
    if on_gpu and has_kernels and kernels_of_a_gpu() is None:
        log.warning("Triton is not installed: activations are counted without our kernels, which keep 15% less")
    dtype = {2: torch.bfloat16, 4: torch.float32}[bytes_per_number]
    if config.attention == "auto" and has_kernels:  # on a CPU, too, which has none of ours but PyTorch's own
        config = replace(config, attention="sdpa")
    has_ours = on_gpu and has_kernels
    shallow, *deeper = (_kept(_on_meta(part, dtype, has_ours)) for part in _shallow(config))
    blocks = [sum(two) - sum(shallow) for two in deeper]
    each = [block for stack, block in zip(config.stacks, blocks, strict=True) for _ in range(stack.depth)]
    return Kept(tuple(each), sum(shallow) - sum(blocks), sum(sorted(shallow)[-2:]))


def _shallow(config: NetworkConfig) -> Iterator[NetworkConfig]:
    """Yield the network with one block in each stack, then with a second one in each of them in turn."""
    depths: dict[str, Any] = {"depth": 1} if len(config.stacks) == 1 else {"depth": 1, "head_depth": 1}
    yield replace(config, **depths)
    for name in depths:
        yield replace(config, **depths | {name: 2})


def _on_meta(config: NetworkConfig, dtype: torch.dtype, has_kernels: bool) -> DiT:
    with torch.device("meta"):
        model = DiT(**asdict(config)).to(dtype)
    if not has_kernels:
        model.turn_off_kernels()
    return model


def _output(model: DiT, images: int = 1) -> Tensor:
    latent = torch.empty(images, model.in_channels, model.latent_size, model.latent_size, device="meta")
    times = torch.empty((images, model.num_times) if model.num_times > 1 else (images,), device="meta")
    return model(latent.to(model.pos_embed.dtype), times, model.condition.empty(images, "meta"))


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
    """Return the bytes of each tensor that is kept of an image, the weights apart.

    Of two images: of one alone some are views of others.
    """
    weights = [parameter.untyped_storage() for parameter in model.parameters()]
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[id(storage)] = storage  # held, so that no other takes its place
        return tensor

    with _OneKernel(), saved_tensors_hooks(note, lambda tensor: tensor):
        _output(model, images=2)
    known = set(map(id, weights))
    return [storage.nbytes() // 2 for place, storage in kept.items() if place not in known]


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
