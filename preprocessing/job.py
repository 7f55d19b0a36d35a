"""One encoding: its plan, and what of it is finished.

The folder ``encoding/`` beside the shards keeps it: ``plan.json`` says all that determines the shards' bytes,
``source.npy`` is the listing of the images, and ``shard-000000.json`` is a shard's receipt, written when the shard is
whole. The folder may be deleted once the manifest is there and nothing of it is to be made again.
"""

import hashlib
import json
import platform
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import PIL
import torch

from dit_scale.config import EncodeConfig
from dit_scale.data.manifest import ShardEntry
from dit_scale.data.record import CropLayout, RecordLayout
from dit_scale.data.shards import shard_name
from dit_scale.data.statistics import LatentSums
from dit_scale.documents import Misfit, parsed
from dit_scale.files import is_from_dead_process, write_json
from dit_scale.latents import LatentSpec
from preprocessing.conditions import arrays_of
from preprocessing.sources import Source

STATE_FOLDER = "encoding"
_SILENT_SECONDS = 120.0
"""A shard that has not grown for so long is taken for abandoned."""


@dataclass(frozen=True)
class Rejection:
    """An image that has no record, and why."""

    source_index: int
    name: str
    reason: str


@dataclass(frozen=True)
class Receipt:
    """What a finished shard adds to the manifest."""

    entry: ShardEntry
    sums: LatentSums
    rejected: list[Rejection]


class _Sums(TypedDict):
    count: int
    pixels: int
    total: list[float]
    squares: list[float]


class _Content(TypedDict):
    """What a receipt's file holds."""

    plan: str
    made_with: NotRequired[str]
    shard: ShardEntry
    sums: _Sums
    rejected: list[Rejection]


def made_with() -> str:
    """Return what a shard's last bits depend on beside its plan: versions and the kind of device."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    return f"torch {torch.__version__}, Pillow {PIL.__version__}, {device}"


@dataclass(frozen=True)
class Job:
    """Which images become which shards, how, and where to."""

    config: EncodeConfig
    source: Source
    plan: dict[str, Any]

    @property
    def output(self) -> Path:
        """The shard folder."""
        return Path(self.config.output)

    @property
    def latents(self) -> LatentSpec:
        """Shape and normalisation of the latents."""
        return LatentSpec.from_json(self.plan["latents"])

    @property
    def mirrors(self) -> int:
        """Mirrors stored of each image."""
        return 2 if self.config.mirrors == "both" else 1

    @cached_property
    def layout(self) -> RecordLayout:
        """Where the bytes of a record lie."""
        return RecordLayout(self.mirrors, self.latents.moments_shape, arrays_of(self.config))

    @property
    def crops(self) -> CropLayout | None:
        """Where the bytes of crops lie; None where they are not kept."""
        return CropLayout(self.config.image_size) if self.config.keep_crops else None

    @property
    def num_shards(self) -> int:
        """Shards of the whole source."""
        return -(-len(self.source) // self.config.shard_records)

    def images_of(self, number: int) -> range:
        """Return the images of a shard: it has no others, and no other shard has them."""
        first = number * self.config.shard_records
        return range(first, min(first + self.config.shard_records, len(self.source)))

    def write_receipt(self, number: int, receipt: Receipt) -> None:
        """Declare a shard finished."""
        sums = receipt.sums
        content = {
            "plan": self._plan_digest,
            "made_with": made_with(),
            "shard": receipt.entry.to_json(),
            "sums": {
                "count": sums.count,
                "pixels": sums.pixels,
                "total": sums.total.tolist(),
                "squares": sums.squares.tolist(),
            },
            "rejected": [asdict(rejection) for rejection in receipt.rejected],
        }
        write_json(self._receipt_path(number), content)
        for path in self._temporaries(shard_name(number)):  # of the killed, or of one who will find it finished
            path.unlink(missing_ok=True)

    def receipt(self, number: int) -> Receipt | None:
        """Return a shard's receipt if the shard is finished: made by this plan, and as long as it was then."""
        try:
            content = parsed(self._receipt_path(number).read_bytes(), _Content)
            entry = content["shard"]
            is_whole = (self.output / entry.file).stat().st_size == entry.bytes
            is_whole &= (self.output / entry.sidecar).is_file()
            if self.crops is not None:
                is_whole &= (self.output / entry.crops).stat().st_size == self.crops.file_bytes(entry.records)
        except (FileNotFoundError, Misfit):
            return None
        if content["plan"] != self._plan_digest or not is_whole:
            return None
        sums = content["sums"]
        return Receipt(
            entry,
            LatentSums(sums["count"], sums["pixels"], np.array(sums["total"]), np.array(sums["squares"])),
            content["rejected"],
        )

    def missing(self) -> list[int]:
        """Return the shards that have no receipt."""
        finished = {path.name for path in (self.output / STATE_FOLDER).iterdir()}
        return [number for number in range(self.num_shards) if _receipt_name(number) not in finished]

    def is_finished(self, number: int) -> bool:
        """Whether a shard has a receipt."""
        return self._receipt_path(number).exists()

    def unclaimed(self) -> list[int]:
        """Return the missing shards that no living process seems to be making."""
        claimed = {path.name.split(".")[1] for path in self._temporaries() if _is_growing(path)}
        return [number for number in self.missing() if shard_name(number) not in claimed]

    def is_unclaimed(self, number: int) -> bool:
        """Whether a shard is missing and nobody seems to be making it."""
        return not self.is_finished(number) and not any(map(_is_growing, self._temporaries(shard_name(number))))

    def count_rejected(self) -> int:
        """Return how many images the finished shards lack."""
        receipts = (self.receipt(number) for number in range(self.num_shards) if self.is_finished(number))
        return sum(len(receipt.rejected) for receipt in receipts if receipt is not None)

    def made_with(self, number: int) -> str | None:
        """Return the versions and device that made a shard, where its receipt says."""
        try:
            return parsed(self._receipt_path(number).read_bytes(), _Content).get("made_with")
        except (FileNotFoundError, Misfit):
            return None

    def discard(self, number: int) -> None:
        """Have a shard made again; its files stay until then."""
        self._receipt_path(number).unlink(missing_ok=True)

    def discard_stale(self) -> None:
        """Have those shards made again whose receipts do not hold, and clear up after killed encoders."""
        for number in range(self.num_shards):
            if self.receipt(number) is None:
                self.discard(number)
        missing = {shard_name(number) for number in self.missing()}
        for path in self._temporaries():
            if is_from_dead_process(path) or path.name.split(".")[1] not in missing:
                path.unlink(missing_ok=True)

    def images_done(self) -> int:
        """Count the images that are in shards, finished or growing, whichever process or node writes them."""
        missing = set(self.missing())
        done = sum(len(self.images_of(number)) for number in range(self.num_shards) if number not in missing)
        growing: dict[str, int] = {}
        for path in self.output.glob(".shard-*.tar.*.tmp"):
            with suppress(FileNotFoundError):  # just finished
                shard = path.name.split(".")[1]
                growing[shard] = max(growing.get(shard, 0), path.stat().st_size // self.layout.stride_bytes)
        return min(len(self.source), done + sum(growing.values()))

    def _temporaries(self, shard: str = "shard-*") -> list[Path]:
        """Return the files of shards that were begun and have not got their names yet."""
        folders = (self.output, self.output / STATE_FOLDER)
        return [path for folder in folders for path in folder.glob(f".{shard}.*.tmp")]

    def _receipt_path(self, number: int) -> Path:
        return self.output / STATE_FOLDER / _receipt_name(number)

    @cached_property
    def _plan_digest(self) -> str:
        return hashlib.sha256(json.dumps(self.plan, sort_keys=True).encode()).hexdigest()


def _is_growing(path: Path) -> bool:
    """Whether somebody seems to be writing a file that was begun."""
    try:
        return not is_from_dead_process(path) and time.time() - path.stat().st_mtime < _SILENT_SECONDS
    except FileNotFoundError:
        return True  # just finished


def _receipt_name(number: int) -> str:
    return f"{shard_name(number)}.json"
