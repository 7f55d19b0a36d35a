"""Checkpoints read: which one is the last good one, and any part of any parameter from it."""

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dit_scale.checkpoint.layout import (
    LATEST,
    MANIFEST,
    Description,
    Position,
    file_digest,
    newest_first,
    read_manifest,
)
from dit_scale.distributed.runtime import World
from dit_scale.errors import InputError
from dit_scale.files import remove

log = logging.getLogger(__name__)


class Checkpoint:
    """A complete checkpoint on disk; any part of any parameter can be read from it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._manifest = read_manifest(folder)
        position = Position(**self._manifest["position"])
        self.description = Description(
            position,
            self._manifest["config"],
            self._manifest["data"],
            self._manifest["versions"],
            self._manifest.get("metrics", {}),
            self._manifest.get("grad_norms", []),
        )
        self.shapes = {name: torch.Size(shape) for name, shape in self._manifest["parameters"].items()}
        self.adam_step: int = self._manifest["adam_step"]
        self.content_digests: dict[str, dict[str, str]] = self._manifest["content_digests"]

    @property
    def kinds(self) -> list[str]:
        """What it holds of parameters: master, exp_avg, exp_avg_sq, ema, …"""
        return list(self.content_digests)

    @property
    def weight_kinds(self) -> list[str]:
        """Those of them that are weights of the model: the master weights and averages of them."""
        return [kind for kind in self.kinds if kind.partition("-")[0] in ("master", "ema")]

    @property
    def optimizer_kinds(self) -> list[str]:
        """Those of them that are an optimizer's, some of which only some parameters may have."""
        return [kind for kind in self.kinds if kind not in self.weight_kinds]

    def damage(self, rank: int = 0, world_size: int = 1) -> str | None:
        """Check sizes of all files and digests of every ``world_size``-th; return what is wrong, or None."""
        for index, (name, expected) in enumerate(sorted(self._manifest["files"].items())):
            path = self.folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
            if index % world_size == rank and file_digest(path) != expected["xxh3_128"]:
                return f"{name} does not fit its digest"
        return None

    def read(self, kind: str, name: str, offset: int, numel: int) -> Tensor:
        """Read elements [offset, offset + numel) of a flattened parameter, [numel] fp32."""
        result = torch.empty(numel)
        filled = 0
        for start, length, file, key in self._pieces[kind, name]:
            first, last = max(start, offset), min(start + length, offset + numel)
            if first < last:
                part = file.get_slice(key)[first - start : last - start]
                result[first - offset : last - offset] = part
                filled += last - first
        if filled != numel:
            raise RuntimeError(f"checkpoint '{self.folder}' holds {filled} of {numel} elements of {kind} {name}")
        return result

    def whole(self, kind: str) -> dict[str, Tensor]:
        """Read every parameter that has a kind, in its own shape."""
        shapes = {name: shape for name, shape in self.shapes.items() if name in self.content_digests[kind]}
        return {name: self.read(kind, name, 0, shape.numel()).view(shape) for name, shape in shapes.items()}

    @cached_property
    def _pieces(self) -> dict[tuple[str, str], list[tuple[int, int, Any, str]]]:
        """Where each parameter's elements lie: (offset, numel, open file, key)."""
        pieces: dict[tuple[str, str], list[tuple[int, int, Any, str]]] = {}
        for name in self._manifest["files"]:
            file = safe_open(self.folder / name, framework="pt")
            for key in file.keys():  # noqa: SIM118 (not a dict)
                kind, parameter, offset = key.split("/")
                length = file.get_slice(key).get_shape()[0]
                pieces.setdefault((kind, parameter), []).append((int(offset), length, file, key))
        return pieces


def find_last_good(checkpoints: Path, world: World) -> Checkpoint | None:
    """Return the newest checkpoint that verifies; name, set aside and skip damaged ones (collective).

    None means that the run never saved. Raises InputError where it did, but nothing of it is whole: a run never
    starts from scratch without a word. A disk that fails to read raises OSError and sets nothing aside.
    """
    # One rank's listing: a networked folder may look different elsewhere.
    listing: list[Any] = [[folder.name for folder in newest_first(checkpoints)], _has_saved(checkpoints)]
    dist.broadcast_object_list(listing, src=0)
    damaged: list[str] = []
    for name in listing[0]:
        checkpoint, reason = _examined(checkpoints / name, world)
        reasons: list[str | None] = [None] * world.world_size
        dist.all_gather_object(reasons, reason)
        found = next((f"rank {rank}: {reason}" for rank, reason in enumerate(reasons) if reason is not None), None)
        if found is None:
            if world.is_rank_zero:
                _set_aside(checkpoints, damaged)
            dist.barrier()
            return checkpoint
        damaged.append(name)
        if world.is_rank_zero:
            log.warning("checkpoint %s is damaged (%s)", name, found)
    if listing[1]:
        raise InputError(
            f"no checkpoint in '{checkpoints}' is whole, and the run has saved before; put one back from a copy, have "
            f"every node reach that folder, or choose another run_dir"
        )
    return None


def _has_saved(checkpoints: Path) -> bool:
    """Whether a run has ever saved here, to be told even where no checkpoint is left."""
    return any(next(checkpoints.glob(pattern), None) for pattern in (LATEST, "step-*", "damaged-step-*"))


def _examined(folder: Path, world: World) -> tuple[Checkpoint | None, str | None]:
    """Return a checkpoint and how it is damaged, as far as this rank looks."""
    try:
        checkpoint = Checkpoint(folder)
        return checkpoint, checkpoint.damage(world.rank, world.world_size)
    except InputError:
        raise
    except (FileNotFoundError, NotADirectoryError, ValueError, SafetensorError) as error:
        return None, f"{MANIFEST} cannot be read ({_said(error)})"


def _set_aside(checkpoints: Path, damaged: Sequence[str]) -> None:
    """Rename damaged checkpoints, now that an older one is known to be whole (rank zero)."""
    for name in damaged:
        log.warning("checkpoint %s is set aside as damaged-%s", name, name)
        remove(checkpoints / f"damaged-{name}")
        (checkpoints / name).replace(checkpoints / f"damaged-{name}")


def open_whole(path: Path) -> Checkpoint:
    """Open the checkpoint that a user means by a path; raises InputError where it is damaged."""
    folder = resolve(path)
    try:
        checkpoint = Checkpoint(folder)
        reason = checkpoint.damage()
    except InputError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        reason = f"{MANIFEST} cannot be read ({_said(error)})"
    if reason is not None:
        raise InputError(f"checkpoint '{folder}' is damaged ({reason}); give another step-… of the run")
    return checkpoint


def _said(error: Exception) -> str:
    return str(error.strerror if isinstance(error, OSError) else error)


def resolve(path: Path) -> Path:
    """Return the checkpoint folder that a user means by a run folder, a ``checkpoints`` folder or itself."""
    if (path / MANIFEST).is_file() and path.name.startswith("step-"):
        return path
    for checkpoints in (path / "checkpoints", path):
        pointer = checkpoints / LATEST
        if pointer.is_file() and (checkpoints / pointer.read_text().strip() / MANIFEST).is_file():
            return checkpoints / pointer.read_text().strip()
        if newest := newest_first(checkpoints):
            return newest[0]
    raise InputError(f"'{path}' holds no checkpoint; give a run folder that training has saved to, or one step-… of it")
