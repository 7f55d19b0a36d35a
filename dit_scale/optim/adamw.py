"""AdamW for every parameter."""

from functools import cache, partial

import torch

from dit_scale.config import TrainSection
from dit_scale.optim.description import Algorithm, Group, everything


def algorithm(train: TrainSection) -> Algorithm:
    """Return AdamW, fused: so it reads the guard's verdict on the device."""
    return _algorithm(train.beta1, train.beta2)


def groups(train: TrainSection) -> list[Group]:
    """Return one group."""
    return [Group(everything, algorithm(train), train.weight_decay)]


@cache
def _algorithm(beta1: float, beta2: float) -> Algorithm:
    build = partial(torch.optim.AdamW, betas=(beta1, beta2), fused=True)
    return Algorithm("AdamW", build, ("exp_avg", "exp_avg_sq"))
