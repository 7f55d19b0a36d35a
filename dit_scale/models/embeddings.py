"""What turns a latent and a timestep into vectors, and the fixed table of positions."""

import torch
from torch import Tensor, nn

NUM_FREQUENCIES = 128
MAX_PERIOD = 10_000.0


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

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(2 * NUM_FREQUENCIES, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, timestep: Tensor) -> Tensor:
        """Map ``timestep`` [N] to [N, D]."""
        weights_dtype = self.mlp.get_parameter("0.weight").dtype
        sinusoids = timestep_sinusoids(timestep)  # [N, 256]
        return self.mlp(sinusoids.to(weights_dtype))  # [N, D]


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
