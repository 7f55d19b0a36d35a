"""Damage is named: a flipped bit, a truncated or missing shard, a sidecar of another."""

from pathlib import Path

import numpy as np
import pytest

from dit_scale.data.dataset import LatentDataset
from dit_scale.data.manifest import read_manifest
from dit_scale.data.record import RecordLayout
from dit_scale.data.shards import Record, damage_of, write_shard
from dit_scale.errors import InputError
from tests.data.shard_folder import LATENTS, random_records, write_folder

NOT_MIRRORED = np.zeros(1, bool)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path, [4, 4])
    return tmp_path


def _flip_a_bit(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 4
    path.write_bytes(content)


def test_a_flipped_bit_is_found_when_its_record_is_read(folder: Path) -> None:
    layout = RecordLayout(2, LATENTS.moments_shape)
    offset = int(layout.offsets(np.array([2]), np.array([0]))[0]) + 100
    _flip_a_bit(folder / "shard-000001.tar", offset)
    dataset = LatentDataset.open(folder)
    dataset.read(np.array([5]), NOT_MIRRORED)
    dataset.read(np.array([6]), ~NOT_MIRRORED)  # the other mirror is whole
    with pytest.raises(InputError, match=r"record 0000000006 of shard '.*shard-000001.tar' does not have the digest"):
        dataset.read(np.array([6]), NOT_MIRRORED)
    dataset.read(np.array([6]), NOT_MIRRORED, verify=False)
    first, second = read_manifest(folder).shards
    assert damage_of(folder, first) is None
    assert "shard-000001.tar has SHA-256" in str(damage_of(folder, second))


def test_a_truncated_shard_is_named_at_the_door(folder: Path) -> None:
    path = folder / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"shard '.*shard-000001.tar' has \d+ bytes, its manifest says \d+"):
        LatentDataset.open(folder)


@pytest.mark.parametrize("name", ["shard-000000.tar", "shard-000001.npy"])
def test_a_missing_file_is_named_at_the_door(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(InputError, match=rf"'.*{name}' is missing"):
        LatentDataset.open(folder)


def test_a_sidecar_with_a_flipped_bit_is_named_at_the_door(folder: Path) -> None:
    _flip_a_bit(folder / "shard-000000.npy", -1)
    with pytest.raises(InputError, match=r"sidecar '.*shard-000000.npy' is not the one"):
        LatentDataset.open(folder)


def test_a_shard_cut_while_it_is_open_is_named(folder: Path) -> None:
    dataset = LatentDataset.open(folder)
    with (folder / "shard-000001.tar").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(InputError, match=r"record 0000000004 of shard '.*shard-000001.tar' ends early"):
        dataset.read(np.array([4]), NOT_MIRRORED)


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def records() -> "list[Record]":
        yield random_records(1)[0]  # type: ignore[misc]
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match=r"no more"):
        write_shard(tmp_path, "shard-000000", RecordLayout(2, LATENTS.moments_shape), records())
    assert list(tmp_path.iterdir()) == []
