"""Discrete noise schedules: their betas, the tables that follow from them, and respacing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise, repeat
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dit_scale.errors import InputError, nearest

Table = NDArray[np.float64]


def linear_betas(num_timesteps: int) -> Table:
    """Return betas from 1e-4 to 0.02 for 1,000 steps, scaled for other numbers (DDPM, 2006.11239, section 4)."""
    scale = 1000 / num_timesteps
    return np.linspace(scale * 1e-4, min(scale * 0.02, 0.999), num_timesteps)


def cosine_betas(num_timesteps: int) -> Table:
    """Return the betas whose alpha² falls as a squared cosine (Improved DDPM, arXiv 2102.09672, eq. 17)."""
    offset = 0.008
    angles = (np.arange(num_timesteps + 1) / num_timesteps + offset) / (1 + offset) * math.pi / 2
    alpha_bar = np.cos(angles) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


SCHEDULES = {"linear": linear_betas, "cosine": cosine_betas}


def build_schedule(name: str, num_timesteps: int) -> "NoiseSchedule":
    """Build the schedule ``name``; InputError where it is unknown or has no steps."""
    if name not in SCHEDULES:
        raise InputError(f"schedule {name!r} is unknown{nearest(name, SCHEDULES)}")
    if num_timesteps < 1:
        raise InputError(f"num_timesteps {num_timesteps} is less than 1; 1000 is the published value")
    return NoiseSchedule(SCHEDULES[name](num_timesteps), np.arange(num_timesteps))


class Tables(NamedTuple):
    """What noising and denoising need of each step: [K] tensors, or [N, 1, 1, 1] of each sample's step."""

    timestep: Tensor
    alpha: Tensor
    sigma: Tensor
    previous_alpha: Tensor
    previous_sigma: Tensor
    posterior_x0: Tensor
    posterior_noised: Tensor
    posterior_log_variance: Tensor
    log_beta: Tensor

    def at(self, step: Tensor) -> "Tables":
        """Take the entries of each sample's step [N], shaped [N, 1, 1, 1] to multiply latents."""
        return Tables(*(table[step][:, None, None, None] for table in self))  # 9 x [N, 1, 1, 1]


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """K noising steps: the beta of each, and the timestep that the network is told at each."""

    betas: Table
    timesteps: NDArray[np.int64]
    _on_device: dict[torch.device, Tables] = field(default_factory=dict, init=False, repr=False)

    @property
    def num_steps(self) -> int:
        """The number K of steps."""
        return len(self.betas)

    @property
    def alphas_cumprod(self) -> Table:
        """The share alpha² of the latent's variance that is left after each step (DDPM, section 2)."""
        return np.cumprod(1 - self.betas)

    @property
    def posterior_variance(self) -> Table:
        """The variance of q(x_{t-1} | x_t, x_0): DDPM (arXiv 2006.11239), eq. 7."""
        alpha_bar, previous = self.alphas_cumprod, self._previous_alphas_cumprod
        return self.betas * (1 - previous) / (1 - alpha_bar)

    @property
    def posterior_log_variance(self) -> Table:
        """The logarithm of ``posterior_variance``; step 0, where that is 0, takes step 1's, as published."""
        variance = self.posterior_variance
        return np.log(np.append(variance[1:2] if len(variance) > 1 else self.betas, variance[1:]))

    @property
    def posterior_mean_coefficients(self) -> tuple[Table, Table]:
        """The weights of x_0 and of x_t in the mean of q(x_{t-1} | x_t, x_0): DDPM, eq. 7."""
        alpha_bar, previous = self.alphas_cumprod, self._previous_alphas_cumprod
        of_x0 = np.sqrt(previous) * self.betas / (1 - alpha_bar)
        of_noised = np.sqrt(1 - self.betas) * (1 - previous) / (1 - alpha_bar)
        return of_x0, of_noised

    @property
    def _previous_alphas_cumprod(self) -> Table:
        return np.append(1.0, self.alphas_cumprod[:-1])

    def tables(self, device: torch.device) -> Tables:
        """Return the tables as fp32 tensors, rounded from fp64 and copied to ``device`` once."""
        if device not in self._on_device:
            alpha_bar, previous = self.alphas_cumprod, self._previous_alphas_cumprod
            columns = (
                np.sqrt(alpha_bar),
                np.sqrt(1 - alpha_bar),
                np.sqrt(previous),
                np.sqrt(1 - previous),
                *self.posterior_mean_coefficients,
                self.posterior_log_variance,
                np.log(self.betas),
            )
            in_fp32 = (torch.tensor(column, dtype=torch.float32, device=device) for column in columns)
            self._on_device[device] = Tables(torch.tensor(self.timesteps, device=device), *in_fp32)
        return self._on_device[device]

    def respaced(self, steps: Sequence[int]) -> "NoiseSchedule":
        """Keep only ``steps``, with betas that leave alpha unchanged there (2102.09672, section 4, eq. 19)."""
        kept = self.alphas_cumprod[list(steps)]
        betas = 1 - kept / np.append(1.0, kept[:-1])
        return NoiseSchedule(betas, self.timesteps[list(steps)])


def space_timesteps(num_timesteps: int, respacing: str) -> list[int]:
    """Choose which of ``num_timesteps`` to keep, in rising order.

    ``"250"`` keeps 250 evenly spaced, both ends among them (2102.09672, section 4); ``"10,20,30"`` cuts the
    schedule in three equal sections and keeps so many of each; ``"ddim25"`` keeps every s-th from 0, for the
    whole s that yields 25 (DDIM, arXiv 2010.02502, appendix D.2).

    Raises:
        InputError: no such spacing, or more steps than there are.
    """
    if respacing.startswith("ddim") and respacing[4:].isdecimal():
        return _strided(num_timesteps, int(respacing[4:]))
    parts = respacing.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise InputError(f"respacing {respacing!r} is not like '250', 'ddim25' or '10,20,30'; write one of these")
    steps: list[int] = []
    for section, count in zip(_sections(num_timesteps, len(parts)), map(int, parts), strict=True):
        if not 1 <= count <= len(section):
            raise InputError(
                f"respacing {respacing!r} keeps {count} of {len(section)} timesteps; "
                f"choose a number from 1 to {len(section)}"
            )
        stride = (len(section) - 1) / max(count - 1, 1)
        # A running sum, not a product: it rounds halves as the published spacing does.
        steps += [section[round(place)] for place in accumulate(repeat(stride, count - 1), initial=0.0)]
    return steps


def _sections(num_timesteps: int, count: int) -> list[range]:
    """Cut the timesteps into ``count`` sections; the first take one more where they do not come out even."""
    size, extra = divmod(num_timesteps, count)
    starts = [index * size + min(index, extra) for index in range(count + 1)]
    return [range(start, end) for start, end in pairwise(starts)]


def _strided(num_timesteps: int, count: int) -> list[int]:
    possible = {math.ceil(num_timesteps / stride): stride for stride in range(num_timesteps, 0, -1)}
    if count not in possible:
        closest = min(possible, key=lambda other: abs(other - count))
        raise InputError(
            f"no whole stride through {num_timesteps} timesteps takes {count} ddim steps; the nearest is {closest}"
        )
    return list(range(0, num_timesteps, possible[count]))
