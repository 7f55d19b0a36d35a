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

_NUMBERS_OF_WARP = 1024
"""Of a row; two warps for XL's 1,152 numbers, filled up to 2,048, were the fastest of 2, 4 and 8 on an H200."""
_TOKENS_OF_PART = 16
"""Tokens of which one program of the norm's backward takes the sum, one after the other."""
_GELU = {"tile_rows": 4, "tile_columns": 512, "num_warps": 2}
_GELU_BACKWARD = {"tile_rows": 2, "tile_columns": 512, "num_warps": 2}
_ROWS_OF_PART = 64
"""Rows of which one program of GELU's backward takes the sum."""


_IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_operator = custom_op if _IS_INTERPRETED else triton_op


def _launch(kernel: Any) -> Any:
    """Return a kernel as the compiler can call it itself; an interpreted one as it is."""
    return kernel if _IS_INTERPRETED else wrap_triton(kernel)


# ---------------------------------------------------------------- residual, norm and modulation


@triton.jit
def _read(start, places, mask):
    return tl.load(start + places, mask, 0.0).to(tl.float32)


@triton.jit
def _norm_kernel(
    tokens, branch, gate, shift, scale, summed, modulated, means, deviations,
    num_tokens, width, gate_stride, shift_stride, scale_stride, eps,
    has_branch: tl.constexpr, lanes: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, lanes)
    mask = columns < width
    row = image * num_tokens + tl.program_id(1)
    places = row * width + columns
    value = _read(tokens, places, mask)
    if has_branch:
        value += _read(gate + image * gate_stride, columns, mask) * _read(branch, places, mask)
    tl.store(summed + places, value, mask)
    mean = tl.sum(value, 0) / width
    centred = tl.where(mask, value - mean, 0.0)
    deviation = tl.rsqrt(tl.sum(centred * centred, 0) / width + eps)
    normed = centred * deviation
    shift_row = _read(shift + image * shift_stride, columns, mask)
    scale_row = _read(scale + image * scale_stride, columns, mask)
    tl.store(modulated + places, normed * (1.0 + scale_row) + shift_row, mask)
    tl.store(means + row, mean)
    tl.store(deviations + row, deviation)


@triton.jit
def _norm_backward_kernel(
    d_summed, d_modulated, tokens, branch, gate, scale, means, deviations, d_tokens, d_branch, d_vectors,
    num_tokens, width, gate_stride, scale_stride,
    has_branch: tl.constexpr, lanes: tl.constexpr, chunk: tl.constexpr,
):  # fmt: skip
    image, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = tl.arange(0, lanes)
    mask = columns < width
    scale_row = 1.0 + _read(scale + image * scale_stride, columns, mask)
    shift_sum, scale_sum = tl.zeros([lanes], tl.float32), tl.zeros([lanes], tl.float32)
    if has_branch:
        gate_row = _read(gate + image * gate_stride, columns, mask)
        gate_sum = tl.zeros([lanes], tl.float32)
    for number in tl.range(0, chunk, loop_unroll_factor=1):
        row = image * num_tokens + part * chunk + number
        places = row * width + columns
        value, gradient = _read(tokens, places, mask), _read(d_modulated, places, mask)
        total = _read(d_summed, places, mask)
        if has_branch:
            branch_row = _read(branch, places, mask)
            value += gate_row * branch_row
        deviation = tl.load(deviations + row)
        normed = tl.where(mask, (value - tl.load(means + row)) * deviation, 0.0)
        shift_sum += gradient
        scale_sum += gradient * normed
        gradient *= scale_row
        along = tl.sum(gradient * normed, 0) / width
        total += deviation * (gradient - tl.sum(gradient, 0) / width - normed * along)
        tl.store(d_tokens + places, total, mask)
        if has_branch:
            tl.store(d_branch + places, total * gate_row, mask)
            gate_sum += total * branch_row
    vectors = d_vectors + (image * tl.num_programs(1) + part) * (3 if has_branch else 2) * width + columns
    tl.store(vectors, shift_sum, mask)
    tl.store(vectors + width, scale_sum, mask)
    if has_branch:
        tl.store(vectors + 2 * width, gate_sum, mask)


@_operator("dit_scale::add_and_norm", mutates_args=())
def add_and_norm(
    tokens: Tensor, branch: Tensor | None, gate: Tensor | None, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return tokens + gate * branch [N, T, D], that normalised and modulated, and each token's mean and 1 / deviation.

    ``tokens`` and ``branch`` are [N, T, D], the vectors [N, D]; without a branch the first is a copy of ``tokens``.
    """
    tokens, shift, scale = tokens.contiguous(), _rows(shift), _rows(scale)
    branch, gate = None if branch is None else branch.contiguous(), None if gate is None else _rows(gate)
    images, num_tokens, width = tokens.shape
    lanes = triton.next_power_of_2(width)
    summed, modulated = torch.empty_like(tokens), torch.empty_like(tokens)
    means, deviations = (tokens.new_empty(images, num_tokens, dtype=torch.float32) for _ in range(2))
    _launch(_norm_kernel)[images, num_tokens](
        tokens, tokens if branch is None else branch, tokens if gate is None else gate, shift, scale,
        summed, modulated, means, deviations,
        num_tokens, width, 0 if gate is None else gate.stride(0), shift.stride(0), scale.stride(0), eps,
        branch is not None, lanes, num_warps=max(2, lanes // _NUMBERS_OF_WARP),
    )  # fmt: skip
    return summed, modulated, means, deviations


@add_and_norm.register_fake
def _(tokens: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    like = tokens.new_empty(tokens.shape)
    means = tokens.new_empty(tokens.shape[:2], dtype=torch.float32)
    return like, torch.empty_like(like), means, torch.empty_like(means)


@_operator("dit_scale::add_and_norm_backward", mutates_args=())
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
    parts, lanes = d_vectors.shape[1], triton.next_power_of_2(width)
    _launch(_norm_backward_kernel)[images, parts](
        d_summed, d_modulated, tokens, tokens if branch is None else branch, tokens if gate is None else gate, scale,
        means, deviations, d_tokens, d_branch, d_vectors,
        num_tokens, width, 0 if gate is None else gate.stride(0), scale.stride(0),
        branch is not None, lanes, num_tokens // parts, num_warps=max(2, lanes // _NUMBERS_OF_WARP),
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


@_operator("dit_scale::bias_gelu", mutates_args=())
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


@_operator("dit_scale::bias_gelu_backward", mutates_args=())
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
