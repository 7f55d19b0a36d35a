"""AdamW for every parameter."""

from functools import partial

import torch

from dit_scale.config import TrainSection
from dit_scale.optim.description import Algorithm, Group, everything


def algorithm(train: TrainSection) -> Algorithm:
    """Return AdamW, fused: so it reads the guard's verdict on the device."""
    build = partial(torch.optim.AdamW, betas=(train.beta1, train.beta2), fused=True)
    return Algorithm("AdamW", build, ("exp_avg", "exp_avg_sq"))


def groups(train: TrainSection) -> list[Group]:
    """Return one group."""
    return [Group(everything, algorithm(train), train.weight_decay)]
