"""Muon for the matrices of blocks, AdamW for the rest.

Keller Jordan et al., kellerjordan.github.io/posts/muon. The length of an update is matched to AdamW's (Liu et al.,
arXiv 2502.16982, equation 4), so that one learning rate and weight decay fit both; a rate of its own may be given.
"""

from functools import partial

import torch

from dit_scale.config import TrainSection
from dit_scale.optim import adamw
from dit_scale.optim.description import Algorithm, Group, block_matrices, everything

_NEWTON_SCHULZ_STEPS = 5  # PyTorch's default


def orthogonalisation_flops(shape: torch.Size) -> int:
    """Return the FLOPs of Newton-Schulz: in each iteration X X', its square, and the product of both with X."""
    short, long = sorted(shape)
    return _NEWTON_SCHULZ_STEPS * (4 * short**2 * long + 2 * short**3)


MUON = Algorithm(
    "Muon",
    partial(torch.optim.Muon, adjust_lr_fn="match_rms_adamw"),
    ("momentum_buffer",),
    needs_whole=True,
    flops=orthogonalisation_flops,
)


def groups(train: TrainSection) -> list[Group]:
    """Return the two groups."""
    own = train.muon_learning_rate
    scale = 1.0 if own is None else own / train.learning_rate
    return [
        Group(block_matrices, MUON, train.weight_decay, scale),
        Group(everything, adamw.algorithm(train), train.weight_decay),
    ]
