"""Checkpoints written behind the step loop, which stands still only while the state is copied to host memory.

Each rank's thread writes its own file; the threads agree over a process group of their own, so that nothing they do
gets between the collectives of training.
"""

import errno
import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dit_scale.checkpoint.content import State, content_digests
from dit_scale.checkpoint.layout import LATEST, Description, folder_name, write_manifest
from dit_scale.checkpoint.retention import Retention, prune, sweep
from dit_scale.checkpoint.tensor_file import write_tensors
from dit_scale.distributed.runtime import World
from dit_scale.files import atomic_write, fsync_folder, remove

log = logging.getLogger(__name__)

_SPARE_BYTES = 1 << 20
"""Room beside the tensors: headers, the manifest, logs."""


@dataclass(frozen=True)
class Outcome:
    """What became of a save; the same on every rank."""

    step: int
    trouble: str | None
    """Why nothing was saved, or None."""
    seconds: float
    """From the first copy to the last rename."""
    num_bytes: int


class Saver:
    """Saves the state of a run, one checkpoint at a time."""

    def __init__(self, checkpoints: Path, world: World, retention: Retention, *, in_background: bool = True):
        """Collective: makes the group in which the writers agree."""
        self._checkpoints, self._world, self._retention = checkpoints, world, retention
        self._in_background = in_background
        self._group: Any = dist.new_group(backend="gloo")
        self._copies: dict[str, list[Tensor]] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.last: Outcome | None = None
        """The last save that has ended."""
        self.longest_seconds = 0.0

    def save(self, description: Description, state: State, on_end: Callable[[Outcome], None] | None = None) -> None:
        """Copy the state and have it written; waits for an earlier save first (collective).

        A disk that is full or fails is no error: ``last`` and ``on_end``, which rank zero's writer calls, tell of it.
        """
        self.wait()
        started = time.monotonic()
        if self._in_background:
            state = self._copied(state)
        self._thread = threading.Thread(
            target=self._write, args=(description, state, started, on_end), name="checkpoint-writer", daemon=True
        )
        self._thread.start()
        if not self._in_background:
            self.wait()

    def wait(self) -> Outcome | None:
        """Wait until nothing is being written; return what became of the last save."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            raise self._error
        return self.last

    def close(self, patience_seconds: float) -> None:
        """Let a save under way come to its end, also where training has failed: the writers need no training."""
        if self._thread is not None:
            self._thread.join(patience_seconds)

    def _copied(self, state: State) -> State:
        """Copy this rank's part to host memory that is kept for the next save."""
        if not self._copies:
            self._copies = {
                kind: [_host_memory_like(tensor) for tensor in tensors] for kind, tensors in state.kinds.items()
            }
        for kind, tensors in state.kinds.items():
            for copy, tensor in zip(self._copies[kind], tensors, strict=True):
                copy.copy_(tensor.detach(), non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return replace(state, kinds=self._copies)

    def _write(
        self, description: Description, state: State, started: float, on_end: Callable[[Outcome], None] | None
    ) -> None:
        """Write a checkpoint, complete or absent, and point ``latest`` at it (collective over the writers)."""
        try:
            trouble = self._write_files(description, state)
            seconds = time.monotonic() - started
            self.last = Outcome(description.position.step, trouble, seconds, state.num_bytes())
            if trouble is None:
                self.longest_seconds = max(self.longest_seconds, seconds)
            if on_end is not None and self._world.is_rank_zero:
                on_end(self.last)
        except BaseException as error:  # raised by the next wait, in the thread that trains
            log.exception("the writer of checkpoints has ended")
            self._error = error

    def _write_files(self, description: Description, state: State) -> str | None:
        final = self._checkpoints / folder_name(description.position.step)
        temporary = self._checkpoints / f".{final.name}.tmp"
        trouble = self._agree(_trouble_in(lambda: self._make_room(temporary, state)) if self._leads else None)
        if trouble is not None:
            return trouble
        files: list[Any] = []
        trouble = self._agree(_trouble_in(lambda: files.append(self._write_own(temporary, state))))
        if trouble is None:
            manifest = self._manifest(description, state, files[0])
            trouble = self._agree(
                _trouble_in(lambda: self._commit(temporary, final, manifest)) if self._leads else None
            )
        if trouble is not None and self._leads:
            _trouble_in(lambda: remove(temporary))
        return trouble

    @property
    def _leads(self) -> bool:
        return self._world.is_rank_zero

    def _make_room(self, temporary: Path, state: State) -> None:
        """Make the folder, after a look whether all will fit."""
        sweep(self._checkpoints)
        temporary.mkdir(parents=True)
        needed, free = state.num_bytes() + _SPARE_BYTES, shutil.disk_usage(temporary).free
        if needed > free:
            temporary.rmdir()
            raise OSError(errno.ENOSPC, f"a checkpoint takes {needed / 1e9:.3g} GB, {free / 1e9:.3g} GB are free")

    def _write_own(self, folder: Path, state: State) -> tuple[str, dict[str, Any]]:
        """Write this rank's fragments; return the file's name, size and digest."""
        path = folder / f"rank-{self._world.rank:05d}.safetensors"
        tensors = {
            f"{kind}/{fragment.name}/{fragment.offset}": tensor
            for kind in state.kinds
            for fragment, tensor in state.of_kind(kind)
        }
        num_bytes, digest = write_tensors(path, tensors)
        return path.name, {"bytes": num_bytes, "xxh3_128": digest}

    def _manifest(self, description: Description, state: State, file: tuple[str, dict[str, Any]]) -> dict[str, Any]:
        files: list[Any] = [None] * self._world.world_size
        dist.all_gather_object(files, file, group=self._group)
        return {
            "position": vars(description.position),
            "adam_step": state.adam_step,
            "config": description.config,
            "data": description.data,
            "versions": description.versions,
            "metrics": description.metrics,
            "grad_norms": description.grad_norms,
            "world_size": self._world.world_size,
            "parameters": {name: list(shape) for name, shape in state.shapes.items()},
            "files": dict(files),
            "content_digests": content_digests(state, self._group),
        }

    def _commit(self, temporary: Path, final: Path, manifest: dict[str, Any]) -> None:
        """Give a checkpoint that is on disk its name; what fails after that is no trouble, for it is saved."""
        write_manifest(temporary, manifest)
        fsync_folder(temporary)
        if final.exists():  # one of the same step that somebody has put there
            final.replace(final.with_name(f".{final.name}.removed"))
        temporary.replace(final)
        fsync_folder(self._checkpoints)
        trouble = _trouble_in(lambda: self._tidy(final))
        if trouble is not None:
            log.warning("%s is saved; moving the pointer or removing old checkpoints failed: %s", final.name, trouble)

    def _tidy(self, final: Path) -> None:
        """Move the pointer, remove what need not stay."""
        with atomic_write(self._checkpoints / LATEST, "w") as pointer:
            pointer.write(final.name + "\n")
        prune(self._checkpoints, self._retention)

    def _agree(self, trouble: str | None) -> str | None:
        """Return the first trouble that any rank has (collective over the writers)."""
        troubles: list[str | None] = [None] * self._world.world_size
        dist.all_gather_object(troubles, trouble, group=self._group)
        return next((f"rank {rank}: {what}" for rank, what in enumerate(troubles) if what is not None), None)


def _trouble_in(action: Callable[[], None]) -> str | None:
    """Do something with the disk; return what went wrong."""
    try:
        action()
    except OSError as error:
        return f"{error.strerror or error}" + (f" ('{error.filename}')" if error.filename else "")
    except Exception as error:  # or else the other ranks' writers would wait for this one
        log.exception("saving failed")
        return f"{type(error).__name__}: {error}"
    return None


def _host_memory_like(tensor: Tensor) -> Tensor:
    """Return fp32 host memory for a copy; pinned for a GPU's, which copies there at full speed."""
    return torch.empty(tensor.numel(), dtype=torch.float32, pin_memory=tensor.is_cuda)
