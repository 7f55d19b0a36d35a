"""What a latent is: its shape and scale, and the way from stored moments to a model's input."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dit_scale.errors import InputError

NO_VARIANCE_LOG_VARIANCE = -30.0
"""The log-variance that a codec without variance stores."""


@dataclass(frozen=True)
class LatentSpec:
    """Shape and normalisation of latents: ``latent = (raw - shift) * scale``, per channel.

    A single number in ``scale`` or ``shift`` stands for all channels.
    """

    channels: int
    size: int
    """Side of the square latent, in latent pixels."""
    scale: tuple[float, ...] = (1.0,)
    shift: tuple[float, ...] = (0.0,)

    def __post_init__(self) -> None:
        for name, values in (("scale", self.scale), ("shift", self.shift)):
            if len(values) not in (1, self.channels):
                raise InputError(
                    f"latent {name} has {len(values)} numbers for {self.channels} channels; give one, or one a channel"
                )
            for value in values:
                if not math.isfinite(value) or (name == "scale" and value <= 0):
                    what = "a number above 0" if name == "scale" else "a finite number"
                    raise InputError(f"latent {name} is {value:g}, which is not {what}; give such a number")

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "LatentSpec":
        """Return the spec that ``dataclasses.asdict`` made, as it reads back from JSON."""
        return cls(values["channels"], values["size"], tuple(values["scale"]), tuple(values["shift"]))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one latent, (C, H, W)."""
        return (self.channels, self.size, self.size)

    @property
    def moments_shape(self) -> tuple[int, int, int]:
        """Shape of one record's moments (mean, then log-variance), (2C, H, W)."""
        return (2 * self.channels, self.size, self.size)

    def normalise(self, raw: Tensor) -> Tensor:
        """Turn raw latents [N, C, H, W] (the autoencoder's) into final latents (the model's)."""
        scale, shift = self._columns(raw)
        return (raw - shift) * scale

    def denormalise(self, latent: Tensor) -> Tensor:
        """Turn final latents [N, C, H, W] (the model's) into raw latents (the autoencoder's)."""
        scale, shift = self._columns(latent)
        return latent / scale + shift

    def _columns(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return _column(self.scale, like.dtype, like.device), _column(self.shift, like.dtype, like.device)


@lru_cache(maxsize=32)
def _column(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return per-channel numbers as [C, 1, 1], copied to a device once and not at every step."""
    return torch.tensor(values, dtype=dtype, device=device).view(-1, 1, 1)


def sample_latent(moments: Tensor, noise: Tensor, spec: LatentSpec) -> Tensor:
    """Draw from the posterior and normalise: moments [N, 2C, H, W], noise [N, C, H, W] -> latent [N, C, H, W].

    The diagonal Gaussian of the autoencoder (Kingma & Welling, arXiv 1312.6114, eq. 9-10), in float32;
    the log-variance is clamped to [-30, 20] as diffusers does.
    """
    mean, log_variance = moments.float().chunk(2, dim=1)
    deviation = torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))
    return spec.normalise(mean + deviation * noise)
