"""Checkpoints that know parameters, not ranks: save, verify, find the last good one, read any part.

A checkpoint is a folder ``step-00000100`` with one safetensors file a rank and a ``manifest.json``. Each tensor
is a 1-D fp32 fragment, keyed ``KIND/PARAMETER/OFFSET`` with KIND one of master, exp_avg, exp_avg_sq, ema, so any
number of ranks and any ZeRO stage can read what any other wrote. The folder is written under a temporary name
and renamed once all is on disk; ``latest`` is moved last.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dit_scale.distributed.fragments import Fragment
from dit_scale.distributed.runtime import World
from dit_scale.errors import InputError
from dit_scale.files import atomic_write, fsync_folder, remove, write_json

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
LATEST = "latest"


@dataclass(frozen=True)
class Position:
    """Where a run stands."""

    step: int = 0
    images_seen: int = 0


@dataclass(frozen=True)
class Description:
    """What a checkpoint is of: enough to resume, to sample, or to refuse with a reason."""

    position: Position
    config: dict[str, Any]
    """The run's resolved configuration."""
    data: dict[str, Any]
    """Fingerprint of the shards, latent spec, class names and autoencoder."""
    versions: dict[str, str] = field(default_factory=dict)


def folder_name(step: int) -> str:
    """Return the name of a step's checkpoint folder."""
    return f"step-{step:08d}"


# ---------------------------------------------------------------- writing


def save(
    checkpoints: Path,
    description: Description,
    shapes: Mapping[str, torch.Size],
    owned: Sequence[Fragment],
    kinds: Mapping[str, Sequence[Tensor]],
    adam_step: int,
    world: World,
) -> Path:
    """Write a checkpoint, complete or absent, and point ``latest`` at it (collective).

    ``kinds`` maps master, exp_avg, exp_avg_sq and ema to this rank's tensors, one for each owned fragment;
    ``adam_step`` is the number of updates that Adam has counted.
    """
    final = checkpoints / folder_name(description.position.step)
    temporary = checkpoints / f".{final.name}.tmp"
    if world.is_rank_zero:
        remove(temporary)
        temporary.mkdir(parents=True)
    dist.barrier()
    file = _write_rank_file(temporary, owned, kinds, world)
    digests = content_digests(owned, kinds, list(shapes))
    files: list[Any] = [None] * world.world_size
    dist.all_gather_object(files, file)
    if world.is_rank_zero:
        manifest = {
            "format_version": FORMAT_VERSION,
            "position": vars(description.position),
            "adam_step": adam_step,
            "config": description.config,
            "data": description.data,
            "versions": description.versions,
            "world_size": world.world_size,
            "parameters": {name: list(shape) for name, shape in shapes.items()},
            "files": dict(files),
            "content_digests": digests,
        }
        write_json(temporary / MANIFEST, manifest | {"digest": _manifest_digest(manifest)})
        remove(final)
        temporary.replace(final)
        fsync_folder(checkpoints)
        with atomic_write(checkpoints / LATEST, "w") as pointer:
            pointer.write(final.name + "\n")
    dist.barrier()
    return final


def _write_rank_file(
    folder: Path, owned: Sequence[Fragment], kinds: Mapping[str, Sequence[Tensor]], world: World
) -> tuple[str, dict[str, Any]]:
    """Write this rank's fragments and return the file's name, size and digest."""
    path = folder / f"rank-{world.rank:05d}.safetensors"
    tensors = {
        f"{kind}/{fragment.name}/{fragment.offset}": tensor.detach().float().cpu().contiguous()
        for kind, values in kinds.items()
        for fragment, tensor in zip(owned, values, strict=True)
    }
    save_file(tensors, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path.name, {"bytes": path.stat().st_size, "xxh3_128": _file_digest(path)}


def prune(checkpoints: Path, keep: int) -> None:
    """Remove all but the ``keep`` newest checkpoints and what a killed run left half-written (rank zero)."""
    for leftover in checkpoints.glob(".step-*"):
        remove(leftover)
    for folder in _newest_first(checkpoints)[max(keep, 1) :]:
        doomed = folder.with_name(f".{folder.name}.removed")  # renamed first: never half a checkpoint under its name
        folder.replace(doomed)
        remove(doomed)


# ---------------------------------------------------------------- reading


class Checkpoint:
    """A complete checkpoint on disk; any part of any parameter can be read from it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._manifest = _read_manifest(folder)
        position = Position(**self._manifest["position"])
        self.description = Description(
            position, self._manifest["config"], self._manifest["data"], self._manifest["versions"]
        )
        self.shapes = {name: torch.Size(shape) for name, shape in self._manifest["parameters"].items()}
        self.adam_step: int = self._manifest["adam_step"]
        self.content_digests: dict[str, dict[str, str]] = self._manifest["content_digests"]

    def damage(self, rank: int = 0, world_size: int = 1) -> str | None:
        """Check sizes of all files and digests of every ``world_size``-th; return what is wrong, or None."""
        for index, (name, expected) in enumerate(sorted(self._manifest["files"].items())):
            path = self.folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
            if index % world_size == rank and _file_digest(path) != expected["xxh3_128"]:
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
        """Read every parameter of a kind, in its own shape."""
        return {name: self.read(kind, name, 0, shape.numel()).view(shape) for name, shape in self.shapes.items()}

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
    begins anew without a word. A disk that fails to read raises OSError and sets nothing aside.
    """
    names = [[folder.name for folder in _newest_first(checkpoints)]]
    dist.broadcast_object_list(names, src=0)  # one rank's listing: a networked folder may look different elsewhere
    for folder in (checkpoints / name for name in names[0]):
        try:
            checkpoint = Checkpoint(folder)
            reason = checkpoint.damage(world.rank, world.world_size)
        except InputError:
            raise
        except (FileNotFoundError, NotADirectoryError, KeyError, TypeError, ValueError, SafetensorError) as error:
            reason = f"{MANIFEST} cannot be read ({error})"
        reasons: list[str | None] = [None] * world.world_size
        dist.all_gather_object(reasons, reason)
        found = next((reason for reason in reasons if reason is not None), None)
        if found is None:
            return checkpoint
        if world.is_rank_zero:
            log.warning("checkpoint %s is damaged (%s): set aside as damaged-%s", folder.name, found, folder.name)
            remove(folder.with_name(f"damaged-{folder.name}"))
            folder.replace(folder.with_name(f"damaged-{folder.name}"))
        dist.barrier()
    if names[0]:
        raise InputError(
            f"no checkpoint in '{checkpoints}' is whole; put one back from a copy, or choose another run_dir"
        )
    return None


def open_whole(path: Path) -> Checkpoint:
    """Open the checkpoint that a user means by a path; raises InputError where it is damaged."""
    folder = resolve(path)
    try:
        checkpoint = Checkpoint(folder)
        reason = checkpoint.damage()
    except InputError:
        raise
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        reason = str(error)
    if reason is not None:
        raise InputError(f"checkpoint '{folder}' is damaged ({reason}); give another step-… of the run")
    return checkpoint


def resolve(path: Path) -> Path:
    """Return the checkpoint folder that a user means by a run folder, a ``checkpoints`` folder or itself."""
    if (path / MANIFEST).is_file() and path.name.startswith("step-"):
        return path
    for checkpoints in (path / "checkpoints", path):
        pointer = checkpoints / LATEST
        if pointer.is_file() and (checkpoints / pointer.read_text().strip() / MANIFEST).is_file():
            return checkpoints / pointer.read_text().strip()
        if newest := _newest_first(checkpoints):
            return newest[0]
    raise InputError(f"'{path}' holds no checkpoint; give a run folder that training has saved to, or one step-… of it")


def _newest_first(checkpoints: Path) -> list[Path]:
    return sorted(checkpoints.glob("step-*"), reverse=True)


def _read_manifest(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    version = manifest["format_version"]
    if version != FORMAT_VERSION:
        age = "newer" if version > FORMAT_VERSION else "older"
        raise InputError(
            f"checkpoint '{folder}' has format {version}, {age} than the {FORMAT_VERSION} that this dit_scale reads; "
            f"use the dit_scale that wrote it"
        )
    if manifest.pop("digest", None) != _manifest_digest(manifest):
        raise ValueError(f"{MANIFEST} does not fit its digest")
    return manifest


def _manifest_digest(manifest: dict[str, Any]) -> str:
    plain = json.loads(json.dumps(manifest))  # as it reads back
    return xxhash.xxh3_128_hexdigest(json.dumps(plain, sort_keys=True))


def _file_digest(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


# ---------------------------------------------------------------- digests


def content_digests(
    owned: Sequence[Fragment], kinds: Mapping[str, Sequence[Tensor]], names: Sequence[str]
) -> dict[str, dict[str, str]]:
    """Return a digest of each parameter of each kind that does not depend on who holds what (collective).

    An order-free sum over (index, bits) modulo 2^64: every single changed element changes it.
    """
    rows = {(kind, name): row for row, (kind, name) in enumerate((k, n) for k in kinds for n in names)}
    sums = torch.zeros(len(rows), dtype=torch.int64)
    for kind, tensors in kinds.items():
        for fragment, tensor in zip(owned, tensors, strict=True):
            sums[rows[kind, fragment.name]] += sum(_digest_parts(tensor, fragment.offset))
    if dist.get_backend() == "nccl":
        sums = sums.cuda()
    dist.all_reduce(sums)
    values = sums.tolist()
    return {kind: {name: f"{values[rows[kind, name]] % (1 << 64):016x}" for name in names} for kind in kinds}


def _digest_parts(tensor: Tensor, offset: int) -> Iterator[Tensor]:
    """Sum bits times an odd number made of the index, in blocks that bound the memory."""
    for start, block in enumerate(tensor.detach().float().split(1 << 22)):
        first = offset + (start << 22)
        index = torch.arange(first, first + block.numel(), device=block.device)
        weight = (index * 0x2545F4914F6CDD1D) | 1
        yield (block.contiguous().view(torch.int32).long() * weight).sum().cpu()
