"""The validation loss: the mean over held-out records, each with the same draws every time."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from dit_scale.config import Config
from dit_scale.data.loader import LatentDataset
from dit_scale.diffusion import total
from dit_scale.distributed.runtime import World
from dit_scale.distributed.sharing import shares
from dit_scale.training.loss import LossFunction

_SEED = 0x76616C6964  # "valid": apart from the draws of training


class Validation:
    """The loss of the model as it stands over records that training never sees."""

    def __init__(self, dataset: LatentDataset, loss_function: LossFunction, config: Config, world: World):
        self._dataset, self._world = dataset, world
        self._records = dataset.held_out()[: config.validation.num_images]
        self._loss_function = replace(
            loss_function, seed=loss_function.seed + _SEED, label_dropout=0.0, auxiliary=(), routing=None
        )
        self._micro_batch = config.train.micro_batch_size_per_gpu

    @property
    def num_images(self) -> int:
        """Images that the loss is a mean over."""
        return len(self._records)

    @torch.no_grad()
    def loss(self, engine: Any) -> float:
        """Return the mean loss (collective: each rank computes its part)."""
        loss_sum = torch.zeros((), dtype=torch.float64, device=engine.device)
        engine.eval()
        for share in shares(range(len(self._records)), self._micro_batch, self._world, is_collective=True):
            places = np.array(share.filled)
            is_own = np.arange(len(places)) < len(share.own)
            moments, conditions = self._dataset.read(self._records[places], np.zeros(len(places), bool))
            moments, conditions, positions, counted = (
                tensor.to(engine.device)
                for tensor in (moments, conditions, torch.from_numpy(places), torch.from_numpy(is_own))
            )
            terms = self._loss_function(engine, moments, conditions, positions)
            loss_sum += (total(terms).double() * counted).sum()
        engine.train()
        dist.all_reduce(loss_sum)
        return loss_sum.item() / len(self._records)
