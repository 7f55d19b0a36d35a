"""Devices, the attention kernel, the process group and the disk, each by using it."""

import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dit_scale.config import Config
from dit_scale.distributed.devices import memory_of
from dit_scale.distributed.runtime import World
from dit_scale.distributed.sharing import gather_everywhere
from dit_scale.doctor.finding import Finding, Status
from dit_scale.models import DiT
from dit_scale.models.kernel_timing import AttentionShape, backend_of_training, error_of_backend
from dit_scale.parameters import DTYPES
from dit_scale.planning.choices import gigabytes, plural

_PROBE_BYTES = 32 << 20
_SMALLEST_PROBE_BYTES = 1 << 20
_SLOW_NCCL_BYTES_PER_SECOND = 4e9  # an old PCIe link does more
_ERROR_AT_MOST = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


# ---------------------------------------------------------------- devices


def device(name: str, world: World, precision: str) -> Finding:
    """Say what this rank computes on, whether it is its alone and can do the configured arithmetic."""
    memory = memory_of(name)
    figure = f"{memory.name}, {gigabytes(memory.free_bytes)} free of {gigabytes(memory.total_bytes)}"
    details = {"name": memory.name, "total_bytes": memory.total_bytes, "free_bytes": memory.free_bytes}
    if not name.startswith("cuda"):
        way_out = "fine for a trial; on a cluster ask for GPUs (--gpus-per-node) and see that nvidia-smi lists them"
        return Finding("device", Status.WARN, f"no GPU: {figure}", way_out, details)
    if world.local_world_size > torch.cuda.device_count() > 1:
        figure += f"; {world.local_world_size} ranks on {plural(torch.cuda.device_count(), 'GPU')}"
        return Finding("device", Status.FAIL, figure, "start one rank a GPU", details)
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return Finding("device", Status.FAIL, f"{figure}; no bf16", "engine.precision=fp32, or an Ampere GPU or newer")
    if memory.free_bytes < 0.9 * memory.total_bytes:
        way_out = "another process holds the rest: see nvidia-smi"
        return Finding("device", Status.WARN, figure, way_out, details)
    return Finding("device", Status.PASS, f"{figure}, bf16", "", details)


# ---------------------------------------------------------------- attention


def attention_kernel(model: DiT, config: Config, device: str) -> Finding:
    """Run the configured attention once, forward and backward, at the model's head size, and compare it."""
    dtype = DTYPES[config.engine.precision]
    images = AttentionShape.of(model, min(32, config.train.micro_batch_size_per_gpu))
    has_kernels = config.engine.kernels == "auto"
    backend = backend_of_training(config.model.attention, images, torch.device(device), dtype, has_kernels)
    error = error_of_backend(backend, images, torch.device(device), dtype)
    figure = (
        f"{backend}, head size {images.head_size}, {images.num_tokens} tokens, {config.engine.precision}; "
        f"error {error:.1e}"
    )
    if not error <= _ERROR_AT_MOST[dtype]:  # a NaN is not
        other = "sdpa" if backend == "xformers" else "xformers"
        return Finding("attention", Status.FAIL, f"{figure}: wrong", f"model.attention={other}")
    if device.startswith("cuda") and config.model.attention == "auto":
        figure += "; the fastest of this GPU's kernels"
    return Finding("attention", Status.PASS, figure)


# ---------------------------------------------------------------- process group


def all_reduce(world: World, device: str) -> Finding:
    """Sum a tensor over all ranks, check each element, and time it (collective)."""
    backend = str(dist.get_backend())
    if world.world_size == 1:
        return Finding("process group", Status.PASS, f"one rank ({backend}): run under torchrun or srun to test more")
    elements = (1 << 26) if backend == "nccl" else (1 << 22)
    ramp = torch.arange(elements, device=device) % 251
    expected = (ramp * world.world_size + world.world_size * (world.world_size - 1) // 2).float()
    values, fastest = ramp.float(), float("inf")
    for _ in range(4):  # the first finds connections
        values = (ramp + world.rank).float()
        seconds = _timed_all_reduce(values)
        fastest = min(fastest, seconds)
    nodes = world.world_size // max(1, world.local_world_size)
    bus = 2 * (world.world_size - 1) / world.world_size * 4 * elements / fastest  # as nccl-tests counts
    figure = f"{backend}, {world.world_size} ranks on {plural(nodes, 'node')}: {bus / 1e9:.2f} GB/s all-reduce"
    details = {"bytes_per_second": bus, "backend": backend}
    if not torch.equal(values, expected):
        way_out = "sums are wrong: test the network and GPUs with nccl-tests, leave out the node"
        return Finding("process group", Status.FAIL, f"{figure}, wrong sums", way_out, details)
    if backend == "nccl" and bus < _SLOW_NCCL_BYTES_PER_SECOND:
        way_out = "see with NCCL_DEBUG=INFO which link NCCL takes; NCCL_SOCKET_IFNAME and NCCL_IB_HCA choose one"
        return Finding("process group", Status.WARN, figure, way_out, details)
    return Finding("process group", Status.PASS, f"{figure}, sums right", "", details)


def _timed_all_reduce(values: Tensor) -> float:
    dist.barrier()
    _synchronize(values)
    begun = time.monotonic()
    dist.all_reduce(values)
    _synchronize(values)
    return time.monotonic() - begun


def _synchronize(values: Tensor) -> None:
    if values.is_cuda:
        torch.cuda.synchronize(values.device)


# ---------------------------------------------------------------- disk


@dataclass(frozen=True)
class DiskRates:
    """What all ranks together wrote to the run folder's file system and read back."""

    num_bytes: int
    write_bytes_per_second: float
    read_bytes_per_second: float
    trouble: str | None = None
    """Why a rank could not."""


def existing(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that there is."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def measure_disk(run_dir: Path, world: World) -> DiskRates:
    """Write, fsync and read back a file on every rank at once, as a checkpoint does (collective)."""
    dist.barrier()
    results: list[Any] = gather_everywhere(_probe(existing(run_dir), world), world)
    for rank, result in enumerate(results):
        if isinstance(result, str):
            return DiskRates(0, 0.0, 0.0, result if world.world_size == 1 else f"rank {rank}: {result}")
    total = sum(size for size, _, _ in results)
    slowest_write, slowest_read = (max(result[column] for result in results) for column in (1, 2))
    return DiskRates(total, total / slowest_write, total / slowest_read)


def disk(rates: DiskRates) -> Finding:
    """Say how fast the run folder's file system is."""
    if rates.trouble is not None:
        return Finding("disk", Status.FAIL, rates.trouble, "give a run_dir that this user can write to, with room left")
    figure = (
        f"{gigabytes(rates.write_bytes_per_second)}/s written and fsynced, {gigabytes(rates.read_bytes_per_second)}/s "
        f"read ({gigabytes(rates.num_bytes)})"
    )
    numbers = {
        "write_bytes_per_second": rates.write_bytes_per_second,
        "read_bytes_per_second": rates.read_bytes_per_second,
    }
    return Finding("disk", Status.PASS, figure, "", numbers)


def _probe(folder: Path, world: World) -> tuple[int, float, float] | str:
    """Write and read one file; return its bytes and both times, or what went wrong."""
    path = folder / f".doctor-{socket.gethostname()}-{os.getpid()}-{world.rank}"
    try:
        status = os.statvfs(folder)
        free = status.f_bavail * status.f_frsize // world.world_size
        size = min(_PROBE_BYTES, max(_SMALLEST_PROBE_BYTES, free // 4))  # never what fills a disk
        block = os.urandom(_SMALLEST_PROBE_BYTES)
        begun = time.monotonic()
        with path.open("wb") as file:
            for _ in range(size // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            written = time.monotonic()
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # read from the disk, not from memory
        content_is_right, begun_reading = True, time.monotonic()
        with path.open("rb", buffering=0) as file:
            while part := file.read(len(block)):
                content_is_right &= part == block
        ended = time.monotonic()
        if not content_is_right or path.stat().st_size != size // len(block) * len(block):
            return f"a file in '{folder}' did not read back as it was written"
        return path.stat().st_size, written - begun, ended - begun_reading
    except OSError as error:
        return f"'{folder}' cannot be written to and read back ({error.strerror})"
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
