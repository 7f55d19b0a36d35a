"""All that training changes: master weights, Adam's moments and the EMA; saved and restored as one."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dit_scale import checkpoint as checkpoints
from dit_scale.checkpoint import Checkpoint, Description
from dit_scale.distributed.fragments import ADAM_MOMENTS, OptimizerState
from dit_scale.distributed.runtime import World
from dit_scale.training.ema import ShardedEMA


class TrainingState:
    """The fp32 state of a run on this rank, in fragments of named parameters."""

    def __init__(self, optimizer: OptimizerState, ema_decay: float):
        self.optimizer = optimizer
        self.ema = ShardedEMA(optimizer, ema_decay)

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Begin with fp32 weights, which the engine may have rounded to bf16; the EMA begins with them, too."""
        master = self.optimizer.master
        for fragment in self.optimizer.held:
            whole = weights[fragment.name].flatten()
            fragment.of(master).copy_(whole.narrow(0, fragment.offset, fragment.numel))
        self.optimizer.publish()
        self.ema = ShardedEMA(self.optimizer, self.ema.decay)

    def save(self, folder: Path, description: Description, world: World) -> Path:
        """Write a checkpoint (collective)."""
        optimizer = self.optimizer
        return checkpoints.save(
            folder, description, optimizer.shapes, optimizer.owned, self._kinds(), optimizer.adam_step, world
        )

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Load a checkpoint of any number of ranks and any ZeRO stage, and check what was loaded (collective)."""
        optimizer = self.optimizer
        if checkpoint.shapes != optimizer.shapes:
            raise RuntimeError(f"checkpoint '{checkpoint.folder}' holds other parameters than the model has")
        for kind in ("master", *ADAM_MOMENTS):
            flats = optimizer.flats(kind)
            for fragment in optimizer.held:
                fragment.of(flats).copy_(checkpoint.read(kind, fragment.name, fragment.offset, fragment.numel))
        for fragment, tensor in zip(optimizer.owned, self.ema.tensors, strict=True):
            tensor.copy_(checkpoint.read("ema", fragment.name, fragment.offset, fragment.numel))
        optimizer.adam_step = checkpoint.adam_step
        optimizer.publish()
        self._verify(checkpoint)

    def _kinds(self) -> dict[str, list[Tensor]]:
        """Return this rank's tensors, one for each owned fragment, by kind."""
        optimizer = self.optimizer
        kinds = {}
        for kind in ("master", *ADAM_MOMENTS):
            flats = optimizer.flats(kind)
            kinds[kind] = [fragment.of(flats) for fragment in optimizer.owned]
        return kinds | {"ema": self.ema.tensors}

    def _verify(self, checkpoint: Checkpoint) -> None:
        loaded = checkpoints.content_digests(self.optimizer.owned, self._kinds(), list(self.optimizer.shapes))
        for kind, digests in checkpoint.content_digests.items():
            for name, digest in digests.items():
                if loaded[kind][name] != digest:
                    raise RuntimeError(f"{kind} of {name} is not what checkpoint '{checkpoint.folder}' saved")
