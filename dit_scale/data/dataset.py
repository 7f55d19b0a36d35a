"""Latents at random: the records of one shard folder, or of several with one set of classes, numbered through."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dit_scale.classes import ClassNames
from dit_scale.conditioning import RecordArray
from dit_scale.data.folder import ShardFolder
from dit_scale.data.manifest import Manifest
from dit_scale.data.mixture import Mixture, mix
from dit_scale.data.order import Order, Window, shares_of
from dit_scale.data.shards import WAY_OUT
from dit_scale.data.storage import LocalStorage
from dit_scale.draws import mix64
from dit_scale.errors import InputError

Integers = npt.NDArray[np.int64]

_HELD_OUT = 0x68656C64  # "held": apart from other uses of the same hashes


@dataclass(frozen=True)
class Part:
    """Some records of a folder: all of them, or those on one side of a held-out split."""

    first: int
    """Number of the folder's first record."""
    num_records: int
    chosen: Integers | None = None
    """Which of the folder's records; None is all."""

    def at(self, indices: Integers) -> Integers:
        """Return the dataset's numbers of this part's records."""
        return self.first + (indices if self.chosen is None else self.chosen[indices])


class LatentDataset:
    """Records of shard folders, each checked as it is read."""

    def __init__(
        self,
        folders: Sequence[ShardFolder],
        mixture: Mixture,
        weights: Sequence[float],
        held_out_fraction: float,
        stored: RecordArray | None = None,
        with_crops: bool = False,
    ):
        self.with_crops = with_crops
        self.folders, self.mixture, self._weights = tuple(folders), mixture, tuple(weights)
        self._stored = stored
        self._labels = np.concatenate(
            [np.array(table)[folder.labels] for table, folder in zip(mixture.labels, folders, strict=True)]
        )
        self._firsts = np.cumsum([0, *(len(folder) for folder in folders)])
        self._held_out = [_is_held_out(folder, held_out_fraction) for folder in folders]
        self._parts = [self._part(i, held_out=False) for i in range(len(folders))]
        # fp16 as stored, unless a folder holds something else.
        self._dtype = torch.float16 if all(folder.holds_moments for folder in folders) else torch.float32

    @classmethod
    def open(
        cls,
        path: str | Path | Mapping[str, float],
        *,
        class_names: Mapping[str, Mapping[str, str]] | None = None,
        held_out_fraction: float = 0.0,
        cache: Path | None = None,
        cache_bytes: int | None = None,
        patience_seconds: float = 600.0,
        stored: RecordArray | None = None,
        with_crops: bool = False,
    ) -> "LatentDataset":
        """Open a shard folder, or several with weights; raises InputError where one is not what its manifest says.

        ``class_names`` renames classes: ``{folder: {its name or label: name here}}``. A fraction of the records, chosen
        by the hash of their keys, is held out of training. ``stored`` is the array of a record that is its condition,
        instead of the label. ``with_crops`` also reads the images that became the latents, which ``encode`` has kept.
        """
        weights = dict(path) if isinstance(path, Mapping) else {str(path): 1.0}
        with ExitStack() as opened:
            folders = []
            for place in weights:
                folders.append(ShardFolder.open(place, cache, cache_bytes, patience_seconds))
                opened.callback(folders[-1].close)
                if stored is not None:
                    folders[-1].check_holds(stored)
                if with_crops:
                    folders[-1].prepare_crops()
            mixture = mix({place: folder.manifest for place, folder in zip(weights, folders, strict=True)}, class_names)
            dataset = cls(folders, mixture, list(weights.values()), held_out_fraction, stored, with_crops)
            opened.pop_all()  # closed by the dataset from here on
        return dataset

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def manifest(self) -> Manifest:
        """The first folder's manifest; the others hold the same kind of latents."""
        return self.folders[0].manifest

    @property
    def class_names(self) -> ClassNames:
        """Names of the classes in the order of the labels."""
        return self.mixture.class_names

    @property
    def is_local(self) -> bool:
        """Whether every shard lies in this machine's file system."""
        return all(isinstance(folder.storage, LocalStorage) for folder in self.folders)

    def fingerprint(self) -> str:
        """Return a SHA-256 of the records, their conditions and their shares; how they are stored takes no part."""
        digest = hashlib.sha256(json.dumps([self.class_names, self._shares()]).encode())
        for folder in self.folders:
            digest.update(folder.content_digest())
            if self._stored is not None:
                digest.update(folder.array_digest(self._stored.name))
            if self.with_crops:
                digest.update(folder.crops_digest())
        digest.update(self._labels.tobytes())
        return digest.hexdigest()

    @property
    def mirrors(self) -> int:
        """Mirrors that every folder has."""
        return min(folder.manifest.mirrors for folder in self.folders)

    def order(self, seed: int, window: Window | None = None) -> Order:
        """Return the order in which training reads the records."""
        return Order(seed, tuple(part.num_records for part in self._parts), self._shares(), window)

    def records_at(self, order: Order, positions: Integers) -> Integers:
        """Return the numbers of the records that stand at these positions of the training stream."""
        parts, indices = order.at(positions)
        records = np.empty_like(indices)
        for number, part in enumerate(self._parts):
            mine = parts == number
            records[mine] = part.at(indices[mine])
        return records

    def held_out(self) -> Integers:
        """Return the numbers of the records that training never sees."""
        parts = [self._part(i, held_out=True) for i in range(len(self.folders))]
        return np.concatenate([part.at(np.arange(part.num_records)) for part in parts])

    def keys(self, indices: Integers) -> list[str]:
        """Return the keys of records, with their folder's name before them where there are several."""
        keys = [""] * len(indices)
        for number, places in self._by_folder(indices):
            name = self.mixture.names[number]
            for place, key in zip(places.tolist(), self._own_keys(number, indices[places]), strict=True):
                keys[place] = f"{name}:{key}" if len(self.folders) > 1 else key
        return keys

    def read(
        self, indices: Integers, mirrored: npt.NDArray[np.bool_], *, verify: bool = True, pin_memory: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return moments [n, 2C, h, w] and conditions (labels [n]) of records, or of their mirror images.

        A mirror image is a horizontal flip. Raises InputError at the first that is damaged.
        """
        moments, conditions, damaged = self.read_all(indices, mirrored, verify=verify, pin_memory=pin_memory)
        if damaged:
            raise InputError(f"{damaged[min(damaged)]}; {WAY_OUT}")
        return moments, conditions

    def read_all(
        self, indices: Integers, mirrored: npt.NDArray[np.bool_], *, verify: bool = True, pin_memory: bool = False
    ) -> tuple[Tensor, Tensor, dict[int, str]]:
        """Return what ``read`` does, and how those records that are damaged are; their moments are zero."""
        shape = self.manifest.latents.moments_shape
        moments = torch.empty((len(indices), *shape), dtype=self._dtype, pin_memory=pin_memory)
        damaged: dict[int, str] = {}
        for number, places in self._by_folder(indices):
            folder = self.folders[number]
            own, mirrors = indices[places] - self._firsts[number], mirrored[places].astype(np.int64)
            if folder.holds_moments and len(places) == len(indices) and self._dtype == torch.float16:
                rows = moments.numpy().reshape(len(indices), -1).view(np.uint8)  # straight into the tensor's memory
                found = folder.read(own, mirrors, rows, verify)
            else:
                rows = np.empty((len(places), folder.row_bytes()), np.uint8)
                found = folder.read(own, mirrors, rows, verify)
                moments[torch.from_numpy(places)] = folder.moments(rows).to(self._dtype)
            damaged |= {int(places[row]): how for row, how in found.items()}
        conditions, more = self._conditions(indices, verify, pin_memory)
        damaged |= more
        for place in damaged:
            moments[place] = 0
        return moments, conditions, damaged

    def read_crops(
        self, indices: Integers, mirrored: npt.NDArray[np.bool_], *, verify: bool = True, pin_memory: bool = False
    ) -> tuple[Tensor, dict[int, str]]:
        """Return the crops of records, or their mirror images, uint8 [n, 3, S, S]: what the moments were made of.

        Beside them, how those that are damaged are; these are zero. Raises InputError where no crops are kept.
        """
        crops = torch.empty((len(indices), *self.folders[0].crops.shape), dtype=torch.uint8, pin_memory=pin_memory)
        rows = crops.numpy().reshape(len(indices), -1)
        damaged: dict[int, str] = {}
        for number, places in self._by_folder(indices):
            own, buffers = indices[places] - self._firsts[number], (rows[place] for place in places)
            found = self.folders[number].read_crops(own, buffers, verify)
            damaged |= {int(places[row]): how for row, how in found.items()}
        for place in np.flatnonzero(mirrored).tolist():
            crops[place] = crops[place].flip(-1)
        for place in damaged:
            crops[place] = 0
        return crops, damaged

    def request(self, indices: Integers) -> None:
        """Say which records will be read soon, so that shards elsewhere are fetched meanwhile."""
        for number, places in self._by_folder(indices):
            self.folders[number].request(indices[places] - self._firsts[number], self.with_crops)

    def close(self) -> None:
        """Close the shards."""
        for folder in self.folders:
            folder.close()

    def _conditions(self, indices: Integers, verify: bool, pin_memory: bool) -> tuple[Tensor, dict[int, str]]:
        """Return the condition of each record, and how those that are damaged are; these are zero."""
        if self._stored is None:
            return torch.from_numpy(self._labels[indices]), {}
        dtype: torch.dtype = getattr(torch, self._stored.dtype)
        conditions = torch.empty((len(indices), *self._stored.shape), dtype=dtype, pin_memory=pin_memory)
        all_rows = conditions.numpy().reshape(len(indices), -1).view(np.uint8)
        damaged: dict[int, str] = {}
        for number, places in self._by_folder(indices):
            rows = np.empty((len(places), self._stored.num_bytes), np.uint8)
            own = indices[places] - self._firsts[number]
            found = self.folders[number].read_array(self._stored.name, own, rows, verify)
            all_rows[places] = rows
            damaged |= {int(places[row]): how for row, how in found.items()}
        for place in damaged:
            conditions[place] = 0
        return conditions, damaged

    def _shares(self) -> tuple[int, ...]:
        return shares_of(self._weights) if len(self.folders) > 1 else (1,)

    def _part(self, number: int, held_out: bool) -> Part:
        """Return a folder's records on one side of the split."""
        mask, first = self._held_out[number], int(self._firsts[number])
        if mask is None:
            return Part(first, 0 if held_out else len(self.folders[number]))
        chosen = np.flatnonzero(mask == held_out)
        return Part(first, len(chosen), chosen)

    def _by_folder(self, indices: Integers) -> list[tuple[int, Integers]]:
        """Return, for each folder that has some of the records, its number and their places in ``indices``."""
        if len(self.folders) == 1:
            return [(0, np.arange(len(indices)))]
        numbers = np.searchsorted(self._firsts[1:], indices, side="right")
        return [(int(number), np.flatnonzero(numbers == number)) for number in np.unique(numbers)]

    def _own_keys(self, number: int, indices: Integers) -> list[str]:
        return self.folders[number].keys(indices - self._firsts[number])


def _is_held_out(folder: ShardFolder, fraction: float) -> npt.NDArray[np.bool_] | None:
    """Return which records are held out; a record's side depends on its key alone."""
    if fraction == 0.0:
        return None
    hashes = mix64(torch.from_numpy(folder.key_hashes() + _HELD_OUT)).numpy().view(np.uint64)
    held_out = hashes < np.uint64(int(fraction * (1 << 64)))
    if held_out.all() or not held_out.any():
        side = "none" if held_out.all() else "all"
        raise InputError(
            f"data.held_out_fraction={fraction} leaves {side} of the {len(folder)} records of "
            f"'{folder.storage.location}' for training; give another fraction"
        )
    return held_out
