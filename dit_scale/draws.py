"""Random draws without a generator: each is a function of (seed, stream, position), and of nothing else.

A draw does not depend on the rank, the worker, the batch around it or on what was drawn before, so a run
that is resumed, or that goes on with another number of GPUs, sees the same training problem.
Hashing is splitmix64 (Steele et al., OOPSLA 2014) on 64-bit integers, which wrap alike on every device;
normals are made in float64 and rounded to float32, so vector and scalar code paths agree.
"""

import functools
import math
from enum import IntEnum

import torch
from torch import Tensor


class Stream(IntEnum):
    """What a draw is for; each stream is independent of the others."""

    MIRROR = 1
    POSTERIOR = 2
    NOISE = 3
    TIME = 4
    LABEL_DROPOUT = 5
    INITIAL_NOISE = 6
    STEP_NOISE = 7
    LABEL = 8
    ROUTING = 9
    PATH_DROP = 10


def _signed(value: int) -> int:
    """Map an unsigned 64-bit constant to the int64 with the same bits."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """Shift right, filling with zeros (int64's own shift copies the sign)."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def mix64(bits: Tensor) -> Tensor:
    """Scramble 64-bit integers: splitmix64's finaliser, a bijection."""
    bits = (bits ^ _shift_right(bits, 30)) * _MIX_1
    bits = (bits ^ _shift_right(bits, 27)) * _MIX_2
    return bits ^ _shift_right(bits, 31)


def _mix64_of_int(bits: int) -> int:
    """Scramble one integer in [0, 2^64), as ``mix64`` does."""
    bits = (bits ^ (bits >> 30)) * _MIX_1 % (1 << 64)
    bits = (bits ^ (bits >> 27)) * _MIX_2 % (1 << 64)
    return bits ^ (bits >> 31)


def _bits(seed: int, stream: Stream, positions: Tensor, count: int, first: int) -> Tensor:
    """Return ``count`` 64-bit words per position, [N, count], from word ``first`` of the record's sequence."""
    start = _signed(_mix64_of_int((seed * 0x9E3779B97F4A7C15 + int(stream)) % (1 << 64)))
    keys = mix64(positions * _GAMMA + start)  # [N], one per position
    return mix64(keys[:, None] + _words(first, count, positions.device))


@functools.lru_cache(maxsize=16)
def _words(first: int, count: int, device: torch.device) -> Tensor:
    """Return the numbers of words, counted from 1 and times splitmix64's step, [count]."""
    return torch.arange(first + 1, first + count + 1, device=device) * _GAMMA


def uniform(seed: int, stream: Stream, positions: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """Draw float64 in [0, 1), [N, *shape], for int64 positions [N]; exact, and the same on every device.

    The first draw of a position is the same for every ``shape``.
    """
    bits = _bits(seed, stream, positions, math.prod(shape), 0)
    return _shift_right(bits, 11).double().mul(2.0**-53).view(len(positions), *shape)


def subset(seed: int, stream: Stream, positions: Tensor, total: int, count: int) -> Tensor:
    """Draw ``count`` of ``total`` places for each int64 position, rising, [N, count] int64; all subsets are as likely.

    They are the places of the least of as many uniform draws. A GPU is not waited for.
    """
    order = uniform(seed, stream, positions, (total,)).argsort(dim=1, stable=True)
    return order[:, :count].sort(dim=1).values


def normal(seed: int, stream: Stream, positions: Tensor, shape: tuple[int, ...], *, counter_offset: int = 0) -> Tensor:
    """Draw a standard normal float32 tensor [N, *shape], one record of ``shape`` for each int64 position.

    ``counter_offset`` counts further tensors for the same position (a solver's step). Box and Muller (1958).
    """
    numel = math.prod(shape)
    pairs = (numel + 1) // 2
    bits = _bits(seed, stream, positions, pairs, counter_offset * pairs)
    radius = torch.sqrt(-2.0 * torch.log((_shift_right(bits, 32).double() + 0.5) * 2.0**-32))
    angle = (bits & 0xFFFFFFFF).double() * (2.0 * math.pi * 2.0**-32)
    both = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return both.flatten(1)[:, :numel].float().view(len(positions), *shape)
