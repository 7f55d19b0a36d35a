"""Ranks, devices, start and stop; the one module that reads a launcher's environment variables."""

import ctypes
import multiprocessing
import os
import re
import signal
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from dit_scale.errors import Failure, InputError

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
        """Read the variables of torchrun, DeepSpeed, mpirun or srun, or be the only process.

        Raises InputError where what is set cannot be, or says too little.
        """
        world = _read_world()
        if not (world.rank < world.world_size and world.local_rank < world.local_world_size <= world.world_size):
            raise InputError(
                f"the launcher's variables say rank {world.rank} of {world.world_size} and, on this machine, "
                f"{world.local_rank} of {world.local_world_size}, which cannot be; let one launcher set them all, or "
                f"unset RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE"
            )
        return world

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
    """How often the batch system has started it again."""


def launcher_job() -> LauncherJob:
    """Return the Slurm job around this process."""
    return LauncherJob(os.environ.get("SLURM_JOB_ID"), _integer("SLURM_RESTART_COUNT"))


def max_restarts() -> int:
    """Return how often a job may be requeued."""
    return _integer("DIT_SCALE_MAX_RESTARTS") if os.environ.get("DIT_SCALE_MAX_RESTARTS") else 100


def job_end_time() -> float | None:
    """Return when this job's time limit strikes, in seconds since 1970, where a launcher says so."""
    return float(_integer("DIT_SCALE_END_TIME")) if "DIT_SCALE_END_TIME" in os.environ else None


def _named(form: str, names: str = "RANK SIZE LOCAL_RANK LOCAL_SIZE") -> tuple[str, ...]:
    return tuple(form.format(name) for name in names.split())


_MPI = (
    _named("OMPI_COMM_WORLD_{}"),  # Open MPI
    _named("MV2_COMM_WORLD_{}"),  # MVAPICH2
    _named("{}", "PMI_RANK PMI_SIZE MPI_LOCALRANKID MPI_LOCALNRANKS"),  # MPICH's and Intel's mpiexec
    _named("PMI_{}"),  # Cray's
    _named("JSM_NAMESPACE_{}"),  # jsrun
)
"""What launchers of MPI call a process's rank, their number, and the same on its machine."""
_MPI_NAMES = sorted({name for names in _MPI for name in names if "LOCAL" not in name})


def take_local_rank(local_rank: int | None) -> None:
    """Take the local rank that a launcher gave as an argument (DeepSpeed's does), unless the environment has it."""
    if local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(local_rank))


def _read_world() -> World:
    """Read what is set, the nearest launcher first: mpirun may have started its own daemons by srun."""
    by_hand = [name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if "LOCAL_RANK" in os.environ and sum(by_hand) > 1:
        return _from_torchrun()
    for names in _MPI:
        if all(name in os.environ for name in names):
            return World(*map(_integer, names))
    if _integer("SLURM_STEP_NUM_TASKS") > 1:  # set inside srun, absent in the batch shell
        return _from_srun()
    if sum(by_hand) > 1:
        return _from_torchrun()
    _refuse_part()
    return World()


def _refuse_part() -> None:
    """Raise InputError where a launcher started several processes but says too little to tell them apart.

    Each would do the whole job otherwise, in one folder.
    """
    names = [*_MPI_NAMES, "RANK", "LOCAL_RANK", "WORLD_SIZE", "PMIX_RANK"]
    for name in names:
        alone = 1 if name.endswith("SIZE") else 0
        if name in os.environ and _integer(name) > alone:
            raise InputError(
                f"{name}={os.environ[name]} says that this is one of several processes, but not which of how many on "
                f"this machine; set RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE for each, start them with "
                f"torchrun or srun, or unset {name}"
            )


def _from_torchrun() -> World:
    """Read torchrun's variables, which DeepSpeed's launcher, accelerate and hands set in part."""
    for name in ("RANK", "WORLD_SIZE"):
        if name not in os.environ:
            raise InputError(f"other variables of a launcher are set, but not {name}; set it, or unset the others")
    rank, world_size = _integer("RANK"), _integer("WORLD_SIZE")
    is_one_machine = os.environ.get("MASTER_ADDR", "localhost") in ("localhost", "127.0.0.1", "::1")
    local_size = next((name for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if name in os.environ), None)
    if local_size is not None:
        local_world_size = _integer(local_size)
    elif is_one_machine:
        local_world_size = world_size
    elif "LOCAL_RANK" in os.environ:
        raise InputError(
            "LOCAL_RANK is set, but not LOCAL_WORLD_SIZE, the number of processes on this machine; set it, too, or "
            "start with torchrun or srun"
        )
    else:
        local_world_size = 1  # a process a machine, as Kubernetes' operators start them
    return World(
        rank=rank,
        world_size=world_size,
        local_rank=_integer("LOCAL_RANK") if "LOCAL_RANK" in os.environ else rank % max(1, local_world_size),
        local_world_size=local_world_size,
        node_rank=_integer("GROUP_RANK" if "GROUP_RANK" in os.environ else "CROSS_RANK"),
    )


def _from_srun() -> World:
    for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_TASKS_PER_NODE"):
        if name not in os.environ:
            raise InputError(
                f"SLURM_STEP_NUM_TASKS={os.environ['SLURM_STEP_NUM_TASKS']} is set, but not {name}; start with srun, "
                f"which sets both, and let a container keep them"
            )
    node_rank = _integer("SLURM_NODEID")
    tasks = _tasks_per_node(os.environ["SLURM_STEP_TASKS_PER_NODE"])
    if node_rank >= len(tasks):
        raise InputError(
            f"SLURM_NODEID={node_rank} is not below {len(tasks)}, the nodes in SLURM_STEP_TASKS_PER_NODE; let srun set "
            f"both"
        )
    return World(
        rank=_integer("SLURM_PROCID"),
        world_size=_integer("SLURM_STEP_NUM_TASKS"),
        local_rank=_integer("SLURM_LOCALID"),
        local_world_size=tasks[node_rank],
        node_rank=node_rank,
    )


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
        _set_rendezvous(world)
        with _taken_port_explained():
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


def _set_rendezvous(world: World) -> None:
    """Have MASTER_ADDR and MASTER_PORT name rank zero's store: the launcher's, or our own on one node."""
    if "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        _integer("MASTER_PORT")
        return
    if "PMIX_NAMESPACE" in os.environ and world.local_world_size == world.world_size:  # Open MPI's name of the job
        number = zlib.crc32(os.environ["PMIX_NAMESPACE"].encode())
    elif os.environ.get("SLURM_STEP_NUM_NODES") == "1":
        number = _integer("SLURM_JOB_ID") * 7 + _integer("SLURM_RESTART_COUNT")
    else:
        raise InputError(
            "MASTER_ADDR and MASTER_PORT are not set, by which processes find rank zero; set both for every process "
            "(on one machine MASTER_ADDR=127.0.0.1 and a free port, such as MASTER_PORT=29500), or start with torchrun "
            "or slurm/train.sbatch"
        )
    # Below the ephemeral range, and another port for each job and each of its restarts.
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(15000 + number % 15000))


@contextmanager
def _taken_port_explained() -> Iterator[None]:
    """Say in a sentence that rank zero's port is taken."""
    from torch.distributed import DistNetworkError

    try:
        yield
    except DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise Failure(
            f"MASTER_PORT={os.environ['MASTER_PORT']} is in use on this machine, by another run perhaps; give another "
            f"(deepspeed --master_port=…, accelerate launch --main_process_port=…)"
        ) from error


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it dies (torchrun killed leaves no orphans)."""
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG, <sys/prctl.h>
    started_by = multiprocessing.parent_process()
    parent = started_by.pid if started_by else os.getppid()  # it may have died since it started this one
    ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it died in between
        os.kill(os.getpid(), signal.SIGKILL)
