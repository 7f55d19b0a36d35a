"""A Diffusion Transformer in plain PyTorch, as one writes it first: the peer that `dit-scale bench` runs beside ours.

Nothing of dit_scale is in it. Names and layout are the published ones, so that weights and `--peer-path` fit both.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width))


class MLP(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.act = nn.GELU(approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """adaLN-Zero block."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = MLP(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).unsqueeze(1).chunk(6, dim=2)
        x = x + gate_a * self.attn(self.norm1(x) * (1 + scale_a) + shift_a)
        return x + gate_m * self.mlp(self.norm2(x) * (1 + scale_m) + shift_m)


class FinalLayer(nn.Module):
    """Tokens to patches."""

    def __init__(self, width: int, numbers: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, numbers)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).unsqueeze(1).chunk(2, dim=2)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


class TimestepEmbedder(nn.Module):
    """Cosines and sines of the time through an MLP."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        rates = torch.exp(-math.log(10_000) * torch.arange(128) / 128).to(t.device)
        angles = t[:, None].float() * rates
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1).to(self.mlp[0].weight.dtype))


class LabelEmbedder(nn.Module):
    """A table of labels, some of which are dropped in training."""

    def __init__(self, num_classes: int, width: int, dropout: float = 0.1):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)
        self.num_classes, self.dropout = num_classes, dropout

    def forward(self, y: Tensor) -> Tensor:
        if self.training:
            y = torch.where(torch.rand(len(y), device=y.device) < self.dropout, self.num_classes, y)
        return self.embedding_table(y)


class PatchEmbed(nn.Module):
    """Patches to tokens."""

    def __init__(self, patch: int, channels: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class DiT(nn.Module):
    """The network; weights come from a state dict, so nothing is initialised with care."""

    def __init__(
        self,
        depth: int,
        hidden_size: int,
        num_heads: int,
        patch_size: int,
        input_size: int = 32,
        in_channels: int = 4,
        num_classes: int = 1000,
    ):
        super().__init__()
        self.patch, self.side, self.out_channels = patch_size, input_size // patch_size, 2 * in_channels
        self.x_embedder = PatchEmbed(patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.side**2, hidden_size), requires_grad=False)
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads) for _ in range(depth))
        self.final_layer = FinalLayer(hidden_size, patch_size**2 * self.out_channels)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x = self.x_embedder(x) + self.pos_embed
        c = self.t_embedder(t) + self.y_embedder(y)
        for block in self.blocks:
            x = block(x, c)
        x = self.final_layer(x, c).reshape(len(x), self.side, self.side, self.patch, self.patch, self.out_channels)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(len(x), self.out_channels, *[self.side * self.patch] * 2)

    def forward_with_cfg(self, x: Tensor, t: Tensor, y: Tensor, cfg_scale: float) -> Tensor:
        """Guide the first three channels; both halves of ``x`` are the same latents."""
        half = x[: len(x) // 2]
        out = self.forward(torch.cat([half, half]), t, y)
        guided, rest = out[:, :3], out[:, 3:]
        conditional, unconditional = guided.chunk(2)
        both = unconditional + cfg_scale * (conditional - unconditional)
        return torch.cat([torch.cat([both, both]), rest], dim=1)


_SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
DiT_models = {
    f"DiT-{size}/{patch}": partial(DiT, *numbers, patch) for size, numbers in _SIZES.items() for patch in (2, 4, 8)
}
