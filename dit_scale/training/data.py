"""A run's data as its configuration says: the dataset, what checkpoints say of it, and its loader."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dit_scale.autoencoder import FILE_NAME as AUTOENCODER_FILE
from dit_scale.conditioning import condition_named
from dit_scale.config import Config, DataConfig
from dit_scale.data.loader import LatentDataset, Loader, Reading, Window
from dit_scale.distributed.runtime import World
from dit_scale.errors import InputError


def open_dataset(data: DataConfig, condition: str = "label", with_crops: bool = False) -> LatentDataset:
    """Open the shard folders of a configuration, for a condition of this name.

    ``with_crops`` has the loader give the images that became the latents, too. Raises InputError where they cannot be
    trained on.
    """
    dataset = LatentDataset.open(
        _path(data.path),
        class_names=data.class_names,
        held_out_fraction=data.held_out_fraction,
        cache=None if data.cache is None else Path(data.cache),
        cache_bytes=data.cache_bytes,
        patience_seconds=data.patience_seconds,
        stored=condition_named(condition).stored,
        with_crops=with_crops,
    )
    with ExitStack() as on_failure:
        on_failure.callback(dataset.close)
        if data.check_scale:
            _check_scale(dataset)
        on_failure.pop_all()
    return dataset


def describe(dataset: LatentDataset) -> dict[str, Any]:
    """Return what a checkpoint keeps of the data: which records, and what samplers must know."""
    return {
        "fingerprint": dataset.fingerprint(),
        "latent": asdict(dataset.manifest.latents),
        "class_names": list(dataset.class_names),
        "autoencoder": dataset.manifest.autoencoder,
    }


def open_loader(dataset: LatentDataset, config: Config, world: World, start: int, pin_memory: bool = False) -> Loader:
    """Return the loader of this rank's part of the stream from position ``start``."""
    data = config.data
    return Loader(
        dataset,
        seed=config.seed,
        global_batch_size=config.train.global_batch_size,
        rank=world.rank,
        world_size=world.world_size,
        start=start,
        window=Window(data.shuffle_block_records, data.shuffle_window_blocks) if data.shuffle_block_records else None,
        reading=Reading(
            mirror=data.mirror,
            verify=data.verify,
            on_damage=data.on_damage,
            prefetch_batches=data.prefetch_batches,
            request_batches=data.request_batches,
            patience_seconds=data.patience_seconds,
        ),
        pin_memory=pin_memory,
    )


def autoencoder_folder(dataset: LatentDataset) -> Path:
    """Return a folder on this machine with the autoencoder that made the latents."""
    storage = dataset.folders[0].storage
    try:
        storage.content(AUTOENCODER_FILE)
    except FileNotFoundError as error:
        raise InputError(
            f"'{storage.location}' has no {AUTOENCODER_FILE}; copy it from where the latents were encoded"
        ) from error
    return storage.folder()


def _path(path: Any) -> str | dict[str, float]:
    if isinstance(path, Mapping):
        return {str(place): float(weight) for place, weight in path.items()}
    return str(path)


def _check_scale(dataset: LatentDataset) -> None:
    """Refuse latents that are far from unit scale: training on them would go wrong without a word."""
    for folder in dataset.folders:
        rms = folder.manifest.normalised_rms
        if not 0.25 <= rms <= 4.0:
            raise InputError(
                f"latents of '{folder.storage.location}' have a root mean square of {rms:.3g} after scaling, far from "
                f"1; encode with another autoencoder.scale, or give data.check_scale=false if that is meant"
            )
