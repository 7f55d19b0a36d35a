"""What turns a latent and a timestep into vectors, and the fixed table of positions."""

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

NUM_FREQUENCIES = 128
MAX_PERIOD = 10_000.0

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of the angles by which tokens are rotated: [T, d], or [N, T, d] where images differ."""


class PatchEmbedding(nn.Module):
    """Cut a latent into square patches and map each to a token."""

    def __init__(self, patch_size: int, in_channels: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)

    def forward(self, latent: Tensor) -> Tensor:
        """Map ``latent`` [N, C, S, S] to tokens [N, T, D], row by row."""
        grid = self.proj(latent.to(self.proj.weight.dtype))  # [N, D, S/P, S/P]
        # Contiguous, or every block would inherit the strides of the transposed grid.
        return grid.flatten(2).transpose(1, 2).contiguous()  # [N, T, D]


class TimestepEmbedding(nn.Module):
    """Embed a timestep, integer or real, through its sinusoids and a two-layer MLP."""

    num_features = 2 * NUM_FREQUENCIES

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(self.num_features, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, timestep: Tensor) -> Tensor:
        """Map ``timestep`` [N] to [N, D]."""
        weights_dtype = self.mlp.get_parameter("0.weight").dtype
        return self.mlp(self.features(timestep).to(weights_dtype))  # [N, D]

    def features(self, timestep: Tensor) -> Tensor:
        """Return what the MLP is given of ``timestep`` [N], in fp32: [N, 256]."""
        return timestep_sinusoids(timestep)


class FourierEmbedding(TimestepEmbedding):
    """The same through sinusoids of random frequencies (arXiv 2006.10739, as RAE's, arXiv 2510.11690).

    The frequencies ``W`` are drawn once and never trained: a buffer, so that they are saved with the weights.
    """

    num_features = 4 * NUM_FREQUENCIES

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size)
        self.W: Tensor
        self.register_buffer("W", torch.randn(self.num_features // 2))

    def features(self, timestep: Tensor) -> Tensor:
        """Return sines and cosines of ``timestep`` [N] at the random frequencies, in fp32: [N, 512]."""
        angles = timestep.float()[:, None] * self.W * (2 * math.pi)  # [N, 256]
        return torch.cat([angles.sin(), angles.cos()], dim=-1)  # [N, 512]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Go where the weights go, but stay in fp32: rounded to bf16 these would be other frequencies."""
        exact = self.W
        super()._apply(fn, recurse)
        if self.W.dtype != exact.dtype:
            self.W = exact.to(self.W.device)
        return self


TIME_EMBEDDINGS: dict[str, type[TimestepEmbedding]] = {"sinusoidal": TimestepEmbedding, "fourier": FourierEmbedding}


def timestep_sinusoids(timestep: Tensor) -> Tensor:
    """Return cosines and sines of ``timestep`` [N] at 128 frequencies, in fp32, as [N, 256].

    The frequencies run geometrically from 1 to nearly 1 / 10,000: "Attention is all you need"
    (arXiv 1706.03762), section 3.5. They are made on the device of ``timestep``, so nothing is copied to it,
    and in fp32 whatever the weights' dtype: bf16 cannot tell timestep 998 from 999.
    """
    exponents = torch.arange(NUM_FREQUENCIES, dtype=torch.float32, device=timestep.device) / NUM_FREQUENCIES
    angles = timestep.float()[:, None] * MAX_PERIOD**-exponents  # [N, 128]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)  # [N, 256]


def sincos_positions(hidden_size: int, grid_side: int) -> Tensor:
    """Return the fixed table of positions [1, grid_side², hidden_size] of a square grid, in fp64.

    The first half of the channels encodes the column and the second the row, each as in arXiv 1706.03762,
    section 3.5: all sines, then all cosines.
    """
    exponents = torch.arange(hidden_size // 4, dtype=torch.float64) / (hidden_size // 4)
    angles = torch.arange(grid_side, dtype=torch.float64)[:, None] * MAX_PERIOD**-exponents  # [G, D/4]
    along = torch.cat([angles.sin(), angles.cos()], dim=-1)  # [G, D/2]
    column = along[None, :, :].expand(grid_side, -1, -1)  # [G, G, D/2]
    row = along[:, None, :].expand(-1, grid_side, -1)  # [G, G, D/2]
    return torch.cat([column, row], dim=-1).reshape(1, grid_side**2, hidden_size)  # [1, G*G, D]


def grid_rotation(head_size: int, grid_side: int, device: torch.device) -> Rotation:
    """Return by which angles the tokens of a square grid are rotated: cosines and sines, fp32 [grid_side², head_size].

    Each pair of neighbouring numbers has one angle, the token's place times a frequency (arXiv 2104.09864, section
    3.2.2): the row's for pairs in the first half of a head, the column's in the second.
    """
    exponents = torch.arange(head_size // 4, dtype=torch.float32, device=device) / (head_size // 4)
    angles = torch.arange(grid_side, dtype=torch.float32, device=device)[:, None] * MAX_PERIOD**-exponents  # [G, d/4]
    along = angles.repeat_interleave(2, dim=-1)  # [G, d/2]
    row = along[:, None, :].expand(-1, grid_side, -1)  # [G, G, d/2]
    column = along[None, :, :].expand(grid_side, -1, -1)  # [G, G, d/2]
    whole = torch.cat([row, column], dim=-1).flatten(0, 1)  # [G*G, d]
    return whole.cos(), whole.sin()


def rotated(heads: Tensor, rotation: Rotation) -> Tensor:
    """Rotate each pair of neighbouring numbers of queries or keys [N, T, H, d] by its token's angle.

    ``rotation`` is [T, d], the same for all images, or [N, T, d]; products are in fp32.
    """
    cosine, sine = (table.unsqueeze(-2) for table in rotation)  # 2 x [(N,) T, 1, d]
    first, second = heads.unflatten(-1, (-1, 2)).unbind(-1)  # 2 x [N, T, H, d/2]
    turned = torch.stack([-second, first], dim=-1).flatten(-2)  # [N, T, H, d], by a right angle
    return (heads * cosine + turned * sine).to(heads.dtype)
