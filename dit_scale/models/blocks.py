"""What a Diffusion Transformer is stacked from: attention, feed-forward, the block around them, the final layer.

Each reads in ``NetworkConfig`` what it is to be; where there are several to choose from, a table says which by the
setting's name. N samples of T tokens of width D.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_scale.models.attention import attention
from dit_scale.models.config import NetworkConfig
from dit_scale.models.embeddings import Rotation, rotated
from dit_scale.models.fused import EPSILON, add_and_norm, gated_sum, linear_gelu, modulate
from dit_scale.models.linear import Linear
from dit_scale.models.operators import Fused


class Modulation(nn.Sequential):
    """The vectors that a conditioning makes, by which tokens are shifted, scaled and gated (section 3.2, adaLN)."""

    def __init__(self, hidden_size: int, num_vectors: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(hidden_size, num_vectors * hidden_size))
        self.num_vectors = num_vectors

    def forward(self, conditioning: Tensor) -> tuple[Tensor, ...]:
        """Map ``conditioning`` [N, D] to vectors [N, 1, D], the same for all tokens; [N, T, D] to one a token."""
        vectors = super().forward(conditioning)
        if conditioning.dim() == 2:
            vectors = vectors[:, None]  # [N, 1, num_vectors * D]
        return vectors.chunk(self.num_vectors, dim=-1)


# ---------------------------------------------------------------- norms


class AdaptiveNorm(Fused):
    """A residual, the norm of the sum, and what the conditioning makes of it (section 3.2, adaLN)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()

    def forward(
        self, tokens: Tensor, branch: Tensor | None, gate: Tensor | None, shift: Tensor | None, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return tokens + gate * branch, and that normalised and modulated: [N, T, D] under vectors [N, 1 or T, D]."""
        return add_and_norm(tokens, branch, gate, shift, scale, self.has_kernels)


class AdaptiveRMSNorm(nn.Module):
    """The same with RMSNorm and a weight (arXiv 1910.07467, equation 4)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(
        self, tokens: Tensor, branch: Tensor | None, gate: Tensor | None, shift: Tensor | None, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return tokens + gate * branch, and that normalised and modulated: [N, T, D] under vectors [N, 1 or T, D]."""
        summed = gated_sum(tokens, branch, gate)
        normed = F.rms_norm(summed, self.weight.shape, self.weight, EPSILON)
        return summed, modulate(normed, shift, scale)


NORMS: dict[str, type[AdaptiveNorm | AdaptiveRMSNorm]] = {"layernorm": AdaptiveNorm, "rmsnorm": AdaptiveRMSNorm}


def _head_norm(config: NetworkConfig) -> nn.Module:
    """Return the norm of queries or of keys [..., d]: of the blocks' kind, with parameters, and nothing without one."""
    if not config.qk_norm:
        return nn.Identity()
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.head_size, eps=EPSILON)
    return nn.LayerNorm(config.head_size)


# ---------------------------------------------------------------- attention and feed-forward


class SelfAttention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.q_norm = _head_norm(config)
        self.k_norm = _head_norm(config)
        self.proj = Linear(config.hidden_size, config.hidden_size)

    def forward(self, tokens: Tensor, backend: str, rotation: Rotation | None = None) -> Tensor:
        """Map tokens [N, T, D] to [N, T, D]; ``rotation`` is the tokens' own, where they have one."""
        qkv = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1))  # [N, T, 3, H, D/H]
        query, key, value = qkv.unbind(dim=2)  # 3 x [N, T, H, D/H]
        query, key = self.q_norm(query), self.k_norm(key)
        if rotation is not None:
            query, key = rotated(query, rotation), rotated(key, rotation)
        mixed = attention(query, key, value, backend)  # [N, T, H, D/H]
        return self.proj(mixed.flatten(2))  # [N, T, D]


class FeedForward(Fused):
    """Two linear layers around a tanh-approximated GELU."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        wide = int(config.hidden_size * config.mlp_ratio)
        self.fc1 = Linear(config.hidden_size, wide)
        self.fc2 = Linear(wide, config.hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [N, T, D] to [N, T, D]."""
        wide = linear_gelu(self.fc1, tokens, self.has_kernels)  # [N, T, mlp_ratio * D]
        return self.fc2(wide)  # [N, T, D]


class SwiGLU(nn.Module):
    """Two linear layers, of which one half gates the other: w3(silu(a) * b), where a, b = w12(x) (arXiv 2002.05202)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        wide = int(2 / 3 * int(config.hidden_size * config.mlp_ratio))  # as many weights as with GELU
        self.w12 = Linear(config.hidden_size, 2 * wide)
        self.w3 = Linear(wide, config.hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [N, T, D] to [N, T, D]."""
        gating, gated = self.w12(tokens).chunk(2, dim=-1)  # 2 x [N, T, 2/3 * mlp_ratio * D]
        return self.w3(F.silu(gating) * gated)  # [N, T, D]


FEED_FORWARDS: dict[str, type[FeedForward | SwiGLU]] = {"gelu": FeedForward, "swiglu": SwiGLU}


# ---------------------------------------------------------------- what is stacked


class Block(nn.Module):
    """A transformer block with adaptive norms and zero-initialised gates (figure 3, adaLN-Zero)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.has_shift = config.adaln_shift
        self.norm1 = NORMS[config.norm](config.hidden_size)
        self.attn = SelfAttention(config)
        self.norm2 = NORMS[config.norm](config.hidden_size)
        self.mlp = FEED_FORWARDS[config.mlp](config)
        self.adaLN_modulation = Modulation(config.hidden_size, num_vectors=6 if self.has_shift else 4)

    def forward(self, tokens: Tensor, conditioning: Tensor, backend: str, rotation: Rotation | None = None) -> Tensor:
        """Map tokens [N, T, D] under ``conditioning``, [N, D] or one a token [N, T, D], to [N, T, D].

        ``backend`` is attention's; ``rotation`` is that of these tokens, where they are rotated.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self._vectors(conditioning)  # 6 x [N, 1 or T, D]
        tokens, modulated = self.norm1(tokens, None, None, shift1, scale1)
        tokens, modulated = self.norm2(tokens, self.attn(modulated, backend, rotation), gate1, shift2, scale2)
        return tokens + gate2 * self.mlp(modulated)

    def _vectors(self, conditioning: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None, Tensor, Tensor]:
        """Return shift, scale and gate of either half, with None for shifts where there are none."""
        vectors: Any = self.adaLN_modulation(conditioning)
        if self.has_shift:
            return vectors
        scale1, gate1, scale2, gate2 = vectors
        return None, scale1, gate1, None, scale2, gate2


class FinalLayer(nn.Module):
    """Map each token to the numbers of its patch."""

    def __init__(self, config: NetworkConfig, out_channels: int) -> None:
        super().__init__()
        self.norm_final = NORMS[config.norm](config.hidden_size)
        self.linear = nn.Linear(config.hidden_size, config.patch_size**2 * out_channels)
        self.adaLN_modulation = Modulation(config.hidden_size, num_vectors=2)

    def forward(self, tokens: Tensor, conditioning: Tensor) -> Tensor:
        """Map tokens [N, T, D] under ``conditioning`` [N, D] or [N, T, D] to patches [N, T, P*P*C_out]."""
        shift, scale = self.adaLN_modulation(conditioning)  # 2 x [N, 1 or T, D]
        _, modulated = self.norm_final(tokens, None, None, shift, scale)
        return self.linear(modulated)  # [N, T, P*P*C_out]
