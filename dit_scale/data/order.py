"""The order of the data as arithmetic: which record stands at a position of the endless stream.

Position ``q`` of the stream over N records is record ``permute(seed, q // N, q % N, N)``. Nothing is stored, so
going on at any position costs nothing, and every epoch is a permutation of its own.
"""

import numpy as np
import numpy.typing as npt
import torch

from dit_scale.draws import mix64

Integers = npt.NDArray[np.int64]

_GAMMA = 0x9E3779B97F4A7C15  # splitmix64's step
_STREAM = 0x6F72646572  # "order": apart from the streams of dit_scale.draws


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
