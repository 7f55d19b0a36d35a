"""What a network costs, measured on tensors of shapes alone, so that no block can be forgotten: the meta device.

A network of one block and one of two tell what a block takes and what the rest does, for each stack of blocks that are
alike; two more, all of whose blocks are routed, tell what a block of fewer tokens takes. Nothing is computed.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
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

    blocks: tuple[int, ...]
    """Of each block, in order."""
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
    blocks, rest = _parts(config, lambda part: _products(_on_meta(part, torch.float32, has_kernels=False)))
    return Products(*(rest + sum(blocks)).tolist())


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

    def kept(part: NetworkConfig) -> list[int]:
        return _kept(_on_meta(part, dtype, on_gpu and has_kernels))

    blocks, rest = _parts(config, lambda part: [sum(kept(part))])
    shallow = kept(next(_shallow(replace(config, route=None))))
    return Kept(tuple(int(block) for block in blocks), int(rest), sum(sorted(shallow)[-2:]))


def _parts(config: NetworkConfig, measure: Callable[[NetworkConfig], Sequence[int]]) -> tuple[list[Tensor], Tensor]:
    """Return what is measured of each block, in order, and of all that is no block."""
    shallow, *deeper = (torch.tensor(measure(part)) for part in _shallow(replace(config, route=None)))
    kinds = [two - shallow for two in deeper]
    blocks = [kind for stack, kind in zip(config.stacks, kinds, strict=True) for _ in range(stack.depth)]
    rest = shallow - sum(kinds)
    if config.route is not None:
        routed, way = _parts_of_route(config, config.route, measure)
        for number in config.routed_blocks:
            blocks[number - 1] = routed
        rest = rest + way
    return blocks, rest


def _parts_of_route(
    config: NetworkConfig, route: Route, measure: Callable[[NetworkConfig], Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Return what is measured of a routed block, and of the way in and out of such blocks."""
    alone = replace(
        config, head_hidden_size=None, head_depth=None, head_num_heads=None, early_block=0, projectors=None, route=None
    )
    found = []
    for own in (None, route):
        one, two = (
            torch.tensor(measure(replace(alone, depth=depth, route=own and replace(own, from_block=1, to_block=depth))))
            for depth in (1, 2)
        )
        found.append((two - one, 2 * one - two))
    (_, rest), (routed, rest_and_way) = found
    return routed, rest_and_way - rest


def _shallow(config: NetworkConfig) -> Iterator[NetworkConfig]:
    """Yield the network with one block in each stack, then with a second one in each of them in turn."""
    depths: dict[str, Any] = {"depth": 1} if len(config.stacks) == 1 else {"depth": 1, "head_depth": 1}
    projectors = config.projectors and replace(config.projectors, after_block=1)
    config = replace(config, early_block=min(config.early_block, 1), projectors=projectors)
    yield replace(config, **depths)
    for name in depths:
        yield replace(config, **depths | {name: 2})


def _on_meta(config: NetworkConfig, dtype: torch.dtype, has_kernels: bool) -> DiT:
    with torch.device("meta"):
        model = DiT(**vars(config)).to(dtype)
    if not has_kernels:
        model.turn_off_kernels()
    return model


def _output(model: DiT, images: int = 1) -> Tensor:
    """Return one number that depends on all that training asks of a network."""
    latent = torch.empty(images, model.in_channels, model.latent_size, model.latent_size, device="meta")
    times = torch.empty((images, model.num_times) if model.num_times > 1 else (images,), device="meta")
    num_kept = model.config.num_kept
    is_routed = num_kept < model.config.num_tokens
    kept_tokens = torch.empty(images, num_kept, dtype=torch.long, device="meta") if is_routed else None
    inputs = latent.to(model.pos_embed.dtype), times, model.condition.empty(images, "meta")
    asked = ["early_layer"] if model.config.early_block else []
    asked += [f"projectors.{index}" for index in range(len(model.projectors))]
    found = model(*inputs, hidden=asked, kept_tokens=kept_tokens)
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
