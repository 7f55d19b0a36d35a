"""The weights that a new run begins with, where ``init_from`` names some."""

import logging
from pathlib import Path

from torch import Tensor

from dit_scale.checkpoint import open_whole, resolve, weights_of
from dit_scale.checkpoint.averages import EMA, youth_of
from dit_scale.errors import InputError
from dit_scale.interop import load_into, read_weights, refuse_folder
from dit_scale.interop.pipeline_folder import INDEX
from dit_scale.models import DiT

log = logging.getLogger(__name__)


def load_initial(model: DiT, init_from: str) -> None:
    """Load the EMA of a run or a checkpoint, or a file's weights; raises InputError where they are not the model's."""
    load_into(model, _weights_at(Path(init_from)), init_from)


def _weights_at(origin: Path) -> dict[str, Tensor]:
    if not origin.is_dir():
        return read_weights(origin)
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
    if said := youth_of(checkpoint, EMA):  # at a level that rank zero alone shows
        log.info("%s; dit-scale export --weights master writes the trained weights, for init_from=FILE", said)
    return weights_of(checkpoint, EMA)
