"""Tars of latents by others, read where they lie."""

import io
import json
import tarfile
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from dit_scale.cli import main
from dit_scale.data.dataset import LatentDataset
from dit_scale.data.loader import Loader
from dit_scale.latents import sample_latent


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
        assert not (tmp_path / "manifest.json").exists()
        return capsys.readouterr().err

    good = _samples(2, (4, 8, 8), "float32")
    assert "has shape (5, 8, 8); autoencoder 'vae' makes latents [4, h, h]" in refused(
        _samples(1, (5, 8, 8), "float32")
    )
    assert "one folder holds one kind" in refused(good + _samples(1, (4, 8, 8), "float16", first=2))
    assert "holds int32 numbers" in refused(_samples(1, (4, 8, 8), "int32"))
    assert "give the right --member" in refused(good, "--member", "latent.npy")
    (tmp_path / "names").write_text("ant\n")
    assert "label 1 occurs, but there are 1 class names" in refused(good, "--class-names", str(tmp_path / "names"))
    assert "names' cannot be read (No such file" in refused(good, "--class-names", str(tmp_path / "no names"))
    (tmp_path / "a.tar").write_bytes(b"no tar" * 100)
    with pytest.raises(SystemExit):
        main(["index", str(tmp_path), "--autoencoder", str(vae)])
    assert "a.tar' is a file, not an uncompressed tar; give a whole tar" in capsys.readouterr().err


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
