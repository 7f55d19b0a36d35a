"""Another run or checkpoint whose network guides: autoguidance (Karras et al., arXiv 2406.02507)."""

import logging
from dataclasses import fields
from functools import cache
from pathlib import Path

from dit_scale.checkpoint import Checkpoint, open_whole, weights_of
from dit_scale.checkpoint.averages import EMA, youth_of
from dit_scale.checkpoint.post_hoc import weights_digest
from dit_scale.classes import ClassNames
from dit_scale.conditioning import build_condition
from dit_scale.config import OF_TRAINING, Config, config_from, used
from dit_scale.config.fields import shown
from dit_scale.errors import InputError, nearest
from dit_scale.latents import LatentSpec
from dit_scale.models import DiT
from dit_scale.recipe import model_of
from dit_scale.sampling.weaker import KINDS
from dit_scale.weights import load_trained

log = logging.getLogger(__name__)


@cache
def opened(path: str) -> Checkpoint:
    """Open the checkpoint that a path means, the first time that it is asked for; what its run saves later is not seen.

    Raises InputError where there is none.
    """
    if not Path(path).exists():
        raise InputError(f"guide_by '{path}' is not the path of a run or a checkpoint{nearest(path, KINDS)}")
    checkpoint = open_whole(Path(path))
    if said := youth_of(checkpoint, EMA):  # at a level that rank zero alone shows
        log.info("guide_by '%s': %s", path, said)
    return checkpoint


def origin_of(checkpoint: Checkpoint, weights: str) -> dict[str, object]:
    """Return whose weights a checkpoint's are, for a protocol."""
    return {
        "step": checkpoint.description.position.step,
        "weights": weights,
        "weights_digest": weights_digest(checkpoint, weights),
    }


def guide_network(path: str, kernels: str) -> DiT:
    """Return the network of the run, or checkpoint, at a path with its EMA."""
    checkpoint = opened(path)
    config = config_from(Config, checkpoint.description.config)
    model = model_of(config, _latents(checkpoint), len(_class_names(checkpoint)), kernels)
    load_trained(model, weights_of(checkpoint, EMA), str(checkpoint.folder))
    return model


def check_guide(path: str, config: Config, latents: LatentSpec, choices: ClassNames) -> None:
    """Raise InputError where the run, or checkpoint, at a path has other latents, classes or outputs than a model."""
    checkpoint = opened(path)
    theirs = config_from(Config, checkpoint.description.config)
    pairs = [
        (f"latents of {entry.name}", getattr(latents, entry.name), getattr(_latents(checkpoint), entry.name))
        for entry in fields(LatentSpec)
    ]
    pairs.append(("model.condition", config.model.condition, theirs.model.condition))
    mine, others = used(config).diffusion, used(theirs).diffusion
    pairs += [
        (f"diffusion.{entry.name}", getattr(mine, entry.name), getattr(others, entry.name))
        for entry in fields(mine)
        if entry.name not in OF_TRAINING
    ]
    for what, here, there in pairs:
        if here != there:
            raise InputError(f"guide_by '{path}' has {what} {shown(there)}, and this model {shown(here)}; {_FIX}")
    names = _class_names(checkpoint)
    if build_condition(theirs.model.condition, len(names), has_null=False).choices(names) != choices:
        raise InputError(f"guide_by '{path}' has other classes, or in another order, than this model; {_FIX}")


_FIX = "give a run of the same latents, classes and objective"


def _latents(checkpoint: Checkpoint) -> LatentSpec:
    return LatentSpec.from_json(checkpoint.description.data["latent"])


def _class_names(checkpoint: Checkpoint) -> ClassNames:
    return ClassNames(checkpoint.description.data["class_names"])
