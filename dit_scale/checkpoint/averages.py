"""Averages of the weights with a constant decay: what checkpoints call them, and how much of one is still its start.

After ``n`` updates ``ema = decay * ema + (1 - decay) * weights`` holds ``decay ** n`` of what it began with.
"""

import math

from dit_scale.checkpoint.reading import Checkpoint

EMA = "ema"
"""The kind under which a checkpoint keeps the average that previews and samples show."""
YOUNG = 0.01
"""More than this part of the start is told: it is beyond what rounding to bf16 changes (one in 256), and a decay of
0.9999 is below it after 46,050 updates, before the 50,000 at which published runs are first scored."""


def ema_kind(decay: float) -> str:
    """Return the kind under which a checkpoint keeps a further average."""
    return f"{EMA}-{decay:g}"


def decay_of(checkpoint: Checkpoint, kind: str) -> float | None:
    """Return the constant decay of a kind of weights; None for the weights themselves and averages of another profile.

    Imported weights are called ``ema`` and are no average: only a training run has masters beside them.
    """
    train = checkpoint.description.config.get("train") or {}
    decays = {ema_kind(decay): decay for decay in train.get("extra_ema_decays") or ()} | {EMA: train.get("ema_decay")}
    return decays.get(kind) if "master" in checkpoint.kinds else None


def youth(decay: float, updates: int) -> str | None:
    """Say how much of an average is still what it began with; None where that is at most YOUNG."""
    share = decay**updates
    if share <= YOUNG:
        return None
    enough = math.ceil(math.log(YOUNG) / math.log(decay)) if 0.0 < decay < 1.0 else 1
    return (
        f"after {updates:,} updates of decay {decay:g} it is {share:.0%} what the run began with, and more than "
        f"{YOUNG:.0%} until update {enough:,}"
    )


def youth_of(checkpoint: Checkpoint, kind: str) -> str | None:
    """Say how much of a checkpoint's weights of a kind is still what its run began with; None where that is little."""
    decay = decay_of(checkpoint, kind)
    said = None if decay is None else youth(decay, checkpoint.adam_step)
    return said and f"average '{kind}' of {checkpoint.folder.name} is young: {said}"
