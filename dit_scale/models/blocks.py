"""What a Diffusion Transformer is stacked from: attention, feed-forward, the block around them, the final layer.

Each reads in ``NetworkConfig`` what it is to be. N samples of T tokens of width D.
"""

from torch import Tensor, nn

from dit_scale.models.attention import attention
from dit_scale.models.config import NetworkConfig
from dit_scale.models.fused import add_and_norm, linear_gelu
from dit_scale.models.linear import Linear
from dit_scale.models.operators import Fused


def _modulation(hidden_size: int, num_vectors: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, num_vectors * hidden_size))


class AdaptiveNorm(Fused):
    """A residual, the norm of the sum, and what the conditioning makes of it (section 3.2, adaLN)."""

    def forward(
        self, tokens: Tensor, branch: Tensor | None, gate: Tensor | None, shift: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return tokens + gate * branch, and that normalised and modulated: [N, T, D] under vectors [N, 1, D]."""
        return add_and_norm(tokens, branch, gate, shift, scale, self.has_kernels)


class SelfAttention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = Linear(config.hidden_size, config.hidden_size)

    def forward(self, tokens: Tensor, backend: str) -> Tensor:
        """Map tokens [N, T, D] to [N, T, D]."""
        qkv = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1))  # [N, T, 3, H, D/H]
        query, key, value = qkv.unbind(dim=2)  # 3 x [N, T, H, D/H]
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


class Block(nn.Module):
    """A transformer block with adaptive norms and zero-initialised gates (figure 3, adaLN-Zero)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.norm1 = AdaptiveNorm()
        self.attn = SelfAttention(config)
        self.norm2 = AdaptiveNorm()
        self.mlp = FeedForward(config)
        self.adaLN_modulation = _modulation(config.hidden_size, num_vectors=6)

    def forward(self, tokens: Tensor, conditioning: Tensor, backend: str) -> Tensor:
        """Map tokens [N, T, D] under ``conditioning`` [N, D] to [N, T, D]; ``backend`` is attention's."""
        modulation = self.adaLN_modulation(conditioning)[:, None]  # [N, 1, 6D]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)  # 6 x [N, 1, D]
        tokens, modulated = self.norm1(tokens, None, None, shift1, scale1)
        tokens, modulated = self.norm2(tokens, self.attn(modulated, backend), gate1, shift2, scale2)
        return tokens + gate2 * self.mlp(modulated)


class FinalLayer(nn.Module):
    """Map each token to the numbers of its patch."""

    def __init__(self, config: NetworkConfig, out_channels: int) -> None:
        super().__init__()
        self.norm_final = AdaptiveNorm()
        self.linear = nn.Linear(config.hidden_size, config.patch_size**2 * out_channels)
        self.adaLN_modulation = _modulation(config.hidden_size, num_vectors=2)

    def forward(self, tokens: Tensor, conditioning: Tensor) -> Tensor:
        """Map tokens [N, T, D] under ``conditioning`` [N, D] to patches [N, T, P*P*C_out]."""
        shift, scale = self.adaLN_modulation(conditioning)[:, None].chunk(2, dim=-1)  # 2 x [N, 1, D]
        _, modulated = self.norm_final(tokens, None, None, shift, scale)
        return self.linear(modulated)  # [N, T, P*P*C_out]
