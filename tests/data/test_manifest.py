"""The manifest is read back as it was written, or refused in one sentence."""

import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dit_scale.data.folder import ShardFolder
from dit_scale.data.manifest import Manifest, read_manifest
from dit_scale.data.statistics import LatentSums, no_latents
from dit_scale.errors import InputError
from tests.data.shard_folder import random_records, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "shards", [3, 2])
    return tmp_path / "shards"


def test_round_trip(folder: Path, tmp_path: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest.num_records == 5
    assert manifest.class_names == ("a", "b", "c")
    manifest.write(tmp_path)
    again = read_manifest(tmp_path)
    assert again == manifest
    assert again.fingerprint == manifest.fingerprint


def _change(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"class_names": ["b", "a", "c"]}, r"was changed after it was written"),
        ({"fingerprint": "0" * 64}, r"its fingerprint is 000000000000"),
        ({"format_version": 3}, r"has format version 3, this dit_scale reads 2; update dit_scale"),
        ({"format_version": 1}, r"has format version 1, .* encode the images again"),
        ({"colour": "red"}, r"found the key 'colour', which does not belong there"),
        (
            {"stored": {"dtype": "float32", "has_variance": True, "scale": 1.0}},
            r"hold means and log-variances as float32 times 1, and ours hold .* as float16",
        ),
    ],
)
def test_what_cannot_be_trusted_is_refused(folder: Path, changes: dict[str, object], sentence: str) -> None:
    _change(folder, **changes)
    with pytest.raises(InputError, match=sentence):
        read_manifest(folder)


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not exist; dit-scale encode makes one"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no shard folder or its encoding is unfinished"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format_ver')
    with pytest.raises(InputError, match=r"is not a manifest"):
        read_manifest(tmp_path)


def make_file(kind: str, folder: Path) -> Path:
    path = folder / "theirs"
    array = np.zeros(4, np.uint8)
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("00000/img00000000.png", b"x")
    elif kind in ("tar", "tar.gz"):
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
            archive.add(__file__, "a.npy")
    elif kind == "npz":
        np.savez(folder / "theirs.npz", array)
        return folder / "theirs.npz"
    elif kind == "npy":
        np.save(folder / "theirs.npy", array)
        return folder / "theirs.npy"
    elif kind == "safetensors":
        save_file({"a": torch.zeros(3)}, path)
    elif kind in ("pt", "old pt"):
        torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=kind == "pt")
    else:
        path.write_bytes(
            {"parquet": b"PAR1" + bytes(8), "pickle": pickle.dumps({}), "empty": b"", "text": b"hello"}[kind]
        )
    return path


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("zip", "is a zip archive, not a shard folder; unpack it (python -m zipfile -e); dit-scale encode makes"),
        ("tar", "is a tar, not a shard folder; of images: dit-scale encode takes it as source.path; of latents"),
        ("tar.gz", "is a gzip-compressed file, not a shard folder; unpack it (tar xf)"),
        (
            "npz",
            "is an .npz archive, not a shard folder; dit-scale encode makes shards of images; latents go into tars",
        ),
        ("npy", "is a .npy array, not a shard folder"),
        ("safetensors", "is a safetensors file, not a shard folder"),
        ("pt", "is a file of torch.save, not a shard folder"),
        ("old pt", "is a file of torch.save, not a shard folder"),
        ("parquet", "is a Parquet table, not a shard folder"),
        ("pickle", "is a pickle, not a shard folder"),
        ("empty", "is an empty file, not a shard folder"),
        ("text", "is a file, not a shard folder"),
    ],
)
def test_a_file_is_told_for_what_it_is(kind: str, sentence: str, tmp_path: Path) -> None:
    path = make_file(kind, tmp_path)
    with pytest.raises(InputError) as caught:
        ShardFolder.open(path)
    assert str(caught.value).startswith(f"'{path}' {sentence}")


def test_a_file_within_a_shard_folder_is_not_the_folder(folder: Path) -> None:
    for name in ("manifest.json", "shard-000000.tar"):
        with pytest.raises(InputError, match=f"not a shard folder; give the folder that it lies in, '{folder}'"):
            read_manifest(folder / name)


def test_the_fingerprint_covers_every_field(folder: Path) -> None:
    manifest = read_manifest(folder)
    fields = Manifest.__dataclass_fields__
    changed = [manifest.__class__(**{**{n: getattr(manifest, n) for n in fields}, name: None}) for name in fields]
    assert len({manifest.fingerprint, *(other.fingerprint for other in changed)}) == len(fields) + 1


def test_statistics_are_those_of_latents_drawn_from_the_posterior() -> None:
    moments = np.stack([record.moments for record in random_records(40)]).astype(np.float64)  # [N, M, 2C, h, w]
    sums = sum((LatentSums.of(one) for one in moments), no_latents(4, 16))
    statistics = sums.statistics()
    mean, log_variance = np.split(moments, 2, axis=2)
    drawn = torch.from_numpy(mean + np.exp(log_variance / 2) * np.random.default_rng(0).normal(size=(200, *mean.shape)))
    assert statistics.count == 80
    torch.testing.assert_close(torch.tensor(statistics.mean).double(), drawn.mean((0, 1, 2, 4, 5)), atol=0.01, rtol=0)
    torch.testing.assert_close(torch.tensor(statistics.std).double(), drawn.std((0, 1, 2, 4, 5)), atol=0.01, rtol=0)
