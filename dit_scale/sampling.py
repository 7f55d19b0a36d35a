"""Weights and a solver -> images; image ``i`` depends on (seed, i) and its label alone, on any number of ranks."""

import csv
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dit_scale import draws
from dit_scale.autoencoder import Autoencoder, load_autoencoder, to_uint8
from dit_scale.checkpoint import open_whole
from dit_scale.config import Config, config_from
from dit_scale.diffusion import Objective, choose_solver, guided
from dit_scale.distributed.runtime import World, device_of, process_group, set_threads
from dit_scale.draws import Stream
from dit_scale.errors import InputError, nearest
from dit_scale.files import atomic_write, make_writable_folder, write_json
from dit_scale.latents import LatentSpec
from dit_scale.models import DiT
from dit_scale.pictures import labelled_grid, write_png
from dit_scale.recipe import model_of, objective_of

AUTOENCODER_FOLDER = "autoencoder"
"""Where a run folder keeps what decoding needs."""


@dataclass(frozen=True)
class SamplingSettings:
    """How noise becomes a latent."""

    solver: str | None = None
    """Null takes the objective's default."""
    num_sampling_steps: int = 50
    cfg_scale: float = 1.0
    guidance_channels: int | None = None
    """Guide the first channels only (the published sampler: 3), or all."""
    seed: int = 0


@torch.no_grad()
def sample_latents(
    model: DiT,
    objective: Objective,
    latents: LatentSpec,
    labels: Tensor,
    indices: Tensor,
    settings: SamplingSettings,
) -> Tensor:
    """Return final latents [N, C, H, W] for labels [N] and image indices [N]."""
    dtype = next(model.parameters()).dtype

    def denoiser(noised_latent: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        return model(noised_latent.to(dtype), timestep, label).float()

    def step_noise(step: int) -> Tensor:
        return draws.normal(settings.seed, Stream.STEP_NOISE, indices, latents.shape, chapter=step)

    return choose_solver(settings.solver, objective)(
        objective,
        guided(denoiser, labels, model.null_label, settings.cfg_scale, settings.guidance_channels),
        draws.normal(settings.seed, Stream.INITIAL_NOISE, indices, latents.shape),
        settings.num_sampling_steps,
        step_noise,
    )


@torch.no_grad()
def decode(latent: Tensor, latents: LatentSpec, autoencoder: Autoencoder) -> np.ndarray:
    """Turn final latents [N, C, H, W] into images, uint8 [N, S, S, 3]."""
    images = to_uint8(autoencoder.decode(latents.denormalise(latent)))
    return images.permute(0, 2, 3, 1).cpu().numpy()


class Sampler:
    """A trained model and all that turns noise into its images."""

    def __init__(self, path: Path, device: str, weights: str = "ema", decoder: str | None = None):
        checkpoint = open_whole(path)
        data = checkpoint.description.data
        config = config_from(Config, checkpoint.description.config)
        self.checkpoint, self.device = checkpoint, device
        self.class_names: list[str] = data["class_names"]
        self.latents = LatentSpec.from_json(data["latent"])
        self.objective = objective_of(config.diffusion, config.model.learn_sigma)
        self.model = model_of(config.model, self.latents, len(self.class_names))
        self.model.load_state_dict(checkpoint.whole(weights), strict=False)  # positions are fixed, not stored
        self.model.to(device).eval()
        run_dir = checkpoint.folder.parent.parent
        self.autoencoder = load_autoencoder(
            decoder or data["autoencoder"], folder=run_dir / AUTOENCODER_FOLDER, device=device
        )
        if self.autoencoder.channels != self.latents.channels:
            raise InputError(
                f"decoder '{decoder}' reads {self.autoencoder.channels} channels, but the model makes latents of "
                f"{self.latents.channels}; give a decoder that belongs to the encoder that they were made with"
            )

    def images(self, labels: Sequence[int], indices: Sequence[int], settings: SamplingSettings) -> np.ndarray:
        """Return images, uint8 [N, S, S, 3]."""
        latent = sample_latents(
            self.model,
            self.objective,
            self.latents,
            torch.tensor(labels, device=self.device),
            torch.tensor(indices, device=self.device),
            settings,
        )
        return decode(latent, self.latents, self.autoencoder)

    def labels_of(self, classes: Sequence[str], count: int) -> list[int]:
        """Return the label of each image: the given classes (numbers or names; none means all), in turn."""
        known = {name: label for label, name in enumerate(self.class_names)}
        chosen = []
        for name in classes:
            if name in known:
                chosen.append(known[name])
            elif name.isdigit() and int(name) < len(known):
                chosen.append(int(name))
            else:
                raise InputError(
                    f"class '{name}' is neither a number below {len(known)} nor a class name{nearest(name, known)}"
                )
        chosen = chosen or list(range(len(known)))
        return [chosen[index % len(chosen)] for index in range(count)]


def sample(
    path: Path,
    out: Path,
    num_samples: int,
    classes: Sequence[str],
    settings: SamplingSettings,
    batch_size: int = 32,
    weights: str = "ema",
    decoder: str | None = None,
) -> None:
    """Write ``out/images/000000.png`` …, labels.csv, protocol.json and a labelled grid, shared among the ranks."""
    world = World.from_environment()
    device = device_of(world)
    set_threads(world)
    sampler = Sampler(path, device, weights, decoder)
    choose_solver(settings.solver, sampler.objective)
    labels = sampler.labels_of(classes, num_samples)
    make_writable_folder(out / "images", "output folder")
    if world.is_rank_zero:  # of an earlier, larger run: whoever scores the folder must not count them
        for leftover in sorted((out / "images").glob("*.png")):
            if leftover.stem.isdigit() and int(leftover.stem) >= num_samples:
                leftover.unlink()
    with process_group(world, device):
        _write_images(sampler, labels, settings, out / "images", batch_size, world)
        torch.distributed.barrier()
    if world.is_rank_zero:
        _write_sheets(sampler, labels, settings, out, weights)
        print(f"{num_samples} images in {out / 'images'}, a grid of them in {out / 'grid.png'}")


def _write_images(
    sampler: Sampler, labels: list[int], settings: SamplingSettings, folder: Path, batch_size: int, world: World
) -> None:
    mine = range(world.rank, len(labels), world.world_size)
    batch_size = min(batch_size, len(labels))
    started = time.monotonic()
    for first in range(0, len(mine), batch_size):
        indices = list(mine[first : first + batch_size])
        # One batch size on any number of ranks, so that the arithmetic is the same for every image.
        batch = indices + [indices[-1]] * (batch_size - len(indices))
        images = sampler.images([labels[index] for index in batch], batch, settings)
        for index, image in zip(indices, images, strict=False):
            write_png(image, folder / f"{index:06d}.png")
        if world.is_rank_zero:
            done = first + len(indices)
            seconds = time.monotonic() - started
            print(
                f"sampled {done}/{len(mine)} on rank 0  {world.world_size * done / seconds:.1f} images/s  "
                f"left {seconds / done * (len(mine) - done):.0f} s",
                file=sys.stderr,
                flush=True,
            )


def _write_sheets(sampler: Sampler, labels: list[int], settings: SamplingSettings, out: Path, weights: str) -> None:
    """Write what tells a reader how the images came to be, and which is which."""
    from PIL import Image

    with atomic_write(out / "labels.csv", "w") as file:
        table = csv.writer(file)
        table.writerow(("image", "label", "class"))
        table.writerows((f"{i:06d}.png", label, sampler.class_names[label]) for i, label in enumerate(labels))
    write_json(
        out / "protocol.json",
        {
            "step": sampler.checkpoint.description.position.step,
            "weights": weights,
            "solver": settings.solver or sampler.objective.default_solver,
            "num_sampling_steps": settings.num_sampling_steps,
            "cfg_scale": settings.cfg_scale,
            "guidance_channels": settings.guidance_channels or "all",
            "seed": settings.seed,
            "num_samples": len(labels),
            "autoencoder": sampler.autoencoder.identity,
        },
    )
    most_columns, most_rows = 8, 16
    rows = []
    for label in list(dict.fromkeys(labels))[:most_rows]:
        indices = [index for index, other in enumerate(labels) if other == label][:most_columns]
        images = [np.asarray(Image.open(out / "images" / f"{index:06d}.png")) for index in indices]
        rows.append((sampler.class_names[label], images))
    write_png(labelled_grid(rows), out / "grid.png")
