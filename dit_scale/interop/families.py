"""Whose weights they are, by their names, and what the weights of each do not tell of time.

A network that is told 1 at the data and one that is told 0 there have the same shapes; the one's weights taken for the
other's draw noise without an error.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from dit_scale.config import DiffusionConfig
from dit_scale.errors import InputError
from dit_scale.interop.architecture import Architecture

log = logging.getLogger(__name__)

PROJECTORS = "projectors."
_FOURIER = "t_embedder.W"
_RMSNORM, _SWIGLU, _HEAD = "blocks.0.norm1.weight", "blocks.0.mlp.w12.weight", "s_embedder.proj.weight"


@dataclass(frozen=True)
class Family:
    """Published code that names its weights like no other."""

    name: str
    sign: str
    """The names that tell."""
    time_at_data: int
    time_shift: float | None = 1.0
    """As ``diffusion.time_shift``."""


_LIGHTNINGDIT = Family("LightningDiT", f"{_RMSNORM} and {_SWIGLU}", time_at_data=1)
_REPA = Family("REPA", f"{PROJECTORS}…", time_at_data=0)
_RAE = Family("RAE", _FOURIER, time_at_data=0, time_shift=None)


def family_of(weights: Mapping[str, Tensor]) -> Family | None:
    """Return whose weights these are; None where names do not tell."""
    has_projectors = any(name.startswith(PROJECTORS) for name in weights)
    switches = [name in weights for name in (_RMSNORM, _SWIGLU)]
    if _FOURIER in weights:
        return _RAE
    if has_projectors and not any(switches) and _HEAD not in weights:
        return _REPA
    if all(switches) and not has_projectors and _HEAD not in weights:
        return _LIGHTNINGDIT
    return None


def objective_of(
    weights: Mapping[str, Tensor],
    architecture: Architecture,
    objective: str | None,
    time_at_data: int | None,
    origin: str,
) -> DiffusionConfig:
    """Return what weights were trained for, from their names and what the user says; the log tells what was taken.

    Raises InputError where neither tells, or they contradict each other.
    """
    family = family_of(weights)
    is_ambiguous = family is None and time_at_data is None and not architecture.has_published_blocks
    if is_ambiguous and objective != "gaussian":
        raise InputError(
            f"weights '{origin}' do not say whose they are; give --time-at-data 1 where their network is told 1 at the "
            f"data (LightningDiT, SiT, DDT), --time-at-data 0 where it is told 0 (REPA, RAE), or --objective gaussian"
        )
    if objective == "gaussian" or (objective, family, time_at_data) == (None, None, None):
        if time_at_data is not None:
            raise InputError(
                f"--time-at-data {time_at_data} has no effect with --objective gaussian; leave it out, or give "
                f"--objective flow"
            )
        return DiffusionConfig()
    if family is None:
        return _of_nobodys(time_at_data, origin)
    told = family.time_at_data if time_at_data is None else time_at_data
    if told != family.time_at_data:
        log.warning(
            "weights '%s' look like %s's (they hold %s), whose network is told %d at the data; --time-at-data %d is "
            "taken as asked: if samples are noise, leave it out",
            *(origin, family.name, family.sign, family.time_at_data, told),
        )
    shift = ", times shifted by the latent's size" if family.time_shift is None else ""
    log.info(
        "weights '%s' are taken as %s's (they hold %s): flow matching, and the network is told %d at the data%s",
        *(origin, family.name, family.sign, told, shift),
    )
    return DiffusionConfig(name="flow", time_at_data=told, time_shift=family.time_shift)  # type: ignore[arg-type]


def _of_nobodys(time_at_data: int | None, origin: str) -> DiffusionConfig:
    """Return flow matching for weights whose names do not tell; without a word from the user it is SiT's."""
    if time_at_data is None:
        log.info(
            "weights '%s' are taken as SiT's: the network is told 1 at the data; REPA's, whose projectors are gone, "
            "look the same and need --time-at-data 0",
            origin,
        )
    return DiffusionConfig(name="flow", time_at_data=1 if time_at_data is None else time_at_data)  # type: ignore[arg-type]


def contradiction(weights: Mapping[str, Tensor], diffusion: DiffusionConfig) -> str | None:
    """Return, in words, what weights seem to be by their names and are not under an objective of flow matching."""
    family = family_of(weights)
    if family is None or diffusion.name != "flow" or diffusion.time_at_data == family.time_at_data:
        return None
    return (
        f"by {family.sign} they look like {family.name}'s, whose network is told {family.time_at_data} at the data, "
        f"and this run's is told {diffusion.time_at_data}"
    )
