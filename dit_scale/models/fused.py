"""What a GPU does in one pass over the tokens: in Triton there, in PyTorch elsewhere, with the same results.

adaLN modulation is that of arXiv 2212.09748, section 3.2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_scale.models.linear import Linear

try:
    if not torch.cuda.is_available():
        raise ImportError("there is no GPU for them")
    from dit_scale.models import kernels
except ImportError:
    kernels = None  # type: ignore[assignment]

EPSILON = 1e-6
"""Added to the variance of a token's numbers."""


def modulate(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Shift and scale normalised tokens."""
    return tokens * (1 + scale) + shift


def add_and_norm(
    tokens: Tensor, branch: Tensor | None, gate: Tensor | None, shift: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Return tokens + gate * branch, and that normalised and modulated: both [N, T, D].

    ``tokens`` and ``branch`` are [N, T, D], the vectors [N, 1, D]; with neither branch nor gate nothing is added. A GPU
    takes one pass over the tokens for all of it, where a compiler takes several.
    """
    if kernels is not None and tokens.is_cuda:
        vector = None if gate is None else gate[:, 0]
        summed, modulated, _, _ = kernels.add_and_norm(tokens, branch, vector, shift[:, 0], scale[:, 0], EPSILON)
        return summed, modulated
    if branch is not None and gate is not None:
        tokens = tokens + gate * branch
    normed = F.layer_norm(tokens, tokens.shape[-1:], eps=EPSILON)
    return tokens, modulate(normed, shift, scale)


def linear_gelu(linear: nn.Linear, tokens: Tensor) -> Tensor:
    """Return GELU, in its tanh form (arXiv 1606.08415), of a linear layer's output."""
    if kernels is not None and tokens.is_cuda and isinstance(linear, Linear):
        return kernels.bias_gelu(F.linear(tokens, linear.weight), linear.bias)
    return F.gelu(linear(tokens), approximate="tanh")
