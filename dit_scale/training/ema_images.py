"""What the EMA draws while a run goes on: for preview grids, and to be judged."""

from collections.abc import Callable
from typing import TypeVar

from dit_scale.autoencoder import Autoencoder, load_autoencoder
from dit_scale.config import Config
from dit_scale.data.loader import LatentDataset
from dit_scale.sampling import Sampler
from dit_scale.supervision.conveniences import Conveniences
from dit_scale.training.data import autoencoder_folder
from dit_scale.training.ema import ShardedEMA

T = TypeVar("T")


def decoder_of_run(dataset: LatentDataset, device: str) -> Autoencoder:
    """Return what decodes the latents of a run."""
    return load_autoencoder(dataset.manifest.autoencoder, folder=autoencoder_folder(dataset), device=device)


def sampler_of_run(config: Config, dataset: LatentDataset, decoder: Autoencoder, device: str) -> Sampler:
    """Return what draws in a run, without weights: each drawing takes the average that there is by then."""
    latents, kernels = dataset.manifest.latents, config.engine.kernels
    return Sampler.of(config, latents, dataset.class_names, decoder, device, kernels)


def with_average(
    sampler: Sampler, ema: ShardedEMA, conveniences: Conveniences, what: str, step: int, work: Callable[[Sampler], T]
) -> T | None:
    """Return what ``work`` makes of a sampler with the whole average, or None on all ranks where it fails on any.

    Collective; ``work`` itself must not be.
    """
    parts = conveniences.together(what, lambda: ema.laid_out(sampler.device), step)
    if parts is None:
        return None
    weights = ema.completed(parts)

    def draw() -> T:
        return work(sampler.with_weights(weights, "ema of this run", {"step": step, "weights": "ema"}))

    return conveniences.together(what, draw, step)
