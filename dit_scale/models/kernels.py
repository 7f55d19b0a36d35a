"""What `fused.py` does in one pass over the tokens, and its gradient in another: Triton, as operators of PyTorch.

They have autograd, for code that is compiled and code that is not. Sums over tokens are taken in a fixed order, so that
equal inputs give equal bits. `TRITON_INTERPRET=1` runs them on a CPU, for tests.
"""

# mypy: disable-error-code="no-untyped-def"
import math
import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op, triton_op, wrap_triton

from dit_scale.models.operators import operator

_NUMBERS_OF_WARP = 576
"""Of a row; two warps for XL's 1,152 were the fastest of 2, 4 and 8 on an H200, before rows were cut in two."""
_TOKENS_OF_PART = 16
"""Tokens of which one program of the norm's backward takes the sum, one after the other."""
_GELU = {"tile_rows": 4, "tile_columns": 512, "num_warps": 2}
_GELU_BACKWARD = {"tile_rows": 2, "tile_columns": 512, "num_warps": 2}
_ROWS_OF_PART = 64
"""Rows of which one program of GELU's backward takes the sum."""


_IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_DEFINE = custom_op if _IS_INTERPRETED else triton_op


def _launch(kernel: Any) -> Any:
    """Return a kernel as the compiler can call it itself; an interpreted one as it is."""
    return kernel if _IS_INTERPRETED else wrap_triton(kernel)


# ---------------------------------------------------------------- residual, norm and modulation


# Triton wants tensors of a power of two. A row is cut in two such, 1,152 numbers in 1,024 and 128, so that no lane is
# idle and all that a token needs stays in registers; of other widths the second part is filled up.


def _cut(width: int) -> tuple[int, int]:
    """Return the lengths of a row's two parts."""
    head = 1 << max(0, (width - 1).bit_length() - 1)
    return head, triton.next_power_of_2(max(1, width - head))


def _warps(width: int) -> int:
    return max(2, triton.next_power_of_2(-(-width // _NUMBERS_OF_WARP)))


@triton.jit
def _read(start, places, mask=None):
    return tl.load(start + places, mask, None if mask is None else 0.0).to(tl.float32)


@triton.jit
def _add_pairs(one, other, next_one, next_other):
    return one + next_one, other + next_other


@triton.jit
def _norm_kernel(
    tokens, branch, gate, shift, scale, summed, modulated, means, deviations,
    num_tokens, width, gate_stride, shift_stride, scale_stride, eps,
    has_branch: tl.constexpr, head: tl.constexpr, tail: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    columns1, columns2 = tl.arange(0, head), head + tl.arange(0, tail)
    mask2 = columns2 < width
    row = image * num_tokens + tl.program_id(1)
    places1, places2 = row * width + columns1, row * width + columns2
    value1, value2 = _read(tokens, places1), _read(tokens, places2, mask2)
    if has_branch:
        gates = gate + image * gate_stride
        value1 += _read(gates, columns1) * _read(branch, places1)
        value2 += _read(gates, columns2, mask2) * _read(branch, places2, mask2)
    tl.store(summed + places1, value1)
    tl.store(summed + places2, value2, mask2)
    mean = (tl.sum(value1, 0) + tl.sum(value2, 0)) / width
    value1 -= mean
    value2 = tl.where(mask2, value2 - mean, 0.0)
    variance = (tl.sum(value1 * value1, 0) + tl.sum(value2 * value2, 0)) / width
    deviation = tl.rsqrt(variance + eps)
    shifts, scales = shift + image * shift_stride, scale + image * scale_stride
    modulated1 = value1 * deviation * (1.0 + _read(scales, columns1)) + _read(shifts, columns1)
    modulated2 = value2 * deviation * (1.0 + _read(scales, columns2, mask2)) + _read(shifts, columns2, mask2)
    tl.store(modulated + places1, modulated1)
    tl.store(modulated + places2, modulated2, mask2)
    tl.store(means + row, mean)
    tl.store(deviations + row, deviation)


@triton.jit
def _norm_backward_kernel(
    d_summed, d_modulated, tokens, branch, gate, scale, means, deviations, d_tokens, d_branch, d_vectors,
    num_tokens, width, gate_stride, scale_stride,
    has_branch: tl.constexpr, head: tl.constexpr, tail: tl.constexpr, chunk: tl.constexpr,
):  # fmt: skip
    image, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns1, columns2 = tl.arange(0, head), head + tl.arange(0, tail)
    mask2 = columns2 < width
    scales, gates = scale + image * scale_stride, gate + image * gate_stride
    scale1, scale2 = 1.0 + _read(scales, columns1), 1.0 + _read(scales, columns2, mask2)
    shift_sum1, shift_sum2 = tl.zeros([head], tl.float32), tl.zeros([tail], tl.float32)
    scale_sum1, scale_sum2 = tl.zeros([head], tl.float32), tl.zeros([tail], tl.float32)
    if has_branch:
        gate1, gate2 = _read(gates, columns1), _read(gates, columns2, mask2)
        gate_sum1, gate_sum2 = tl.zeros([head], tl.float32), tl.zeros([tail], tl.float32)
    for number in tl.range(0, chunk, loop_unroll_factor=1, num_stages=3):  # the next tokens are on their way
        row = image * num_tokens + part * chunk + number
        places1, places2 = row * width + columns1, row * width + columns2
        value1, value2 = _read(tokens, places1), _read(tokens, places2, mask2)
        gradient1, gradient2 = _read(d_modulated, places1), _read(d_modulated, places2, mask2)
        total1, total2 = _read(d_summed, places1), _read(d_summed, places2, mask2)
        if has_branch:
            branch1, branch2 = _read(branch, places1), _read(branch, places2, mask2)
            value1 += gate1 * branch1
            value2 += gate2 * branch2
        mean, deviation = tl.load(means + row), tl.load(deviations + row)
        normed1 = (value1 - mean) * deviation
        normed2 = tl.where(mask2, (value2 - mean) * deviation, 0.0)
        shift_sum1 += gradient1
        shift_sum2 += gradient2
        scale_sum1 += gradient1 * normed1
        scale_sum2 += gradient2 * normed2
        gradient1 *= scale1
        gradient2 *= scale2
        level1, along1 = tl.reduce((gradient1, gradient1 * normed1), 0, _add_pairs)
        level2, along2 = tl.reduce((gradient2, gradient2 * normed2), 0, _add_pairs)
        level, along = (level1 + level2) / width, (along1 + along2) / width
        total1 += deviation * (gradient1 - level - normed1 * along)
        total2 += deviation * (gradient2 - level - normed2 * along)
        tl.store(d_tokens + places1, total1)
        tl.store(d_tokens + places2, total2, mask2)
        if has_branch:
            tl.store(d_branch + places1, total1 * gate1)
            tl.store(d_branch + places2, total2 * gate2, mask2)
            gate_sum1 += total1 * branch1
            gate_sum2 += total2 * branch2
    vectors = d_vectors + (image * tl.num_programs(1) + part) * (3 if has_branch else 2) * width
    tl.store(vectors + columns1, shift_sum1)
    tl.store(vectors + columns2, shift_sum2, mask2)
    tl.store(vectors + width + columns1, scale_sum1)
    tl.store(vectors + width + columns2, scale_sum2, mask2)
    if has_branch:
        tl.store(vectors + 2 * width + columns1, gate_sum1)
        tl.store(vectors + 2 * width + columns2, gate_sum2, mask2)


@operator("dit_scale::add_and_norm", _DEFINE)
def add_and_norm(
    tokens: Tensor, branch: Tensor | None, gate: Tensor | None, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return tokens + gate * branch [N, T, D], that normalised and modulated, and each token's mean and 1 / deviation.

    ``tokens`` and ``branch`` are [N, T, D], the vectors [N, D]; without a branch the first is a copy of ``tokens``.
    """
    tokens, shift, scale = tokens.contiguous(), _rows(shift), _rows(scale)
    branch, gate = None if branch is None else branch.contiguous(), None if gate is None else _rows(gate)
    images, num_tokens, width = tokens.shape
    summed, modulated = torch.empty_like(tokens), torch.empty_like(tokens)
    means, deviations = (tokens.new_empty(images, num_tokens, dtype=torch.float32) for _ in range(2))
    _launch(_norm_kernel)[images, num_tokens](
        tokens, tokens if branch is None else branch, tokens if gate is None else gate, shift, scale,
        summed, modulated, means, deviations,
        num_tokens, width, 0 if gate is None else gate.stride(0), shift.stride(0), scale.stride(0), eps,
        branch is not None, *_cut(width), num_warps=_warps(width),
    )  # fmt: skip
    return summed, modulated, means, deviations


@add_and_norm.register_fake
def _(tokens: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    like = tokens.new_empty(tokens.shape)
    means = tokens.new_empty(tokens.shape[:2], dtype=torch.float32)
    return like, torch.empty_like(like), means, torch.empty_like(means)


@operator("dit_scale::add_and_norm_backward", _DEFINE)
def add_and_norm_backward(
    d_summed: Tensor,
    d_modulated: Tensor,
    tokens: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    scale: Tensor,
    means: Tensor,
    deviations: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of tokens and branch [N, T, D]; in parts [N, parts, 2 or 3, D] of shift, scale and gate."""
    d_summed, d_modulated, tokens = d_summed.contiguous(), d_modulated.contiguous(), tokens.contiguous()
    branch, gate = None if branch is None else branch.contiguous(), None if gate is None else _rows(gate)
    scale = _rows(scale)
    images, num_tokens, width = tokens.shape
    d_tokens, d_branch, d_vectors = found = _norm_gradients(tokens, branch)
    parts = d_vectors.shape[1]
    _launch(_norm_backward_kernel)[images, parts](
        d_summed, d_modulated, tokens, tokens if branch is None else branch, tokens if gate is None else gate, scale,
        means, deviations, d_tokens, d_branch, d_vectors,
        num_tokens, width, 0 if gate is None else gate.stride(0), scale.stride(0),
        branch is not None, *_cut(width), num_tokens // parts, num_warps=_warps(width),
    )  # fmt: skip
    return found


@add_and_norm_backward.register_fake
def _(_summed: Tensor, _modulated: Tensor, tokens: Tensor, branch: Tensor | None, *_: Any) -> tuple[Tensor, ...]:
    return _norm_gradients(tokens, branch)


def _rows(vectors: Tensor) -> Tensor:
    """Return vectors [N, D] whose numbers follow each other in memory; the vectors themselves need not."""
    return vectors if vectors.stride(1) == 1 else vectors.contiguous()


def _norm_gradients(tokens: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return memory for what backward gives; where there is no branch, nothing for it."""
    images, num_tokens, width = tokens.shape
    parts = num_tokens // math.gcd(num_tokens, _TOKENS_OF_PART)  # so that no row needs a mask
    d_vectors = tokens.new_empty(images, parts, 2 if branch is None else 3, width, dtype=torch.float32)
    return tokens.new_empty(tokens.shape), tokens.new_empty(0 if branch is None else tokens.shape), d_vectors


def _keep_norm(ctx: Any, inputs: Any, output: Any) -> None:
    tokens, branch, gate, _, scale, _ = inputs
    summed, _, means, deviations = output
    # Without a branch both are equal, and the copy is what the next operator keeps, too.
    ctx.save_for_backward(summed if branch is None else tokens, branch, gate, scale, means, deviations)


def _norm_backward(ctx: Any, d_summed: Tensor, d_modulated: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    tokens, branch, gate, scale, means, deviations = ctx.saved_tensors
    d_tokens, d_branch, d_vectors = add_and_norm_backward(
        d_summed, d_modulated, tokens, branch, gate, scale, means, deviations
    )
    d_shift, d_scale, *d_gate = d_vectors.sum(1).to(scale.dtype).unbind(1)
    if branch is None:
        return d_tokens, None, None, d_shift, d_scale, None
    return d_tokens, d_branch, d_gate[0], d_shift, d_scale, None


add_and_norm.register_autograd(_norm_backward, setup_context=_keep_norm)


# ---------------------------------------------------------------- GELU


@triton.jit
def _slopes(value):
    """Return the sigmoid that GELU's tanh form multiplies by, and GELU's derivative (arXiv 1606.08415)."""
    square = value * value
    sigmoid = 1.0 / (1.0 + tl.exp(-1.5957691216057308 * value * (1.0 + 0.044715 * square)))
    inner = 1.5957691216057308 * (1.0 + 0.134145 * square)
    return sigmoid, sigmoid * (1.0 + value * (1.0 - sigmoid) * inner)


@triton.jit
def _gelu_kernel(product, bias, out, num_rows, width, tile_rows: tl.constexpr, tile_columns: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * tile_rows + tl.arange(0, tile_rows)
    columns = tl.program_id(1) * tile_columns + tl.arange(0, tile_columns)
    mask = (rows < num_rows)[:, None] & (columns < width)[None, :]
    places = rows[:, None] * width + columns[None, :]
    value = tl.load(product + places, mask, 0.0).to(tl.float32)
    value += tl.load(bias + columns, columns < width, 0.0).to(tl.float32)[None, :]
    sigmoid, _ = _slopes(value)
    tl.store(out + places, value * sigmoid, mask)


@triton.jit
def _gelu_backward_kernel(
    gradient, product, bias, d_product, d_bias,
    num_rows, width, chunk: tl.constexpr, tile_rows: tl.constexpr, tile_columns: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * tile_columns + tl.arange(0, tile_columns)
    bias_row = tl.load(bias + columns, columns < width, 0.0).to(tl.float32)[None, :]
    sums = tl.zeros([tile_rows, tile_columns], tl.float32)
    for start in range(0, chunk, tile_rows):
        rows = part * chunk + start + tl.arange(0, tile_rows)
        mask = (rows < num_rows)[:, None] & (columns < width)[None, :]
        places = rows[:, None] * width + columns[None, :]
        value = tl.load(product + places, mask, 0.0).to(tl.float32) + bias_row
        _, slope = _slopes(value)
        found = tl.load(gradient + places, mask, 0.0).to(tl.float32) * slope
        tl.store(d_product + places, found, mask)
        sums += found
    tl.store(d_bias + part * width + columns, tl.sum(sums, 0), columns < width)


@operator("dit_scale::bias_gelu", _DEFINE)
def bias_gelu(product: Tensor, bias: Tensor) -> Tensor:
    """Return GELU (its tanh form) of ``product`` [..., D] + ``bias`` [D]."""
    product = product.contiguous()
    out = torch.empty_like(product)
    rows, width = product.numel() // product.shape[-1], product.shape[-1]
    grid = (triton.cdiv(rows, _GELU["tile_rows"]), triton.cdiv(width, _GELU["tile_columns"]))
    _launch(_gelu_kernel)[grid](product, bias, out, rows, width, **_GELU)
    return out


@bias_gelu.register_fake
def _(product: Tensor, bias: Tensor) -> Tensor:
    return product.new_empty(product.shape)


@operator("dit_scale::bias_gelu_backward", _DEFINE)
def bias_gelu_backward(gradient: Tensor, product: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of the product, and in parts [parts, D] that of the bias."""
    gradient, product = gradient.contiguous(), product.contiguous()
    d_product, d_bias = _gelu_gradients(product)
    rows, width = product.numel() // product.shape[-1], product.shape[-1]
    grid = (d_bias.shape[0], triton.cdiv(width, _GELU_BACKWARD["tile_columns"]))
    _launch(_gelu_backward_kernel)[grid](
        gradient, product, bias, d_product, d_bias, rows, width, _ROWS_OF_PART, **_GELU_BACKWARD
    )
    return d_product, d_bias


@bias_gelu_backward.register_fake
def _(_gradient: Tensor, product: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _gelu_gradients(product)


def _gelu_gradients(product: Tensor) -> tuple[Tensor, Tensor]:
    width = product.shape[-1]
    parts = triton.cdiv(product.numel() // width, _ROWS_OF_PART)
    return product.new_empty(product.shape), product.new_empty(parts, width, dtype=torch.float32)


def _keep_gelu(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _gelu_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
    product, bias = ctx.saved_tensors
    d_product, d_bias = bias_gelu_backward(gradient, product, bias)
    return d_product, d_bias.sum(0).to(bias.dtype)


bias_gelu.register_autograd(_gelu_backward, setup_context=_keep_gelu)
