"""How far Triton's kernels and their gradients are from PyTorch in fp64: `python -m tests.models.kernel_parity DEVICE`.

On a CPU with TRITON_INTERPRET=1. Prints one JSON object: by case, relative errors of outputs and gradients.
"""

import json
import sys
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_scale.models.kernels import add_and_norm, bias_gelu

EPSILON = 1e-6
IMAGES, WIDTH = 2, 72


def norm_errors(
    device: str, dtype: torch.dtype, shape: tuple[int, int], has_branch: bool, is_compiled: bool
) -> list[float]:
    """Compare the gated residual with norm and modulation."""

    def ours(tokens: Tensor, modulation: Tensor, *branch: Tensor) -> Sequence[Tensor]:
        gate, shift, scale = modulation.chunk(3, dim=1)  # rows that do not follow each other in memory
        scale = scale.t().contiguous().t()  # nor do this one's numbers
        added = (branch[0], gate) if branch else (None, None)
        return add_and_norm(tokens, *added, shift, scale, EPSILON)[:2]

    def reference(tokens: Tensor, modulation: Tensor, *branch: Tensor) -> Sequence[Tensor]:
        gate, shift, scale = modulation[:, None].chunk(3, dim=2)
        summed = tokens + gate * branch[0] if branch else tokens
        return summed, F.layer_norm(summed, summed.shape[-1:], eps=EPSILON) * (1 + scale) + shift

    tokens, branch = (torch.randn(IMAGES, *shape) for _ in range(2))
    inputs = [tokens, torch.randn(IMAGES, 3 * shape[1]), *([branch] if has_branch else [])]
    return errors(torch.compile(ours) if is_compiled else ours, reference, inputs, device, dtype)


def gelu_errors(device: str, dtype: torch.dtype, is_compiled: bool) -> list[float]:
    """Compare GELU with its bias; 150 rows are no multiple of a tile's."""

    def ours(product: Tensor, bias: Tensor) -> Sequence[Tensor]:
        return (bias_gelu(product, bias),)

    def reference(product: Tensor, bias: Tensor) -> Sequence[Tensor]:
        return (F.gelu(product + bias, approximate="tanh"),)

    inputs = [2 * torch.randn(3, 50, WIDTH), torch.randn(WIDTH)]
    return errors(torch.compile(ours) if is_compiled else ours, reference, inputs, device, dtype)


def errors(
    ours: Callable[..., Sequence[Tensor]],
    reference: Callable[..., Sequence[Tensor]],
    inputs: list[Tensor],
    device: str,
    dtype: torch.dtype,
) -> list[float]:
    """Return the relative errors of outputs and of the gradients of inputs, on the same rounded inputs."""
    rounded = [tensor.to(device, dtype).requires_grad_() for tensor in inputs]
    exact = [tensor.detach().double().requires_grad_() for tensor in rounded]
    found, expected = ours(*rounded), reference(*exact)
    directions = [torch.randn_like(output) for output in found]
    gradients = torch.autograd.grad(list(found), rounded, directions)
    right = torch.autograd.grad(list(expected), exact, [direction.double() for direction in directions])
    pairs = zip((*found, *gradients), (*expected, *right), strict=True)
    return [((a.double() - b).norm() / b.norm()).item() for a, b in pairs]


def main(device: str) -> None:
    """Run all cases; blocks are compiled on a GPU alone, as the interpreter knows no compiler."""
    torch.manual_seed(0)
    cases = {}
    for dtype in (torch.float32, torch.bfloat16):
        for is_compiled in (False, True) if device == "cuda" else (False,):
            name = f"{str(dtype).removeprefix('torch.')}{' compiled' if is_compiled else ''}"
            # 9 tokens fill no part; a width is two powers of two, one, or neither
            for shape in ((48, 72), (9, 72), (16, 64), (16, 75)):
                for has_branch in (True, False):
                    found = norm_errors(device, dtype, shape, has_branch, is_compiled)
                    cases[f"{name} norm of {shape}{' with branch' if has_branch else ''}"] = found
            cases[f"{name} gelu"] = gelu_errors(device, dtype, is_compiled)
    print(json.dumps(cases))


if __name__ == "__main__":
    main(sys.argv[1])
