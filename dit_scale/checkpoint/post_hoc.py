"""Averages of the weights over any length, made after training from a few that were kept.

A power-function average after ``t`` updates weighs the weights of update ``u`` by ``u ** gamma``; its relative width is
the deviation of that profile over ``t``. Karras et al., arXiv 2312.02696, section 3.1 and 3.2, appendix C.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from torch import Tensor

from dit_scale.checkpoint.layout import newest_first
from dit_scale.checkpoint.reading import Checkpoint, open_whole
from dit_scale.errors import InputError

_PREFIX = "ema-power-"
_WIDEST = 0.28
"""A flat profile, gamma 0, has the width 12 ** -0.5."""


@dataclass(frozen=True)
class Profile:
    """How an average weighs the updates before it."""

    updates: float
    """At which it was taken."""
    gamma: float

    def dot(self, other: "Profile") -> float:
        """Return the integral of the product of the two profiles, each of which has the integral 1."""
        both = self.gamma + other.gamma + 1.0
        shorter = min(self.updates, other.updates)
        logarithm = both * np.log(shorter) - sum((one.gamma + 1.0) * np.log(one.updates) for one in (self, other))
        return float((self.gamma + 1.0) * (other.gamma + 1.0) / both * np.exp(logarithm))


def power_kind(width: float) -> str:
    """Return the kind under which checkpoints keep a power-function average."""
    return f"{_PREFIX}{width:g}"


def gamma_of(width: float) -> float:
    """Return the exponent of a relative width, the deviation of its profile; raises InputError where there is none."""
    if not 0.0 < width <= _WIDEST:
        raise InputError(f"the relative width {width:g} of a power-function EMA is not above 0 and at most {_WIDEST:g}")
    inverse = width**-2.0
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


def decay_at(update: int, gamma: float) -> float:
    """Return the decay at update number ``update``, counted from 1, where it is 0."""
    return float((1.0 - 1.0 / update) ** (gamma + 1.0))


def coefficients(kept: Sequence[Profile], wanted: Profile) -> npt.NDArray[np.float64]:
    """Return the combination of the kept profiles that is nearest to the wanted one, by least squares."""
    products = np.array([[one.dot(other) for other in kept] for one in kept])
    return np.linalg.solve(products, np.array([one.dot(wanted) for one in kept]))


def reconstruct(checkpoint: Checkpoint, width: float) -> dict[str, Tensor]:
    """Return the weights at a checkpoint, averaged with a relative width, from its run's checkpoints up to it.

    Raises InputError where they keep no power-function averages, or are damaged.
    """
    folders = [folder for folder in newest_first(checkpoint.folder.parent) if folder.name <= checkpoint.folder.name]
    kept = [
        (source, kind, Profile(source.adam_step, gamma_of(float(kind.removeprefix(_PREFIX)))))
        for source in map(open_whole, folders)
        for kind in source.kinds
        if kind.startswith(_PREFIX) and source.adam_step > 0
    ]
    if not kept:
        raise InputError(
            f"'{checkpoint.folder.parent}' keeps no power-function averages; train with "
            f"train.power_ema_widths=[0.05,0.1] and checkpoint.keep_every_steps"
        )
    wanted = Profile(checkpoint.adam_step, gamma_of(width))
    result = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in checkpoint.shapes.items()}
    for (source, kind, _), weight in zip(kept, coefficients([profile for *_, profile in kept], wanted), strict=True):
        for name, value in source.whole(kind).items():
            result[name].add_(value, alpha=float(weight))
    newest, newest_kind, _ = kept[0]
    for name in _never_trained(kept):
        result[name] = newest.read(newest_kind, name, 0, result[name].numel()).view(result[name].shape)
    return {name: value.float() for name, value in result.items()}


def _never_trained(kept: Sequence[tuple[Checkpoint, str, Profile]]) -> set[str]:
    """Return the names of weights whose bits no update has changed: combined, they would come out rounded."""
    seen: dict[str, set[str]] = {}
    for source, kind, _ in kept:
        for digests in (source.content_digests[kind], source.content_digests["master"]):
            for name, digest in digests.items():
                seen.setdefault(name, set()).add(digest)
    return {name for name, digests in seen.items() if len(digests) == 1}


def weights_of(checkpoint: Checkpoint, kind: str) -> dict[str, Tensor]:
    """Return the weights that a user means: a kind that the checkpoint holds, or ``post-hoc-WIDTH``."""
    prefix = "post-hoc-"
    if kind.startswith(prefix):
        try:
            width = float(kind.removeprefix(prefix))
        except ValueError as error:
            raise InputError(f"weights '{kind}' name no width; give one such as post-hoc-0.1") from error
        return reconstruct(checkpoint, width)
    if kind not in checkpoint.weight_kinds:
        choices = ", ".join(checkpoint.weight_kinds)
        raise InputError(f"'{checkpoint.folder}' holds no weights '{kind}'; choose one of {choices}")
    return checkpoint.whole(kind)


def weights_digest(checkpoint: Checkpoint, kind: str) -> str:
    """Return a digest of weights that does not depend on who saved them; a post-hoc average has its sources'."""
    digests = checkpoint.content_digests
    sources = {kind: digests[kind]} if kind in digests else {k: d for k, d in digests.items() if k.startswith(_PREFIX)}
    return xxhash.xxh3_128_hexdigest(json.dumps([kind, sources], sort_keys=True))
