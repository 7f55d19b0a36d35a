"""The order of the data as arithmetic: which record stands at a position of the endless stream.

Position ``q`` of the stream over N records is record ``permute(seed, q // N, q % N, N)``. Nothing is stored, so
going on at any position costs nothing, and every epoch is a permutation of its own. ``Order`` makes one stream of
several sets of records (parts), each with its share of the positions and an order, full or within windows, of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from dit_scale.draws import mix64

Integers = npt.NDArray[np.int64]

_GAMMA = 0x9E3779B97F4A7C15  # splitmix64's step
_STREAM = 0x6F72646572  # "order": apart from the streams of dit_scale.draws
_PART, _MIXTURE, _BLOCK, _WINDOW = (number << 40 for number in (1, 1 << 20, 1 << 21, 1 << 22))
"""Added to a seed, so that orders made for several purposes have nothing to do with each other."""


class Window(NamedTuple):
    """Shuffle blocks of neighbouring records, then the records of each ``num_blocks`` blocks that come together.

    What is being read at any time lies in so many blocks, which suits cold or networked storage.
    """

    block_records: int
    num_blocks: int


@dataclass(frozen=True)
class Order:
    """Which record of which part stands at each position."""

    seed: int
    num_records: tuple[int, ...]
    """Of each part."""
    shares: tuple[int, ...] = (1,)
    """Positions of each part in every ``sum(shares)`` positions."""
    window: Window | None = None
    """None shuffles all records of an epoch."""

    def at(self, positions: Integers) -> tuple[Integers, Integers]:
        """Return the part, and the record in it, at each position."""
        parts, own_positions = self._parts_at(positions)
        records = np.empty_like(positions)
        for part, count in enumerate(self.num_records):
            mine = parts == part
            if mine.any():
                records[mine] = self._records_at(part, own_positions[mine], count)
        return parts, records

    def _parts_at(self, positions: Integers) -> tuple[Integers, Integers]:
        """Return each position's part and how many positions of that part come before it.

        In every period of ``sum(shares)`` positions each part has exactly its share of them, in an order that is
        drawn for the period.
        """
        if len(self.shares) == 1:
            return np.zeros_like(positions), positions
        length = sum(self.shares)
        parts, own_positions = np.empty_like(positions), np.empty_like(positions)
        for period in np.unique(positions // length).tolist():
            mine = positions // length == period
            places = positions[mine] % length
            parts[mine], before = (column[places] for column in _period(self.seed, period, self.shares))
            own_positions[mine] = period * np.array(self.shares)[parts[mine]] + before
        return parts, own_positions

    def _records_at(self, part: int, positions: Integers, num_records: int) -> Integers:
        seed = self.seed + part * _PART
        if self.window is None:
            return indices_at(seed, positions, num_records)
        records = np.empty_like(positions)
        for epoch in np.unique(positions // num_records).tolist():
            mine = positions // num_records == epoch
            records[mine] = _blocks(seed, epoch, num_records, self.window).records_at(positions[mine] % num_records)
        return records


@lru_cache(maxsize=16)
def _period(seed: int, period: int, shares: tuple[int, ...]) -> tuple[Integers, Integers]:
    """Return the part at each place of a period, and how many places of that part come before it in the period."""
    length = sum(shares)
    slots = permute(seed + _MIXTURE, period, np.arange(length), length)
    parts = np.searchsorted(np.cumsum(shares), slots, side="right")
    before = np.empty_like(parts)
    for part, share in enumerate(shares):
        before[parts == part] = np.arange(share)
    return parts, before


@dataclass(frozen=True)
class _Blocks:
    """The blocks of one epoch in their order; the last block of the records may be a short one."""

    seed: int
    epoch: int
    window: Window
    blocks: Integers
    """Which block comes first, second, …"""
    ends: Integers
    """How many records have come by the end of each."""

    def records_at(self, places: Integers) -> Integers:
        """Return the records at places in the epoch: shuffled among those of their window."""
        size = self.window.num_blocks
        windows = np.searchsorted(self.ends, places, side="right") // size
        starts = np.concatenate(([0], self.ends))
        shuffled = np.empty_like(places)
        for window in np.unique(windows).tolist():
            mine = windows == window
            first, last = starts[window * size], starts[min((window + 1) * size, len(self.blocks))]
            key = self.epoch * len(self.blocks) + window
            shuffled[mine] = first + permute(self.seed + _WINDOW, key, places[mine] - first, int(last - first))
        slots = np.searchsorted(self.ends, shuffled, side="right")
        return self.blocks[slots] * self.window.block_records + shuffled - starts[slots]


@lru_cache(maxsize=16)
def _blocks(seed: int, epoch: int, num_records: int, window: Window) -> _Blocks:
    count = -(-num_records // window.block_records)
    blocks = permute(seed + _BLOCK, epoch, np.arange(count), count)
    sizes = np.full(count, window.block_records)
    sizes[blocks == count - 1] = num_records - (count - 1) * window.block_records
    return _Blocks(seed, epoch, window, blocks, np.cumsum(sizes))


def shares_of(weights: Sequence[float]) -> tuple[int, ...]:
    """Return whole shares of a period of positions in proportion to weights, to one part in 10,000."""
    total, period = sum(weights), 10_000
    exact = [weight / total * period for weight in weights]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: shares[i] - exact[i])
    for i in by_remainder[: period - sum(shares)]:
        shares[i] += 1
    divisor = int(np.gcd.reduce(shares))
    return tuple(share // divisor for share in shares)


def indices_at(seed: int, positions: Integers, num_records: int) -> Integers:
    """Return the records at these positions of the stream."""
    return permute(seed, positions // num_records, positions % num_records, num_records)


def permute(seed: int, epoch: Integers | int, index: Integers, num_records: int) -> Integers:
    """Map indices in [0, num_records) one to one onto themselves, for each epoch in another way.

    A Feistel network permutes the next power of two; a result outside the range is mapped again until it falls
    inside (cycle walking: Black & Rogaway, CT-RSA 2002), which takes less than two rounds on average.
    """
    bits = max(1, (num_records - 1).bit_length())
    keys = np.broadcast_to(_epoch_keys(seed, np.atleast_1d(np.asarray(epoch, np.int64))), index.shape)
    result = _feistel(index, keys, bits)
    outside = np.flatnonzero(result >= num_records)
    while outside.size:
        result[outside] = _feistel(result[outside], keys[outside], bits)
        outside = outside[result[outside] >= num_records]
    return result


def _feistel(values: Integers, keys: Integers, bits: int) -> Integers:
    """Permute [0, 2**bits): each round changes one half of the bits by a hash of the other half."""
    low_bits = bits // 2
    low_mask, high_mask = (1 << low_bits) - 1, (1 << (bits - low_bits)) - 1
    low, high = values & low_mask, values >> low_bits
    for first, second in _ROUND_KEYS.reshape(-1, 2):
        high = high ^ (_hash((low + first) ^ keys) & high_mask)
        low = low ^ (_hash((high + second) ^ keys) & low_mask)
    return high << low_bits | low


def _epoch_keys(seed: int, epoch: Integers) -> Integers:
    return _hash(_hash(_wrapped([seed * _GAMMA + _STREAM])) + epoch * _wrapped([_GAMMA]))


def _hash(values: Integers) -> Integers:
    return mix64(torch.from_numpy(values)).numpy()


def _wrapped(values: list[int]) -> Integers:
    """Return integers of any size as int64 with the same last 64 bits."""
    return np.array([value % (1 << 64) for value in values], np.uint64).view(np.int64)


_ROUND_KEYS = _wrapped([step * _GAMMA for step in range(8)])
