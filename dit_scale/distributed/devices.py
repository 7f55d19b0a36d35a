"""What a process computes on, and how much memory that has."""

import os
import resource
from dataclasses import dataclass
from pathlib import Path

import torch

_UNLIMITED = 1 << 60  # limits above this are none


@dataclass(frozen=True)
class DeviceMemory:
    """A device's name and its memory; a CPU's is what this process may have of the machine's."""

    name: str
    total_bytes: int
    free_bytes: int


def memory_of(device: str) -> DeviceMemory:
    """Return a device's memory as it is now."""
    if device.startswith("cuda"):
        free, total = torch.cuda.mem_get_info(device)
        return DeviceMemory(torch.cuda.get_device_name(device), total, free + torch.cuda.memory_reserved(device))
    return host_memory()


def host_memory() -> DeviceMemory:
    """Return the machine's memory, or less where a control group or a limit allows this process less."""
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(meminfo[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    for limit, used in (_group_limit(), _address_limit()):
        if limit < min(total, _UNLIMITED):
            total, free = limit, min(free, max(0, limit - used))
    return DeviceMemory(f"CPU ({len(os.sched_getaffinity(0))} cores)", total, min(free, total))


def _group_limit() -> tuple[int, int]:
    """Return what this process's control group may use and uses (version 2; Slurm and containers set it)."""
    try:
        line = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        group = Path("/sys/fs/cgroup") / line.removeprefix("0::/")
        limit, used = (group / "memory.max").read_text().strip(), (group / "memory.current").read_text()
        cached = dict(entry.split() for entry in (group / "memory.stat").read_text().splitlines()).get("file", "0")
        return (_UNLIMITED if limit == "max" else int(limit)), max(0, int(used) - int(cached))
    except (OSError, StopIteration, ValueError):
        return _UNLIMITED, 0


def _address_limit() -> tuple[int, int]:
    """Return the limit of this process's address space and how much of it is taken (ulimit -v)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return (_UNLIMITED if limit == resource.RLIM_INFINITY else limit), pages * resource.getpagesize()
