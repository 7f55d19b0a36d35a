"""`dit-scale inspect`: what a shard folder holds, as a table, and some of its records as pictures."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

from dit_scale.autoencoder import EMBEDDED, load_autoencoder, to_uint8
from dit_scale.autoencoder import FILE_NAME as AUTOENCODER_FILE
from dit_scale.data.dataset import LatentDataset
from dit_scale.data.folder import ShardFolder
from dit_scale.data.shards import WAY_OUT
from dit_scale.errors import InputError
from dit_scale.files import make_writable_folder
from dit_scale.latents import sample_latent
from dit_scale.pictures import labelled_grid, write_png


def inspect(path: str, out: Path, num_classes: int = 8, images_per_class: int = 4, cache: Path | None = None) -> None:
    """Print what a shard folder holds and write a grid of records: the crop if kept, decoded, its horizontal flip."""
    make_writable_folder(out.absolute().parent, "the picture's folder")
    dataset = LatentDataset.open(path, cache=cache)
    folder = dataset.folders[0]
    Console().print(_table(folder))
    rows = _rows(dataset, num_classes, images_per_class)
    title = ", ".join(["crop"] * (dataset.manifest.crops is not None) + ["record", "mirror image"][: dataset.mirrors])
    write_png(labelled_grid(rows, title=f"{path}: {title}"), out)
    print(f"records of {len(rows)} classes decoded to {out}")


def _table(folder: ShardFolder) -> Table:
    manifest = folder.manifest
    latents, statistics = manifest.latents, manifest.statistics
    per_class = np.bincount(folder.labels, minlength=len(manifest.class_names))
    crop_bytes = sum(file.num_bytes for file in manifest.crop_files(*manifest.shards))
    facts = {
        "records": f"{manifest.num_records:,}",
        "shards": f"{len(manifest.shards):,} ({manifest.container}), {manifest.num_bytes - crop_bytes:,} bytes",
        "mirrors": str(manifest.mirrors),
        "rejected images": str(manifest.rejected),
        "classes": f"{len(manifest.class_names)}: {_shortened(manifest.class_names)}",
        "records a class": f"{per_class.min()} to {per_class.max()}, median {np.median(per_class):g}",
        "latent": f"{' x '.join(map(str, latents.shape))}, stored as {manifest.stored.dtype}"
        + ("" if manifest.stored.has_variance else " without variance"),
        "scale": _numbers(latents.scale),
        "shift": _numbers(latents.shift),
        "mean before scaling": _numbers(statistics.mean),
        "deviation before scaling": _numbers(statistics.std),
        "rms after scaling": f"{manifest.normalised_rms:.3f} (training expects about 1)",
        "autoencoder": f"{manifest.autoencoder['name']} ({manifest.autoencoder['kind']}, "
        f"{manifest.autoencoder['sha256'][:12]})",
        **_quality(folder),
        "images": f"{manifest.transform.name}, {manifest.transform.image_size} px",
        "crops": f"kept, uint8, {crop_bytes:,} bytes" if manifest.crops else "not kept",
        "fingerprint": manifest.fingerprint,
    }
    table = Table(show_header=False, title=folder.storage.location)
    table.add_column()
    table.add_column(overflow="fold")  # the fingerprint whole, however narrow the terminal
    for name, value in facts.items():
        table.add_row(name, value)
    return table


def _quality(folder: ShardFolder) -> dict[str, str]:
    """Return how well the autoencoder restores images, where that was measured when it was fitted."""
    if folder.manifest.autoencoder["kind"] not in EMBEDDED:
        return {}
    folder.storage.content(AUTOENCODER_FILE)
    psnr = load_autoencoder(folder.manifest.autoencoder, folder=folder.storage.folder()).psnr
    return {} if psnr is None else {"restored images": f"{psnr:.2f} dB (PSNR, on images that it was fitted on)"}


@torch.no_grad()
def _rows(dataset: LatentDataset, num_classes: int, images_per_class: int) -> list[tuple[str, list[np.ndarray]]]:
    """Decode records of classes spread evenly, the posterior's mean of each."""
    folder = dataset.folders[0]
    folder.storage.content(AUTOENCODER_FILE)
    autoencoder = load_autoencoder(dataset.manifest.autoencoder, folder=folder.storage.folder())
    latents = dataset.manifest.latents
    present = np.unique(folder.labels)
    chosen = present[np.unique(np.linspace(0, len(present) - 1, min(num_classes, len(present))).astype(int))]
    rows = []
    for label in chosen.tolist():
        records = np.flatnonzero(folder.labels == label)
        records = records[np.unique(np.linspace(0, len(records) - 1, min(images_per_class, len(records))).astype(int))]
        mirrored = np.tile(np.arange(dataset.mirrors) == 1, len(records))
        moments, _ = dataset.read(np.repeat(records, dataset.mirrors), mirrored)
        latent = sample_latent(moments, torch.zeros(len(moments), *latents.shape), latents)
        images = to_uint8(autoencoder.decode(latents.denormalise(latent)))
        if dataset.manifest.crops:
            images = _after_crops(dataset, records, images)
        rows.append((dataset.class_names.title(label), list(images.permute(0, 2, 3, 1).numpy())))
    return rows


def _after_crops(dataset: LatentDataset, records: npt.NDArray[np.int64], images: torch.Tensor) -> torch.Tensor:
    """Put the crop of each record before what its mirrors were decoded to, [n * (1 + M), 3, S, S]."""
    dataset.folders[0].prepare_crops()
    crops, damaged = dataset.read_crops(records, np.zeros(len(records), bool))
    for how in damaged.values():
        raise InputError(f"{how}; {WAY_OUT}")
    decoded = images.view(len(records), -1, *images.shape[1:])  # [n, M, 3, S, S]
    return torch.cat((crops[:, None], decoded), dim=1).flatten(0, 1)


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4g}" for value in values[:8]) + (", …" if len(values) > 8 else "")


def _shortened(names: tuple[str, ...]) -> str:
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
