"""Held out by key, set aside when damaged, and read within windows."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dit_scale.data.dataset import LatentDataset
from dit_scale.data.loader import Loader, Reading, Window
from dit_scale.data.record import RecordLayout
from dit_scale.errors import InputError
from tests.data.shard_folder import LATENTS, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path, [40, 40, 21])
    return tmp_path


def _damage(folder: Path, shard: int, record: int) -> None:
    """Flip a bit in both mirrors of a record."""
    path = folder / f"shard-{shard:06d}.tar"
    content = bytearray(path.read_bytes())
    for mirror in (0, 1):
        layout = RecordLayout(2, LATENTS.moments_shape)
        content[int(layout.offsets(np.array([record]), np.array([mirror]))[0]) + 9] ^= 1
    path.write_bytes(content)


def _keys(dataset: LatentDataset, records: np.ndarray) -> set[str]:
    return set(dataset.keys(records))


def test_held_out_records_are_never_trained_on(folder: Path) -> None:
    dataset = LatentDataset.open(folder, held_out_fraction=0.3)
    held_out = _keys(dataset, dataset.held_out())
    order = dataset.order(seed=0)
    (count,) = order.num_records
    trained = [_keys(dataset, dataset.records_at(order, np.arange(e * count, (e + 1) * count))) for e in range(3)]
    assert all(len(epoch) == count and not epoch & held_out for epoch in trained)
    assert len(held_out) + count == 101
    assert 15 < len(held_out) < 45


def test_the_split_depends_on_the_keys_alone(folder: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "other", [101], mirrors=1)
    one, other = (LatentDataset.open(path, held_out_fraction=0.3) for path in (folder, tmp_path / "other"))
    assert _keys(one, one.held_out()) == _keys(other, other.held_out())
    more = LatentDataset.open(folder, held_out_fraction=0.5)
    assert _keys(one, one.held_out()) < _keys(more, more.held_out())


def test_a_split_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, [3])
    with pytest.raises(InputError, match=r"data.held_out_fraction=1e-06 leaves all of the 3 records"):
        LatentDataset.open(tmp_path, held_out_fraction=1e-6)


def test_damage_stops_or_is_set_aside(folder: Path) -> None:
    _damage(folder, shard=1, record=7)
    dataset = LatentDataset.open(folder)
    with (
        Loader(dataset, seed=0, global_batch_size=101) as loader,
        pytest.raises(InputError, match=r"record 0000000047 of shard '.*shard-000001.tar' .* data.on_damage=set_aside"),
    ):
        next(loader)
    with Loader(dataset, seed=0, global_batch_size=101, reading=Reading(on_damage="set_aside")) as loader:
        batch = next(loader)
    ((place, how),) = batch.damaged.items()
    assert batch.keys[place] == "0000000047"
    assert "shard-000001.tar' does not have the digest" in how
    assert not batch.moments[place].any()
    whole = torch.cat((batch.moments[:place], batch.moments[place + 1 :]))
    assert whole.flatten(1).any(dim=1).all()


@pytest.mark.parametrize("window", [Window(8, 3), Window(1, 50), Window(7, 1), Window(200, 4)])
def test_every_epoch_within_windows_is_a_permutation(folder: Path, window: Window) -> None:
    dataset = LatentDataset.open(folder)
    order = dataset.order(seed=3, window=window)
    epochs = [dataset.records_at(order, np.arange(e * 101, (e + 1) * 101)) for e in range(3)]
    assert all((np.sort(epoch) == np.arange(101)).all() for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3


def test_a_window_keeps_reading_within_its_blocks(tmp_path: Path) -> None:
    write_folder(tmp_path, [48, 48])
    dataset = LatentDataset.open(tmp_path)
    windows = dataset.records_at(dataset.order(seed=3, window=Window(8, 3)), np.arange(96)).reshape(4, 24)
    blocks = [sorted(set((window // 8).tolist())) for window in windows]
    assert [len(part) for part in blocks] == [3] * 4
    assert not any((np.sort(window) == window).all() for window in windows)
    in_order = [block for part in blocks for block in part]
    assert sorted(in_order) == list(range(12)) != in_order


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_windows_change_nothing_about_ranks_and_resuming(folder: Path, world_size: int) -> None:
    window = Window(8, 3)

    def keys(ranks: int, start: int, steps: int) -> list[list[str]]:
        loaders = [
            Loader(
                LatentDataset.open(folder),
                seed=2,
                global_batch_size=16,
                rank=rank,
                world_size=ranks,
                start=start,
                window=window,
            )
            for rank in range(ranks)
        ]
        return [[key for loader in loaders for key in next(loader).keys] for _ in range(steps)]

    assert keys(world_size, start=5 * 16, steps=9) == keys(1, start=0, steps=14)[5:]


def test_imagenet_sized_epochs_are_permutations_also_within_windows() -> None:
    from dit_scale.data.order import Order

    count = 1_281_167
    for window in (None, Window(256, 64)):
        order = Order(seed=0, num_records=(count,), window=window)
        for epoch in range(2):
            seen = np.zeros(count, bool)
            for first in range(0, count, 1 << 18):
                last = min(count, first + (1 << 18))
                seen[order.at(np.arange(epoch * count + first, epoch * count + last))[1]] = True
            assert seen.all()
