"""Preview grids: the EMA's samples of fixed noise, drawn every so often while a run goes on."""

from pathlib import Path

import numpy as np
import torch

from dit_scale.config import Config
from dit_scale.distributed.runtime import World
from dit_scale.distributed.sharing import gather_on_rank_zero, shares
from dit_scale.errors import InputError
from dit_scale.pictures import labelled_grid, write_png
from dit_scale.sampling import Sampler, SamplingSettings
from dit_scale.supervision.conveniences import Conveniences
from dit_scale.training.ema import ShardedEMA
from dit_scale.training.ema_images import with_average


class Preview:
    """Draws ``samples/step-00000100.png``: one row a class, the same noise at every step."""

    def __init__(self, config: Config, sampler: Sampler, world: World, conveniences: Conveniences):
        preview = config.preview
        self._folder = Path(config.run_dir) / "samples"
        self._sampler, self._world, self._per_class = sampler, world, preview.samples_per_class
        self._conveniences = conveniences
        count = len(sampler.class_names)
        spread = torch.linspace(0, count - 1, min(8, count)).long().tolist()
        classes = list(preview.classes) or list(dict.fromkeys(spread))
        if wrong := [label for label in classes if not 0 <= label < count]:
            raise InputError(f"preview.classes has {wrong[0]}; the data's classes are 0 to {count - 1}")
        self._labels = [label for label in classes for _ in range(self._per_class)]
        self._settings = SamplingSettings.of(preview, config.seed)
        sampler.check(self._settings, "preview")

    def draw(self, ema: ShardedEMA, step: int) -> Path | None:
        """Sample each rank's part of the grid with the EMA; rank zero returns the picture, if any (collective)."""
        drawn = with_average(self._sampler, ema, self._conveniences, "preview", step, self._own_part)
        if drawn is None:
            return None
        everyone = gather_on_rank_zero(drawn, self._world)
        if self._world.is_rank_zero:
            with self._conveniences.attempt("preview", step):
                return self._write(everyone, step)
        return None

    def _own_part(self, sampler: Sampler) -> dict[int, np.ndarray]:
        """Draw this rank's images, all at once, by their places in the grid."""
        mine = [index for share in shares(range(len(self._labels)), 1, self._world) for index in share.own]
        labels = [self._labels[index] for index in mine]
        return dict(zip(mine, sampler.images(labels, mine, self._settings), strict=True)) if mine else {}

    def _write(self, everyone: dict[int, np.ndarray], step: int) -> Path:
        names = self._sampler.class_names
        rows = [
            (names.title(self._labels[first]), [everyone[first + i] for i in range(self._per_class)])
            for first in range(0, len(self._labels), self._per_class)
        ]
        path = self._folder / f"step-{step:08d}.png"
        self._folder.mkdir(exist_ok=True)
        write_png(labelled_grid(rows, title=f"step {step}"), path)
        return path
