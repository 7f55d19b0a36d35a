"""One encoding: its plan, and what of it is finished.

The folder ``encoding/`` beside the shards keeps it: ``plan.json`` says all that determines the shards' bytes,
``source.npy`` is the listing of the images, and ``shard-000000.json`` is a shard's receipt, written when the shard is
whole. The folder may be deleted once the manifest is there and nothing of it is to be made anew.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dit_scale.config import EncodeConfig
from dit_scale.data.manifest import ShardEntry
from dit_scale.data.record import RecordLayout
from dit_scale.data.shards import shard_name
from dit_scale.data.statistics import LatentSums
from dit_scale.files import write_json
from dit_scale.latents import LatentSpec
from preprocessing.sources import Source

STATE_FOLDER = "encoding"


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
        return RecordLayout(self.mirrors, self.latents.moments_shape)

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
            "shard": asdict(receipt.entry),
            "sums": {
                "count": sums.count,
                "pixels": sums.pixels,
                "total": sums.total.tolist(),
                "squares": sums.squares.tolist(),
            },
            "rejected": [asdict(rejection) for rejection in receipt.rejected],
        }
        write_json(self._receipt_path(number), content)

    def receipt(self, number: int) -> Receipt | None:
        """Return a shard's receipt if the shard is finished: made by this plan, and as long as it was then."""
        try:
            content = json.loads(self._receipt_path(number).read_bytes())
            entry = ShardEntry(**content["shard"])
            is_whole = (self.output / entry.tar_name).stat().st_size == entry.bytes
            is_whole &= (self.output / entry.sidecar_name).is_file()
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        if content["plan"] != self._plan_digest or not is_whole:
            return None
        sums = content["sums"]
        return Receipt(
            entry,
            LatentSums(sums["count"], sums["pixels"], np.array(sums["total"]), np.array(sums["squares"])),
            [Rejection(**rejection) for rejection in content["rejected"]],
        )

    def images_done(self) -> int:
        """Count the images that are in shards, finished or growing, whichever process or node writes them."""
        finished = {path.name for path in (self.output / STATE_FOLDER).iterdir()}
        done = sum(
            len(self.images_of(number)) for number in range(self.num_shards) if _receipt_name(number) in finished
        )
        for path in self.output.glob(".shard-*.tar.*.tmp"):
            with suppress(FileNotFoundError):  # just finished
                done += path.stat().st_size // self.layout.stride_bytes
        return min(len(self.source), done)

    def remove_leftovers(self, number: int) -> None:
        """Remove what a killed encoder left of a shard; no other encoder writes this one."""
        for folder in (self.output, self.output / STATE_FOLDER):
            for path in folder.glob(f".{shard_name(number)}.*.tmp"):
                path.unlink()

    def _receipt_path(self, number: int) -> Path:
        return self.output / STATE_FOLDER / _receipt_name(number)

    @cached_property
    def _plan_digest(self) -> str:
        return hashlib.sha256(json.dumps(self.plan, sort_keys=True).encode()).hexdigest()


def _receipt_name(number: int) -> str:
    return f"{shard_name(number)}.json"
