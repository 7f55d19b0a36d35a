"""Muon for the matrices of blocks, AdamW for the rest.

Keller Jordan et al., kellerjordan.github.io/posts/muon. The length of an update is matched to AdamW's (Liu et al.,
arXiv 2502.16982, equation 4), so that one learning rate and weight decay fit both.
"""

from functools import partial

import torch

from dit_scale.config import TrainSection
from dit_scale.optim import adamw
from dit_scale.optim.description import Algorithm, Group, block_matrices, everything

MUON = Algorithm(
    "Muon", partial(torch.optim.Muon, adjust_lr_fn="match_rms_adamw"), ("momentum_buffer",), needs_whole=True
)


def groups(train: TrainSection) -> list[Group]:
    """Return the two groups."""
    return [
        Group(block_matrices, MUON, train.weight_decay),
        Group(everything, adamw.algorithm(train), train.weight_decay),
    ]
