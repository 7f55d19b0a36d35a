"""Tars of latents by others, read where they lie."""

import dataclasses
import io
import json
import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from dit_scale.cli import main
from dit_scale.data.dataset import LatentDataset
from dit_scale.data.loader import Loader
from dit_scale.latents import sample_latent
from preprocessing.arrays import samples_of
from tests.preprocessing.images import tar_of


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae") / "vae"
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    diffusers.AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, **blocks).save_pretrained(folder)
    return folder


def _write(path: Path, samples: list[tuple[str, np.ndarray, int]], label_as: str = "cls") -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:  # as webdataset's own writer does
        for key, array, label in samples:
            buffer = io.BytesIO()
            np.save(buffer, array)
            text = str(label) if label_as == "cls" else json.dumps({"label": label, "caption": "é"})
            members = [(f"{key}.{label_as}", text.encode()), (f"{key}.npy", buffer.getvalue())]
            for name, content in members[:: 1 if label % 2 else -1]:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def _samples(count: int, shape: tuple[int, ...], dtype: str, first: int = 0) -> list[tuple[str, np.ndarray, int]]:
    rng = np.random.default_rng(first)
    return [(f"a/{first + i:04d}", rng.normal(size=shape).astype(dtype), (first + i) % 3) for i in range(count)]


@pytest.mark.parametrize("label_as", ["cls", "json"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((4, 8, 8), "float32"), ((1, 4, 8, 8), "float16"), ((8, 8, 8), "float32"), ((8, 8, 8), "float16")],
)
def test_indexed_tars_read_as_what_they_hold(
    vae: Path, tmp_path: Path, shape: tuple[int, ...], dtype: str, label_as: str
) -> None:
    everything = _samples(7, shape, dtype) + _samples(4, shape, dtype, first=7)
    _write(tmp_path / "a.tar", everything[:7], label_as)
    _write(tmp_path / "b.tar", everything[7:], label_as)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.tar")}
    (tmp_path / "names").write_text("ant\nbee\ncow\n")
    main(
        ["index", str(tmp_path), "--autoencoder", str(vae), "--class-names", str(tmp_path / "names"), "--scale", "0.5"]
    )
    dataset = LatentDataset.open(tmp_path)
    moments, labels = dataset.read(np.arange(11), np.zeros(11, bool))
    assert dataset.class_names == ("ant", "bee", "cow")
    assert dataset.manifest.latents.scale == (0.5,)
    assert dataset.keys(np.array([0, 10])) == ["a/0000", "a/0010"]
    assert labels.tolist() == [i % 3 for i in range(11)]
    for row, (_, array, _) in zip(moments, everything, strict=True):
        stored = torch.from_numpy(array.reshape(array.shape[-3:])).float()
        assert torch.equal(row[: len(stored)].float(), stored)
    if shape[-3] == 4:  # no variance is stored: a draw is the stored latent
        latent = sample_latent(moments, torch.randn(11, 4, 8, 8), dataset.manifest.latents)
        torch.testing.assert_close(latent[0], torch.from_numpy(everything[0][1]).reshape(4, 8, 8).float() * 0.5)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.tar")} == before
    with Loader(dataset, seed=0, global_batch_size=11) as loader:
        assert sorted(next(loader).keys) == [f"a/{i:04d}" for i in range(11)]
    main(["verify", str(tmp_path)])
    main(["verify", "--quick", str(tmp_path)])
    main(["inspect", str(tmp_path), "--out", str(tmp_path / "grid.png")])


def test_latents_that_were_scaled_before_they_were_stored(vae: Path, tmp_path: Path) -> None:
    samples = _samples(3, (4, 8, 8), "float32")
    _write(tmp_path / "a.tar", samples)
    main(["index", str(tmp_path), "--autoencoder", str(vae), "--stored-scale", "0.18215"])
    dataset = LatentDataset.open(tmp_path)
    moments, _ = dataset.read(np.arange(3), np.zeros(3, bool))
    latent = sample_latent(moments, torch.zeros(3, 4, 8, 8), dataset.manifest.latents)
    torch.testing.assert_close(latent[1], torch.from_numpy(samples[1][1]))
    assert dataset.manifest.statistics.std[0] == pytest.approx(1 / 0.18215, rel=0.3)


def test_equal_class_names_stay_apart(vae: Path, tmp_path: Path) -> None:
    _write(tmp_path / "a.tar", _samples(6, (4, 8, 8), "float32"))
    (tmp_path / "names").write_text("\ufeffcrane\ntench, Tinca tinca\ncrane\n", encoding="utf-8")
    main(["index", str(tmp_path), "--autoencoder", str(vae), "--class-names", str(tmp_path / "names")])
    dataset = LatentDataset.open(tmp_path)
    assert dataset.class_names == ("crane", "tench, Tinca tinca", "crane")
    assert dataset.read(np.arange(6), np.zeros(6, bool))[1].tolist() == [0, 1, 2, 0, 1, 2]


def test_mistakes_get_one_sentence(vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(samples: list[tuple[str, np.ndarray, int]], *more: str) -> str:
        _write(tmp_path / "a.tar", samples)
        with pytest.raises(SystemExit) as stopped:
            main(["index", str(tmp_path), "--autoencoder", str(vae), *more])
        assert stopped.value.code == 2
        assert sorted(path.name for path in tmp_path.iterdir() if path.name != "names") == ["a.tar"]
        return capsys.readouterr().err

    good = _samples(2, (4, 8, 8), "float32")
    assert "has shape (5, 8, 8); autoencoder 'vae' makes latents [4, h, h]" in refused(
        _samples(1, (5, 8, 8), "float32")
    )
    assert "one folder holds one kind" in refused(good + _samples(1, (4, 8, 8), "float16", first=2))
    assert "holds int32 numbers" in refused(_samples(1, (4, 8, 8), "int32"))
    assert "give the right --member" in refused(good, "--member", "latent.npy")
    (tmp_path / "names").write_text("ant\n")
    assert "label 1 occurs, but there are 1 class names; labels count from 0: give all names" in refused(
        good, "--class-names", str(tmp_path / "names")
    )
    bad = _samples(2, (4, 8, 8), "float32")
    for number in (np.nan, np.inf):
        bad[1][1][0, 0, 0] = number
        said = refused(bad)
        assert "'a/0001' in '" in said
        assert "a.tar' holds numbers that are infinite or not a number; write it again" in said
    for scale in ("0", "-1", "1,0", "nan"):
        assert "argument --scale: " in refused(good, "--scale", scale)
        assert "above 0" in refused(good, "--scale", scale)
    assert "names' cannot be read (No such file" in refused(good, "--class-names", str(tmp_path / "no names"))
    (tmp_path / "a.tar").write_bytes(b"no tar" * 100)
    with pytest.raises(SystemExit):
        main(["index", str(tmp_path), "--autoencoder", str(vae)])
    assert "a.tar' is a file, not an uncompressed tar; give a whole tar" in capsys.readouterr().err


def _numbered(path: Path, labels: list[int], names: list[str] | None = None) -> None:
    arrays = _samples(len(labels), (4, 8, 8), "float32")
    keys = names or [key for key, _, _ in arrays]
    _write(path, [(key, array, label) for key, (_, array, _), label in zip(keys, arrays, labels, strict=True)])


def _index(folder: Path, vae: Path, *more: str) -> LatentDataset:
    main(["index", str(folder), "--autoencoder", str(vae), *more])
    return LatentDataset.open(folder)


def _refusal(folder: Path, vae: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """Return what ``index`` says where it leaves the folder as it was."""
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(SystemExit) as stopped:
        main(["index", str(folder), "--autoencoder", str(vae), *more])
    assert stopped.value.code == 2
    assert sorted(path.name for path in folder.iterdir()) == before
    return capsys.readouterr().err


def test_labels_have_the_rules_of_encode(vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _numbered(tmp_path / "a.tar", [1, 2, 3, 1, 2, 3])
    said = _refusal(tmp_path, vae, capsys)
    assert "count from 1 to 3, so that class 0 would have no record; write each label less 1 (--no-check-labels" in said
    _numbered(tmp_path / "a.tar", [1, 10**9])
    assert "label 1000000000 of" in _refusal(tmp_path, vae, capsys)
    _numbered(tmp_path / "a.tar", [1, 2, 3])
    assert _index(tmp_path, vae, "--no-check-labels").class_names == ("0", "1", "2", "3")
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "names").write_text("background\nant\nbee\ncow\n")
    assert len(_index(tmp_path, vae, "--class-names", str(tmp_path / "names")).class_names) == 4


def test_what_was_found_is_said_first(vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _numbered(tmp_path / "a.tar", [5, 7])
    with tarfile.open(tmp_path / "a.tar", "a") as archive:
        archive.addfile(tarfile.TarInfo("d.cls"))
    dataset = _index(tmp_path, vae)
    assert len(dataset.class_names) == 8
    said = capsys.readouterr()
    assert said.err.splitlines()[-5:] == [
        "found 2 records of 8 classes, from '0' (label 0) to '7' (label 7)",
        "the smallest class with records has 1 ('5'), the largest 1 ('5')",
        "without a record: 6 classes, '0', '1', '2', '3', '4', '6'",
        "left out: .cls (1)",
        "indexed 1/1  a.tar: 2 records",
    ]
    assert said.out.startswith("2 records in 1 shard, fingerprint ")
    main(["verify", str(tmp_path)])
    assert ": 1 shard, 2 records, " in capsys.readouterr().out


def test_tars_of_several_splits_are_refused(vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _numbered(tmp_path / "imagenet1k-train-0000.tar", [0, 1], ["a", "b"])
    _numbered(tmp_path / "imagenet1k-validation-00.tar", [0, 1], ["c", "d"])
    said = _refusal(tmp_path, vae, capsys)
    assert "belong to several splits ('imagenet1k-train', 'imagenet1k-validation'); move those of each" in said
    assert len(_index(tmp_path, vae, "--no-check-labels").manifest.shards) == 2


def test_keys_with_dots_are_read_as_encode_reads_them(
    vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _numbered(tmp_path / "a.tar", [0, 1, 2, 1], ["a", "b.v2", "d.1/p.0", "d.1/p.1.x"])
    dataset = _index(tmp_path, vae)
    assert dataset.keys(np.arange(4)) == ["a", "b.v2", "d.1/p.0", "d.1/p.1.x"]
    assert dataset.read(np.arange(4), np.zeros(4, bool))[1].tolist() == [0, 1, 2, 1]
    main(["verify", str(tmp_path)])
    for path in (*tmp_path.glob("*.npy"), *tmp_path.glob("*.safetensors"), *tmp_path.glob("*.json")):
        path.unlink()
    array = io.BytesIO()
    np.save(array, np.zeros((4, 8, 8), np.float32))
    for members, said in (
        (("p.a.npy", "p.b.npy", "p.cls"), "sample 'p' in '{}' holds 2 arrays, .a.npy and .b.npy; give --member with"),
        (("p.v2.npy", "q.npy", "q.cls"), "holds array 'p.v2.npy' but no 'p.cls' or 'p.json' beside it (a key ends at"),
        (("p.npy", "p.cls", "p.npy", "p.cls"), "'{}' holds 'p.npy' twice in one sample; give each its own key"),
        (("p.npy", "p.json"), "'p.json' in '{}' is '0', not a class number; write 0, 1, 2, … as text (.cls), or as la"),
    ):
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            for name in members:
                content = array.getvalue() if name.endswith("npy") else b"0"
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        assert said.format(tmp_path / "a.tar") in _refusal(tmp_path, vae, capsys)
        if "p.a.npy" in members:
            assert _index(tmp_path, vae, "--member", "a.npy").manifest.num_records == 1
            for path in (*tmp_path.glob("*.npy"), *tmp_path.glob("*.safetensors"), *tmp_path.glob("*.json")):
                path.unlink()


def test_arrays_that_are_none_and_cut_tars_are_named(
    vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    array = io.BytesIO()
    np.save(array, np.zeros((4, 8, 8), np.float32))
    for content, said in (
        (b"x" * 90, "'p.npy' in '{}' is not a whole .npy array; give the right --member"),
        (array.getvalue()[:-4], "'p.npy' in '{}' holds 1020 bytes for an array (4, 8, 8) of float32, which has 1024"),
    ):
        (tmp_path / "a.tar").write_bytes(tar_of({"p.npy": content, "p.cls": b"0"}))
        assert said.format(tmp_path / "a.tar") in _refusal(tmp_path, vae, capsys)
    (tmp_path / "a.tar").write_bytes(tar_of({"p.npy": array.getvalue(), "p.cls": b"0"})[:1536])
    assert "a.tar' is not a whole, uncompressed tar" in _refusal(tmp_path, vae, capsys)


def test_verify_names_latents_that_are_not_finite(
    vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an index of before has taken them."""
    _numbered(tmp_path / "a.tar", [0, 1])
    manifest = _index(tmp_path, vae).manifest
    broken = dataclasses.replace(manifest.statistics, mean=(float("nan"),) * 4)
    dataclasses.replace(manifest, statistics=broken).write(tmp_path)
    for more in ([], ["--quick"]):
        with pytest.raises(SystemExit):
            main(["verify", str(tmp_path), *more])
        said = capsys.readouterr().err
        assert "are infinite or not a number, as their mean and deviation in its manifest.json are; delete" in said


def test_nothing_of_anybody_is_written_over(vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused() -> str:
        with pytest.raises(SystemExit) as stopped:
            main(["index", str(tmp_path), "--autoencoder", str(vae)])
        assert stopped.value.code == 2
        return capsys.readouterr().err

    _write(tmp_path / "a.tar", _samples(2, (4, 8, 8), "float32"))
    np.save(tmp_path / "a.npy", np.arange(3))
    assert "stands where the sidecar of its tar belongs" in refused()
    assert np.load(tmp_path / "a.npy").tolist() == [0, 1, 2]
    (tmp_path / "a.npy").unlink()
    (tmp_path / "encoding").mkdir()
    assert "run dit-scale encode again, which ends with a manifest" in refused()
    (tmp_path / "encoding").rmdir()
    main(["index", str(tmp_path), "--autoencoder", str(vae)])
    (tmp_path / "manifest.json").unlink()  # as an indexing that was killed leaves its sidecars
    main(["index", str(tmp_path), "--autoencoder", str(vae)])
    assert "has a manifest.json already" in refused()


def test_a_listing_takes_few_bytes_a_record(tmp_path: Path) -> None:
    """Of a million records it lies in memory until all are read; names come back as they were."""
    samples = [(f"n0144/é-{i:06d}", np.zeros(1, "float16"), i % 1000) for i in range(2000)]
    _write(tmp_path / "a.tar", samples)
    samples_of(tmp_path / "a.tar", "npy", Counter())  # what a first call sets up is not the listing's
    tracemalloc.start()
    found = samples_of(tmp_path / "a.tar", "npy", Counter())
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken / len(found) < 128
    assert [(key, label) for key, label, _ in found] == [(key, label) for key, _, label in samples]
    assert [member.name for _, _, member in found] == [f"{key}.npy" for key, *_ in samples]
