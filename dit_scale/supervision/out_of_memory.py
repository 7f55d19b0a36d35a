"""Running out of memory, told in one sentence that names what to change."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dit_scale.config import Config
from dit_scale.distributed.devices import memory_of
from dit_scale.distributed.runtime import World
from dit_scale.errors import Failure, InputError
from dit_scale.planning.choices import gigabytes, in_words, outline, plural, setup_of, smaller_choices
from dit_scale.planning.memory import estimate_memory

_CPU_ALLOCATOR = re.compile(r"can't allocate memory: you tried to allocate (\d+) bytes")
_CUDA_ALLOCATOR = re.compile(r"Tried to allocate ([\d.]+) ([KMG]iB)")
_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


@contextmanager
def out_of_memory_explained(config: Config, world: World, device: str) -> Iterator[None]:
    """Turn an allocation that failed, on a GPU or the host, into a Failure that names what to change."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise Failure(_sentence(config, world, device, _asked_bytes(str(error)))) from error


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(
        _CPU_ALLOCATOR.search(str(error)) or "CUDA out of memory" in str(error) or "std::bad_alloc" in str(error)
    )


def _asked_bytes(message: str) -> int | None:
    if match := _CPU_ALLOCATOR.search(message):
        return int(match[1])
    if match := _CUDA_ALLOCATOR.search(message):
        return round(float(match[1]) * _UNITS[match[2]])
    return None


def _sentence(config: Config, world: World, device: str, asked_bytes: int | None) -> str:
    memory = memory_of(device)
    asked = f"{gigabytes(asked_bytes)} more" if asked_bytes else "more memory"
    has = f"{memory.name} has {gigabytes(memory.total_bytes)}"
    try:
        model = outline(config)
        setup = setup_of(config, model, world.world_size, device.startswith("cuda"))
    except (InputError, Failure, OSError) as error:  # the data has gone meanwhile: the rest is still worth saying
        return (
            f"out of memory: {asked} was asked for where {has}; give a smaller train.micro_batch_size_per_gpu ({error})"
        )
    limit = 0.9 * memory.total_bytes
    choices = in_words(smaller_choices(config, model, setup, limit), limit)
    return (
        f"out of memory: {asked} was asked for where {has}; a micro batch of {setup.micro_batch_size}, ZeRO stage "
        f"{setup.zero_stage} on {plural(setup.world_size, 'rank')} and engine.checkpoint_every_blocks="
        f"{setup.checkpoint_every_blocks} need about {gigabytes(estimate_memory(model, setup).peak)} beside what "
        f"Python and its libraries take; give {choices}"
    )
