"""A record's bytes: a fixed stride that any reader of tars or webdatasets understands."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from dit_scale.data.dataset import LatentDataset
from dit_scale.data.record import RecordLayout, key_of
from tests.data.shard_folder import LATENTS, random_records, write_folder


def test_records_read_by_stride_equal_those_read_by_tarfile_and_webdataset(tmp_path: Path) -> None:
    written = write_folder(tmp_path, [5, 3])
    dataset = LatentDataset.open(tmp_path)
    everything = np.arange(8)
    plain, labels = dataset.read(everything, np.zeros(8, bool))
    mirrored, _ = dataset.read(everything, np.ones(8, bool))
    ours = torch.stack((plain, mirrored), dim=1).numpy()

    paths = [str(tmp_path / "shard-000000.tar"), str(tmp_path / "shard-000001.tar")]
    by_webdataset = list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False).decode())
    assert [sample["__key__"] for sample in by_webdataset] == dataset.keys(everything)
    for i, sample in enumerate(by_webdataset):
        np.testing.assert_array_equal(sample["npy"], ours[i])
        np.testing.assert_array_equal(written[i].moments, ours[i])
        assert sample["cls"] == labels[i] == written[i].label

    with tarfile.open(paths[0]) as archive:
        for i in range(5):
            member = archive.extractfile(f"{key_of(i)}.npy")
            assert member is not None
            np.testing.assert_array_equal(np.load(io.BytesIO(member.read()), allow_pickle=False), ours[i])


def test_nothing_in_a_record_tells_who_wrote_it_or_when(tmp_path: Path) -> None:
    write_folder(tmp_path, [2])
    with tarfile.open(tmp_path / "shard-000000.tar") as archive:
        for member in archive:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert member.pax_headers == {}


@pytest.mark.parametrize("mirrors", [1, 2])
@pytest.mark.parametrize("shape", [(8, 32, 32), (2, 3, 3), (32, 1, 1)])
def test_every_record_has_the_stride(mirrors: int, shape: tuple[int, int, int]) -> None:
    layout = RecordLayout(mirrors, shape)
    moments = np.zeros((mirrors, *shape), np.float16)
    for key, label in (("0000000000", 0), ("9999999999", 21_841)):
        assert len(layout.pack(key, moments, label)) == layout.stride_bytes


def test_moments_of_another_type_are_refused() -> None:
    record = random_records(1)[0]
    with pytest.raises(ValueError, match=r"moments are float32 .*; this layout takes float16"):
        RecordLayout(2, LATENTS.moments_shape).pack("0", record.moments.astype(np.float32), 0)
