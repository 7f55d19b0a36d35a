"""Tars to MDS and back: the same bytes, readable by mosaicml-streaming, never half made."""

import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streaming

from dit_scale.data import mds
from dit_scale.data.dataset import LatentDataset
from dit_scale.data.manifest import read_manifest
from dit_scale.data.mds import to_mds, to_tar
from dit_scale.data.record import key_of
from dit_scale.data.shards import Record
from dit_scale.errors import InputError
from tests.data.shard_folder import write_folder

FORK = multiprocessing.get_context("fork")
COMPANIONS = {"autoencoder.safetensors": b"weights", "rejected.jsonl": b'{"source_index": 99}\n'}


def _source(folder: Path, mirrors: int = 2) -> list[Record]:
    records = write_folder(folder, [5, 1, 4], mirrors)
    for name, content in COMPANIONS.items():
        (folder / name).write_bytes(content)
    return records


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("mirrors", [1, 2])
def test_there_and_back_gives_the_same_bytes(tmp_path: Path, mirrors: int) -> None:
    _source(tmp_path / "tar", mirrors)
    made = to_mds(tmp_path / "tar", tmp_path / "mds")
    assert made == read_manifest(tmp_path / "mds")
    assert made.container == "mds" and made.num_records == 10
    assert COMPANIONS.items() <= _files(tmp_path / "mds").items()
    again = to_tar(tmp_path / "mds", tmp_path / "again")
    assert again.fingerprint == read_manifest(tmp_path / "tar").fingerprint
    assert _files(tmp_path / "again") == _files(tmp_path / "tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "mds", "tar"]


@pytest.mark.parametrize("mirrors", [1, 2])
def test_mosaicml_streaming_reads_it(tmp_path: Path, mirrors: int) -> None:
    records = _source(tmp_path / "tar", mirrors)
    to_mds(tmp_path / "tar", tmp_path / "mds")
    index = json.loads((tmp_path / "mds" / "index.json").read_text())
    assert [(shard["raw_data"]["basename"], shard["samples"]) for shard in index["shards"]] == [
        ("shard.00000.mds", 5),
        ("shard.00001.mds", 1),
        ("shard.00002.mds", 4),
    ]
    streamed: Any = streaming.StreamingDataset(
        local=str(tmp_path / "mds"), batch_size=1, validate_hash="xxh64", shuffle=False
    )
    for dataset in (streaming.LocalDataset(str(tmp_path / "mds")), streamed):
        assert len(dataset) == len(records)
        for number, record in enumerate(records):
            sample = dataset[number]
            assert sample["key"] == key_of(record.source_index)
            assert sample["label"] == record.label
            assert sample["name"] == record.source_name
            assert sample["moments"].dtype == np.float16
            assert np.array_equal(sample["moments"], record.moments)


def test_our_reader_reads_it_by_offsets(tmp_path: Path) -> None:
    records = _source(tmp_path / "tar")
    to_mds(tmp_path / "tar", tmp_path / "mds")
    dataset = LatentDataset.open(tmp_path / "mds")
    indices = np.arange(len(records))[::-1].copy()
    for mirror in (0, 1):
        moments, labels = dataset.read(indices, np.full(len(indices), bool(mirror)))
        for place, number in enumerate(indices):
            assert np.array_equal(moments[place].numpy(), records[number].moments[mirror])
            assert labels[place] == records[number].label
    assert dataset.keys(indices[:1]) == [key_of(records[-1].source_index)]


def test_a_shard_without_records_survives(tmp_path: Path) -> None:
    """All of its images were rejected."""
    write_folder(tmp_path / "tar", [2, 0, 3])
    assert [shard.records for shard in to_mds(tmp_path / "tar", tmp_path / "mds").shards] == [2, 0, 3]
    to_tar(tmp_path / "mds", tmp_path / "again")
    assert _files(tmp_path / "again") == _files(tmp_path / "tar")
    streamed = streaming.LocalDataset(str(tmp_path / "mds"))
    assert [streamed[number]["key"] for number in range(5)] == [key_of(number) for number in range(5)]


def test_a_name_that_is_no_text_survives(tmp_path: Path) -> None:
    name = os.fsdecode(b"class/\xff.png")
    record = Record(0, name, 1, _source(tmp_path / "other")[0].moments)
    assert mds._sample(record)["name"] == "class/�.png"


def test_a_damaged_record_stops_it_and_leaves_nothing(tmp_path: Path) -> None:
    _source(tmp_path / "tar")
    path = tmp_path / "tar" / "shard-000002.tar"
    content = bytearray(path.read_bytes())
    content[-2300] ^= 1  # in the last record's moments
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"record 0000000009 of shard '.*shard-000002.tar' does not have the digest"):
        to_mds(tmp_path / "tar", tmp_path / "mds")
    assert not (tmp_path / "mds").exists()
    assert not (tmp_path / ".mds.converting").exists()


def test_what_is_there_already_is_kept_or_refused(tmp_path: Path) -> None:
    _source(tmp_path / "tar")
    made = to_mds(tmp_path / "tar", tmp_path / "mds")
    written = (tmp_path / "mds" / "shard.00000.mds").stat().st_mtime_ns
    assert to_mds(tmp_path / "tar", tmp_path / "mds") == made
    assert (tmp_path / "mds" / "shard.00000.mds").stat().st_mtime_ns == written
    write_folder(tmp_path / "other", [5, 1, 3])
    with pytest.raises(InputError, match=rf"holds something else, with fingerprint {made.fingerprint[:12]}"):
        to_mds(tmp_path / "other", tmp_path / "mds")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a").touch()
    with pytest.raises(InputError, match="is no shard folder; give a folder that does not exist"):
        to_mds(tmp_path / "tar", tmp_path / "notes")
    (tmp_path / "mds" / "shard.00000.mds").unlink()
    with pytest.raises(InputError, match=r"shard.00000.mds' is missing; delete '.*mds' and run this again"):
        to_mds(tmp_path / "tar", tmp_path / "mds")


def test_only_the_other_kind_is_converted(tmp_path: Path) -> None:
    _source(tmp_path / "tar")
    with pytest.raises(InputError, match="holds tar shards; only mds becomes tar"):
        to_tar(tmp_path / "tar", tmp_path / "again")


def _convert_and_hang(source: Path, target: Path) -> None:
    copy = mds._copy_companions

    def copy_and_hang(*arguments: Any) -> None:
        copy(*arguments)
        time.sleep(600)

    mds._copy_companions = copy_and_hang
    to_mds(source, target)


def test_a_killed_conversion_leaves_nothing_to_take_for_whole(tmp_path: Path) -> None:
    _source(tmp_path / "tar")
    process = FORK.Process(target=_convert_and_hang, args=(tmp_path / "tar", tmp_path / "mds"), daemon=True)
    process.start()
    last = tmp_path / ".mds.converting" / "rejected.jsonl"
    deadline = time.monotonic() + 20
    while not last.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()
    assert not (tmp_path / "mds").exists()
    to_mds(tmp_path / "tar", tmp_path / "mds")
    assert to_tar(tmp_path / "mds", tmp_path / "again").fingerprint == read_manifest(tmp_path / "tar").fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "mds", "tar"]
