"""The loader: the same stream on any number of ranks, from any place, and a clean end."""

import subprocess
import sys
import threading
import time
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dit_scale import draws
from dit_scale.data.loader import Batch, LatentDataset, Loader, Reading
from dit_scale.data.order import indices_at
from dit_scale.draws import Stream
from dit_scale.errors import Failure, InputError
from tests.data.shard_folder import write_folder

GLOBAL_BATCH = 8
STEPS = 6  # 48 positions over 23 records: batches straddle two epochs' ends


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_folder(folder, [10, 9, 4])
    return folder


def _steps(folder: Path, world_size: int = 1, start: int = 0, steps: int = STEPS, **reading: Any) -> list[Batch]:
    """Return whole global batches, put together from all ranks' parts."""
    parts = []
    for rank in range(world_size):
        dataset = LatentDataset.open(folder)
        with Loader(
            dataset,
            seed=1,
            global_batch_size=GLOBAL_BATCH,
            rank=rank,
            world_size=world_size,
            start=start,
            reading=Reading(**reading),
        ) as loader:
            parts.append([next(loader) for _ in range(steps)])
        dataset.close()
    return [
        Batch(
            *(torch.cat(tensors) for tensors in list(zip(*step, strict=True))[:3]),
            list(chain.from_iterable(b.keys for b in step)),
            {},
        )
        for step in zip(*parts, strict=True)
    ]


def _assert_same(left: list[Batch], right: list[Batch]) -> None:
    for a, b in zip(left, right, strict=True):
        assert a.keys == b.keys
        assert all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))


@pytest.mark.parametrize("world_size", [2, 4])
def test_global_batches_are_the_same_for_any_number_of_ranks(folder: Path, world_size: int) -> None:
    _assert_same(_steps(folder, world_size), _steps(folder))


@pytest.mark.parametrize("steps_done", [1, 3, 5])
@pytest.mark.parametrize("world_size", [1, 2])
def test_going_on_from_any_step_gives_the_rest_of_the_stream(folder: Path, steps_done: int, world_size: int) -> None:
    rest = _steps(folder, world_size, start=steps_done * GLOBAL_BATCH, steps=STEPS - steps_done)
    _assert_same(rest, _steps(folder)[steps_done:])


def test_every_epoch_has_every_record_once(folder: Path) -> None:
    keys = [key for batch in _steps(folder) for key in batch.keys]
    assert len(set(keys[:23])) == len(set(keys[23:46])) == 23
    assert keys[:23] != keys[23:46]


def test_a_batch_holds_what_its_positions_say(folder: Path) -> None:
    dataset = LatentDataset.open(folder)
    for batch in _steps(folder):
        indices = indices_at(1, batch.positions.numpy(), 23)
        mirrored = (draws.uniform(1, Stream.MIRROR, batch.positions) < 0.5).numpy()
        moments, labels = dataset.read(indices, mirrored)
        assert torch.equal(batch.moments, moments)
        assert torch.equal(batch.conditions, labels)
        assert batch.keys == [f"{index:010d}" for index in indices]
        assert batch.conditions.tolist() == [index % 3 for index in indices]


def test_mirrors_are_drawn_anew_each_epoch_or_not_at_all(folder: Path) -> None:
    dataset = LatentDataset.open(folder)
    plain, _ = dataset.read(np.arange(23), np.zeros(23, bool))
    seen: dict[str, set[bool]] = {}
    for batch in _steps(folder):
        for key, moments in zip(batch.keys, batch.moments, strict=True):
            seen.setdefault(key, set()).add(bool(torch.equal(moments, plain[int(key)])))
    assert any(len(ways) == 2 for ways in seen.values())
    for batch in _steps(folder, mirror=False):
        assert torch.equal(batch.moments, plain[[int(key) for key in batch.keys]])


def test_shards_without_mirrors_are_read_as_they_are(tmp_path: Path) -> None:
    records = write_folder(tmp_path, [8], mirrors=1)
    for batch in _steps(tmp_path, steps=2):
        for key, moments in zip(batch.keys, batch.moments, strict=True):
            np.testing.assert_array_equal(records[int(key)].moments[0], moments.numpy())


def test_a_batch_stays_valid_when_others_follow(folder: Path) -> None:
    with Loader(LatentDataset.open(folder), seed=1, global_batch_size=8, reading=Reading(prefetch_batches=1)) as loader:
        first = next(loader)
        copy = first.moments.clone()
        for _ in range(5):
            next(loader)
        assert torch.equal(first.moments, copy)


def test_ranks_must_divide_the_global_batch(folder: Path) -> None:
    with pytest.raises(InputError, match=r"global_batch_size=8 is not divisible by 3 ranks"):
        Loader(LatentDataset.open(folder), seed=0, global_batch_size=8, world_size=3)


def test_an_error_in_reading_reaches_the_consumer(tmp_path: Path) -> None:
    write_folder(tmp_path, [4])
    dataset = LatentDataset.open(tmp_path)
    with (tmp_path / "shard-000000.tar").open("r+b") as file:
        file.truncate(10)
    with Loader(dataset, seed=0, global_batch_size=4) as loader, pytest.raises(InputError, match=r"ends early"):
        next(loader)


def test_a_stalled_read_does_not_wait_for_ever(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr("os.preadv", lambda *_: released.wait())
    with Loader(
        LatentDataset.open(folder), seed=0, global_batch_size=4, reading=Reading(patience_seconds=0.2)
    ) as loader:
        with pytest.raises(Failure, match=r"no batch within 0.2 s"):
            next(loader)
        released.set()


def test_closing_or_dropping_a_loader_ends_its_thread(folder: Path) -> None:
    def threads() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "latent-loader"]

    with Loader(LatentDataset.open(folder), seed=0, global_batch_size=4):
        assert len(threads()) == 1
    assert not threads()
    dropped = Loader(LatentDataset.open(folder), seed=0, global_batch_size=4)
    next(dropped)
    del dropped
    deadline = time.monotonic() + 60
    while threads() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not threads()


def test_a_loader_left_open_does_not_hold_up_the_interpreter(folder: Path) -> None:
    code = (
        "from dit_scale.data.loader import LatentDataset, Loader\n"
        f"loader = Loader(LatentDataset.open({str(folder)!r}), seed=0, global_batch_size=4)\n"
        "print(len(next(loader).keys))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "4\n"), result.stderr
