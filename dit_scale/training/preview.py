"""Preview grids: the EMA's samples of fixed noise, drawn every so often while a run goes on."""

from pathlib import Path

import torch
import torch.distributed as dist

from dit_scale.autoencoder import Autoencoder
from dit_scale.config import Config
from dit_scale.diffusion import Objective, choose_solver
from dit_scale.distributed.runtime import World
from dit_scale.errors import InputError
from dit_scale.latents import LatentSpec
from dit_scale.models import DiT
from dit_scale.pictures import labelled_grid, write_png
from dit_scale.recipe import model_of
from dit_scale.sampling import SamplingSettings, decode, sample_latents
from dit_scale.training.ema import ShardedEMA


class Preview:
    """Draws ``samples/step-00000100.png``: one row a class, the same noise at every step."""

    def __init__(
        self,
        config: Config,
        objective: Objective,
        latents: LatentSpec,
        class_names: list[str],
        autoencoder: Autoencoder,
        world: World,
        device: str,
    ):
        settings = config.preview
        self._folder = Path(config.run_dir) / "samples"
        self._objective, self._latents, self._autoencoder = objective, latents, autoencoder
        self._class_names, self._world, self._device = class_names, world, device
        self._model_config = config.model
        self._per_class = settings.samples_per_class
        spread = torch.linspace(0, len(class_names) - 1, min(8, len(class_names))).long().tolist()
        classes = list(settings.classes) or list(dict.fromkeys(spread))
        self._labels = [label for label in classes for _ in range(self._per_class)]
        choose_solver(settings.solver, objective)  # a name that does not fit is refused now, not at the first grid
        if settings.cfg_scale != 1 and not config.model.label_dropout:
            raise InputError(
                f"preview.cfg_scale={settings.cfg_scale} guides, but model.label_dropout=0 leaves no null label to "
                f"guide with; give preview.cfg_scale=1"
            )
        if wrong := [label for label in classes if not 0 <= label < len(class_names)]:
            raise InputError(f"preview.classes has {wrong[0]}; the data's classes are 0 to {len(class_names) - 1}")
        self._settings = SamplingSettings(
            settings.solver, settings.num_sampling_steps, settings.cfg_scale, seed=config.seed
        )

    def draw(self, ema: ShardedEMA, step: int) -> Path:
        """Sample each rank's part of the grid with the EMA and write it (collective)."""
        model = model_of(self._model_config, self._latents, len(self._class_names)).to(self._device).eval()
        model.load_state_dict(ema.gather(self._device), strict=False)  # positions are fixed, not averaged
        mine = list(range(self._world.rank, len(self._labels), self._world.world_size))
        images = self._images(model, mine)
        parts: list[dict[int, object]] = [{} for _ in range(self._world.world_size)]
        dist.all_gather_object(parts, images)
        path = self._folder / f"step-{step:08d}.png"
        if self._world.is_rank_zero:
            everyone = {index: image for part in parts for index, image in part.items()}
            rows = [
                (self._class_names[self._labels[first]], [everyone[first + i] for i in range(self._per_class)])
                for first in range(0, len(self._labels), self._per_class)
            ]
            self._folder.mkdir(exist_ok=True)
            write_png(labelled_grid(rows, title=f"step {step}"), path)  # type: ignore[arg-type]
        return path

    def _images(self, model: DiT, indices: list[int]) -> dict[int, object]:
        if not indices:
            return {}
        labels = torch.tensor([self._labels[index] for index in indices], device=self._device)
        numbers = torch.tensor(indices, device=self._device)
        latent = sample_latents(model, self._objective, self._latents, labels, numbers, self._settings)
        return dict(zip(indices, decode(latent, self._latents, self._autoencoder), strict=True))
