"""Mean and standard deviation of raw latents, summed in float64 in a fixed order."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class LatentStatistics:
    """Per channel mean and standard deviation of raw latents, as drawn from the posterior, before scale and shift."""

    count: int
    """Latents, each mirror counted."""
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class LatentSums:
    """What shards add up to: per channel sums over the pixels of ``count`` latents of ``pixels`` pixels each."""

    count: int
    pixels: int
    total: npt.NDArray[np.float64]
    squares: npt.NDArray[np.float64]

    @classmethod
    def of(cls, moments: np.ndarray) -> "LatentSums":
        """Sum moments [M, 2C, h, w]; a drawn latent's expected square is ``mean**2 + variance``."""
        mean, log_variance = np.split(moments.astype(np.float64), 2, axis=1)
        squares = mean**2 + np.exp(np.clip(log_variance, -30.0, 20.0))
        pixels = moments.shape[2] * moments.shape[3]
        return cls(len(moments), pixels, mean.sum(axis=(0, 2, 3)), squares.sum(axis=(0, 2, 3)))

    def __add__(self, other: "LatentSums") -> "LatentSums":
        return LatentSums(self.count + other.count, self.pixels, self.total + other.total, self.squares + other.squares)

    def statistics(self) -> LatentStatistics:
        """Return what the sums say."""
        count = max(1, self.count * self.pixels)
        mean = self.total / count
        std = np.sqrt(np.maximum(self.squares / count - mean**2, 0.0))
        return LatentStatistics(self.count, tuple(mean.tolist()), tuple(std.tolist()))


def no_latents(channels: int, pixels: int) -> LatentSums:
    """Return the sums over nothing."""
    return LatentSums(0, pixels, np.zeros(channels), np.zeros(channels))
