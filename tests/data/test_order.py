"""The order of the data: a permutation in each epoch, from arithmetic alone."""

import numpy as np
import pytest

from dit_scale.data.order import indices_at, permute


@pytest.mark.parametrize("num_records", [1, 2, 3, 7, 64, 2003, 1_281_167])
def test_every_epoch_is_a_permutation(num_records: int) -> None:
    for epoch in (0, 1):
        order = permute(3, epoch, np.arange(num_records), num_records)
        assert order.min() == 0
        assert np.array_equal(np.bincount(order, minlength=num_records), np.ones(num_records, int))


def test_epochs_and_seeds_differ() -> None:
    orders = [permute(seed, epoch, np.arange(2003), 2003) for seed in (0, 1) for epoch in (0, 1, 2)]
    for i, order in enumerate(orders):
        for other in [*orders[:i], np.arange(2003)]:
            assert (order == other).mean() < 0.01


def test_every_record_is_equally_often_at_every_place() -> None:
    places = np.stack([permute(0, epoch, np.arange(5), 5) for epoch in range(4000)])
    counts = np.stack([np.bincount(places[:, place], minlength=5) for place in range(5)])
    assert abs(counts / 800 - 1.0).max() < 0.15


def test_neighbours_are_scattered() -> None:
    order = permute(0, 0, np.arange(100_000), 100_000)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.01
    assert abs(np.corrcoef(np.arange(100_000), order)[0, 1]) < 0.01


def test_positions_straddle_epochs() -> None:
    stream = indices_at(5, np.arange(30), 7)
    for epoch in range(4):
        assert sorted(stream[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert np.array_equal(indices_at(5, np.arange(11, 19), 7), stream[11:19])


def test_a_far_position_needs_nothing_before_it() -> None:
    count, epoch = 1_281_167, 10**9
    far = indices_at(0, np.arange(2048) + epoch * count, count)
    assert np.array_equal(far, permute(0, epoch, np.arange(2048), count))
    assert len(set(far.tolist())) == 2048
