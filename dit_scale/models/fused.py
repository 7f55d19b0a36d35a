"""What a GPU does in one pass over the tokens: in Triton there, in PyTorch elsewhere, with the same results.

adaLN modulation is that of arXiv 2212.09748, section 3.2.
"""

from types import ModuleType

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


def modulate(tokens: Tensor, shift: Tensor | None, scale: Tensor) -> Tensor:
    """Scale normalised tokens, and shift them where there is a shift."""
    scaled = tokens * (1 + scale)
    return scaled if shift is None else scaled + shift


def gated_sum(tokens: Tensor, branch: Tensor | None, gate: Tensor | None) -> Tensor:
    """Return tokens + gate * branch, or the tokens where there is neither."""
    return tokens if branch is None or gate is None else tokens + gate * branch


def add_and_norm(
    tokens: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    shift: Tensor | None,
    scale: Tensor,
    has_kernels: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return tokens + gate * branch, and that normalised and modulated: both [N, T, D].

    ``tokens`` and ``branch`` are [N, T, D], the vectors [N, 1, D] or one a token, [N, T, D]; with neither branch nor
    gate nothing is added. With vectors that all tokens share a GPU takes one pass over the tokens for all of it, where
    a compiler takes several.
    """
    ours = _kernels_for(tokens, has_kernels and scale.shape[1] == 1)
    if ours is not None:
        vector = None if gate is None else gate[:, 0]
        shift = torch.zeros_like(scale) if shift is None else shift
        summed, modulated, _, _ = ours.add_and_norm(tokens, branch, vector, shift[:, 0], scale[:, 0], EPSILON)
        return summed, modulated
    tokens = gated_sum(tokens, branch, gate)
    normed = F.layer_norm(tokens, tokens.shape[-1:], eps=EPSILON)
    return tokens, modulate(normed, shift, scale)


def linear_gelu(linear: nn.Linear, tokens: Tensor, has_kernels: bool = True) -> Tensor:
    """Return GELU, in its tanh form (arXiv 1606.08415), of a linear layer's output."""
    ours = _kernels_for(tokens, has_kernels)
    if ours is not None and isinstance(linear, Linear):
        return ours.bias_gelu(F.linear(tokens, linear.weight), linear.bias)
    return F.gelu(linear(tokens), approximate="tanh")


def _kernels_for(tokens: Tensor, has_kernels: bool) -> ModuleType | None:
    """Return our kernels where they run; on the meta device, which knows shapes alone, all do that Triton can make."""
    if not has_kernels:
        return None
    if tokens.is_meta:
        return kernels_of_a_gpu()
    return kernels if tokens.is_cuda else None


def kernels_of_a_gpu() -> ModuleType | None:
    """Return our kernels, whether or not there is a GPU for them; None without Triton."""
    try:
        from dit_scale.models import kernels
    except ImportError:
        return None
    return kernels
