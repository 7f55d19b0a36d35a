"""`dit-scale sample`: images shared among the ranks, and only those that are missing."""

import csv
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.distributed as dist
from PIL import Image

from dit_scale.checkpoint import open_whole
from dit_scale.checkpoint.averages import youth_of
from dit_scale.distributed.runtime import World, device_of, process_group, set_threads
from dit_scale.distributed.sharing import shares
from dit_scale.files import atomic_write, full_disk_explained, make_writable_folder, remove
from dit_scale.pictures import labelled_grid, write_png
from dit_scale.progress import shown
from dit_scale.sampling.archive import write_npz
from dit_scale.sampling.drawing import SamplingSettings
from dit_scale.sampling.protocol import PROTOCOL, begin_or_go_on
from dit_scale.sampling.sampler import Sampler, sampler_of
from dit_scale.versions import versions

log = logging.getLogger(__name__)

_PNG_END = b"IEND\xaeB`\x82"


@dataclass(frozen=True)
class Request:
    """What to draw and where to put it."""

    out: Path
    num_samples: int
    classes: Sequence[int] = ()
    """Labels; empty takes all."""
    random_classes: bool = False
    """Draw each image's class instead of taking them in turn."""
    batch_size: int = 32
    """Images at once on a rank; always so many, so that the arithmetic is the same on any number of ranks."""
    npz: bool = False
    """Write samples.npz, too."""
    num_frames: int = 0
    """Pictures of the first images on their way from noise, in frames.png."""
    overwrite: bool = False
    """Remove images of another protocol instead of refusing."""


def sample(sampler: Sampler, settings: SamplingSettings, request: Request, world: World) -> None:
    """Write ``out/images/000000.png`` …, labels.csv, protocol.json and a labelled grid (collective)."""
    sampler.check(settings)
    seed = settings.seed if request.random_classes else None
    labels = sampler.labels_of(request.classes, request.num_samples, seed)
    folder = request.out / "images"
    # Before the ranks join: where this refuses, the launcher ends the others.
    missing = [_begin(sampler, settings, request, labels) if world.is_rank_zero else []]
    with process_group(world, sampler.device):
        dist.broadcast_object_list(missing, src=0)
        batch_size = min(request.batch_size, len(labels))
        with full_disk_explained(request.out):
            _write_images(sampler, labels, settings, folder, batch_size, missing[0], world)
        dist.barrier()
    if world.is_rank_zero:
        with full_disk_explained(request.out):
            _finish(sampler, settings, request, labels)
        have = f", {len(labels) - len(missing[0])} of them there before" if len(missing[0]) < len(labels) else ""
        print(f"{len(labels)} images in {folder}{have}; a grid of them in {request.out / 'grid.png'}")


def start(
    path: Path, weights: str, decoder: str | None, precision: str, compile_blocks: bool, kernels: str = "auto"
) -> tuple[Sampler, World]:
    """Open a checkpoint on this rank's device."""
    world = World.from_environment()
    device = device_of(world)
    set_threads(world)
    checkpoint = open_whole(path)
    sampler = sampler_of(checkpoint, device, weights, decoder, precision, compile_blocks, kernels)
    if world.is_rank_zero and (said := youth_of(checkpoint, weights)):
        log.warning("%s; --weights master draws with the trained weights", said)
    return sampler, world


def _begin(sampler: Sampler, settings: SamplingSettings, request: Request, labels: list[int]) -> list[int]:
    """Settle the folder's protocol and return the images that are missing from it, in order."""
    folder = request.out / "images"
    make_writable_folder(folder, "output folder")
    if request.overwrite:
        for name in ("images", PROTOCOL, "labels.csv", "grid.png", "frames.png", "samples.npz"):
            remove(request.out / name)
        folder.mkdir()
    classes = [sampler.class_names.title(label) for label in dict.fromkeys(labels)]
    protocol = {
        **sampler.described(),
        **sampler.settings_described(settings),
        "classes": classes if request.classes else "all",
        "class_choice": "random" if request.random_classes else "in turn",
        "num_samples": request.num_samples,
        "versions": versions(),
    }
    begin_or_go_on(request.out, protocol)
    return [index for index in range(request.num_samples) if not _is_whole(_png(folder, index))]


def _png(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.png"


def _is_whole(path: Path) -> bool:
    """Whether a PNG is there up to its last chunk."""
    if not path.is_file() or path.stat().st_size < len(_PNG_END):
        return False
    with path.open("rb") as file:
        file.seek(-len(_PNG_END), 2)
        return file.read() == _PNG_END


def _write_images(
    sampler: Sampler,
    labels: list[int],
    settings: SamplingSettings,
    folder: Path,
    batch_size: int,
    missing: list[int],
    world: World,
) -> None:
    done = 0
    # All ranks go at one pace, so rank zero can speak for them.
    every = shown("sampled", len(missing), lambda: min(len(missing), world.world_size * done))
    with every if world.is_rank_zero else nullcontext():
        for share in shares(missing, batch_size, world):
            images = sampler.images([labels[index] for index in share.filled], share.filled, settings)
            for index, image in zip(share.own, images, strict=False):
                write_png(image, _png(folder, index))
            done += len(share.own)


def _finish(sampler: Sampler, settings: SamplingSettings, request: Request, labels: list[int]) -> None:
    """Write what is made of all images together."""
    out, names = request.out, sampler.class_names
    with atomic_write(out / "labels.csv", "w") as file:
        table = csv.writer(file)
        table.writerow(("image", "label", "class"))
        table.writerows((f"{i:06d}.png", label, names[label]) for i, label in enumerate(labels))
    most_columns, most_rows = 8, 16
    rows = []
    for label in list(dict.fromkeys(labels))[:most_rows]:
        indices = [index for index, other in enumerate(labels) if other == label][:most_columns]
        rows.append((names.title(label), [np.asarray(Image.open(_png(out / "images", index))) for index in indices]))
    write_png(labelled_grid(rows), out / "grid.png")
    if request.npz:
        write_npz([_png(out / "images", index) for index in range(len(labels))], out / "samples.npz")
    if request.num_frames:
        first = list(range(min(most_columns, len(labels))))
        frames = sampler.frames([labels[index] for index in first], first, settings, request.num_frames)
        strips = [(names.title(labels[i]), [images[i] for _, images in frames]) for i in first]
        write_png(labelled_grid(strips, headings=[done for done, _ in frames]), out / "frames.png")
