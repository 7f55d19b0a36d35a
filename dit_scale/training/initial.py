"""The weights that a new run begins with, where ``init_from`` names some."""

import logging
from pathlib import Path

from torch import Tensor

from dit_scale.checkpoint import open_whole, resolve, weights_of
from dit_scale.checkpoint.averages import EMA, youth_of
from dit_scale.config import Config, DiffusionConfig, config_from
from dit_scale.errors import InputError
from dit_scale.interop import load_into, read_weights, refuse_folder
from dit_scale.interop.families import contradiction
from dit_scale.interop.pipeline_folder import INDEX
from dit_scale.models import DiT

log = logging.getLogger(__name__)


def load_initial(model: DiT, init_from: str, diffusion: DiffusionConfig) -> None:
    """Load the EMA of a run or a checkpoint, or a file's weights, for training under an objective.

    Raises InputError where they are not the model's, or their network is told another time at the data.
    """
    load_into(model, _weights_at(Path(init_from), diffusion), init_from)


def _weights_at(origin: Path, diffusion: DiffusionConfig) -> dict[str, Tensor]:
    if not origin.is_dir():
        weights = read_weights(origin)
        if said := contradiction(weights, diffusion):  # logged like the next, for rank zero alone
            log.info(
                "init_from=%s: %s; set diffusion.time_at_data to the other, unless they were trained so", origin, said
            )
        return weights
    if (origin / INDEX).is_file():
        raise InputError(
            f"init_from={origin} is a DiTPipeline's folder; run dit-scale import {origin} --out RUN and give RUN"
        )
    try:
        resolve(origin)
    except InputError:
        refuse_folder(origin)
        raise
    checkpoint = open_whole(origin)
    _check_time(config_from(Config, checkpoint.description.config).diffusion, diffusion, origin)
    if said := youth_of(checkpoint, EMA):  # at a level that rank zero alone shows
        log.info("%s; dit-scale export --weights master writes the trained weights, for init_from=FILE", said)
    return weights_of(checkpoint, EMA)


def _check_time(theirs: DiffusionConfig, ours: DiffusionConfig, origin: Path) -> None:
    """Raise InputError where both are flows, and the networks are told another time at the data."""
    if theirs.name == ours.name == "flow" and theirs.time_at_data != ours.time_at_data:
        raise InputError(
            f"the network of init_from={origin} is told {theirs.time_at_data} at the data and this run has "
            f"diffusion.time_at_data={ours.time_at_data}, with which it would learn everything again; set "
            f"diffusion.time_at_data={theirs.time_at_data}"
        )
