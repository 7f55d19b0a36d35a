"""Ranks, devices, start and stop; the one module that reads a launcher's environment variables."""

import ctypes
import multiprocessing
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from dit_scale.errors import InputError

if TYPE_CHECKING:  # torch takes seconds to import, and not every command needs it
    from torch.distributed import Store


@dataclass(frozen=True)
class World:
    """Which process this is among how many."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    node_rank: int = 0

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    @classmethod
    def from_environment(cls) -> "World":
        """Read torchrun's variables, else srun's, else be the only process."""
        if "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ:
            return cls(
                rank=_integer("RANK"),
                world_size=_integer("WORLD_SIZE"),
                local_rank=_integer("LOCAL_RANK"),
                local_world_size=_integer("LOCAL_WORLD_SIZE"),
                node_rank=_integer("GROUP_RANK"),
            )
        if "SLURM_STEP_NUM_TASKS" in os.environ:  # set inside srun, absent in the batch shell
            node_rank = _integer("SLURM_NODEID")
            return cls(
                rank=_integer("SLURM_PROCID"),
                world_size=_integer("SLURM_STEP_NUM_TASKS"),
                local_rank=_integer("SLURM_LOCALID"),
                local_world_size=_tasks_per_node(os.environ["SLURM_STEP_TASKS_PER_NODE"])[node_rank],
                node_rank=node_rank,
            )
        return cls()

    def export(self) -> None:
        """Set torchrun's variables to this world, for libraries that read them and for ``from_environment``."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
        values = (self.rank, self.world_size, self.local_rank, self.local_world_size, self.node_rank)
        os.environ.update({name: str(value) for name, value in zip(names, values, strict=True)})


@dataclass(frozen=True)
class ArrayElement:
    """Which element of a Slurm job array this process belongs to."""

    index: int
    count: int


def array_element() -> ArrayElement:
    """Return this process's element of a Slurm job array; outside of one, the only element of one."""
    if "SLURM_ARRAY_TASK_ID" not in os.environ:
        return ArrayElement(0, 1)
    count = max(1, _integer("SLURM_ARRAY_TASK_COUNT"))
    step = max(1, _integer("SLURM_ARRAY_TASK_STEP"))
    place = (_integer("SLURM_ARRAY_TASK_ID") - _integer("SLURM_ARRAY_TASK_MIN")) // step
    return ArrayElement(place % count, count)  # an array may be a list with gaps


@dataclass(frozen=True)
class LauncherJob:
    """The batch job that this process runs in."""

    number: str | None
    """Null outside of a batch system."""
    restart: int
    """How often the batch system has begun it anew."""


def launcher_job() -> LauncherJob:
    """Return the Slurm job around this process."""
    return LauncherJob(os.environ.get("SLURM_JOB_ID"), _integer("SLURM_RESTART_COUNT"))


def max_restarts() -> int:
    """Return how often a job may be requeued."""
    return _integer("DIT_SCALE_MAX_RESTARTS") if os.environ.get("DIT_SCALE_MAX_RESTARTS") else 100


def job_end_time() -> float | None:
    """Return when this job's time limit strikes, in seconds since 1970, where a launcher says so."""
    return float(_integer("DIT_SCALE_END_TIME")) if "DIT_SCALE_END_TIME" in os.environ else None


def _integer(name: str) -> int:
    value = os.environ.get(name, "0")
    if not value.isdigit():
        raise InputError(f"environment variable {name} is '{value}', not a number; let torchrun or srun set it")
    return int(value)


def _tasks_per_node(text: str) -> list[int]:
    """Read Slurm's run-length list: ``2(x3),1`` -> [2, 2, 2, 1]."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise InputError(f"SLURM_STEP_TASKS_PER_NODE is '{text}', not a list such as '2(x3),1'; let srun set it")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def device_of(world: World) -> str:
    """Return this process's device: its own GPU, or the CPU."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    # With --gpus-per-task=1 each process sees one GPU as 0; with --gpus-per-node every process sees them all.
    return f"cuda:{world.local_rank % torch.cuda.device_count()}"


def set_threads(world: World, threads_per_rank: int | None = None) -> int:
    """Give each rank of this machine its share of the cores; return the threads of this one."""
    import torch

    threads = threads_per_rank or max(1, len(os.sched_getaffinity(0)) // world.local_world_size)
    torch.set_num_threads(threads)
    return threads


def keep_freed_memory(keep: bool = True) -> None:
    """Have the C library keep what is freed for the next step, where the kernel would take it back and clear it.

    On a CPU a tenth of an fp32 step goes there otherwise, a twentieth in bf16. ``keep=False`` sets what glibc comes to
    by itself.
    """
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, <malloc.h>
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc alone
        libc.mallopt(mmap_threshold, 1 << 30 if keep else 32 << 20)
        libc.mallopt(trim_threshold, (1 << 31) - 1 if keep else 64 << 20)


@contextmanager
def process_group(world: World, device: str, timeout_seconds: float = 1800.0) -> Iterator["Store"]:
    """Join the process group (NCCL on CUDA, gloo on CPU) and leave it at the end; yields the store of all ranks."""
    import torch
    import torch.distributed as dist
    import torch.distributed.distributed_c10d as c10d

    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    backend = "nccl" if device.startswith("cuda") else "gloo"
    timeout = timedelta(seconds=timeout_seconds)
    # DeepSpeed makes groups of its own without a time-out; PyTorch's default for those is 10 minutes on NCCL.
    c10d.default_pg_timeout = c10d.default_pg_nccl_timeout = timeout
    store: Store
    if world.world_size == 1:
        store = dist.HashStore()
    else:
        _set_rendezvous()
        store, _, _ = next(dist.rendezvous("env://", world.rank, world.world_size, timeout=timeout))
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("process_group", store),
        rank=world.rank,
        world_size=world.world_size,
        timeout=timeout,
    )
    try:
        yield store
    finally:
        dist.destroy_process_group()


def _set_rendezvous() -> None:
    """Have MASTER_ADDR and MASTER_PORT name rank zero's store: the launcher's, or our own for srun on one node."""
    if "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        return
    if os.environ.get("SLURM_STEP_NUM_NODES") != "1":
        raise InputError("MASTER_ADDR and MASTER_PORT are not set for several nodes; start with slurm/train.sbatch")
    # Below the ephemeral range, and another port for each job and each of its restarts.
    port = 15000 + (_integer("SLURM_JOB_ID") * 7 + _integer("SLURM_RESTART_COUNT")) % 15000
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it dies (torchrun killed leaves no orphans)."""
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG, <sys/prctl.h>
    started_by = multiprocessing.parent_process()
    parent = started_by.pid if started_by else os.getppid()  # it may have died since it started this one
    ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it died in between
        os.kill(os.getpid(), signal.SIGKILL)
