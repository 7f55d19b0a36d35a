"""Bad input: one sentence with the value, the rule and the way out; exit status 2; nothing lost."""

import shutil
from pathlib import Path

import pytest

from tests.end_to_end.conftest import encode_settings
from tests.end_to_end.runs import TINY
from tests.launch import run


def refused(*arguments: object) -> str:
    """Run, expect status 2 and return the one line that says why."""
    result = run(list(arguments), check=False)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr.strip().splitlines()[-1]


def test_a_mistyped_key(tmp_path: Path) -> None:
    said = refused("train", "quickstart", "data.path=x", f"run_dir={tmp_path}", "train.stesp=3")
    assert "unknown key 'train.stesp'; did you mean 'steps'?" in said


def test_a_batch_that_does_not_divide(shards: Path, tmp_path: Path) -> None:
    arguments = [
        "train",
        "quickstart",
        *TINY,
        f"data.path={shards}",
        f"run_dir={tmp_path}",
        "train.global_batch_size=7",
    ]
    result = run(arguments, ranks=2, check=False)
    assert result.returncode != 0
    assert "train.global_batch_size=7 does not divide over 2 ranks" in result.stderr


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()], ids=["missing", "foreign"])
def test_a_folder_that_holds_no_shards(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "shards"
    make(path)
    said = refused("train", "quickstart", *TINY, f"data.path={path}", f"run_dir={tmp_path / 'run'}")
    assert str(path) in said
    assert "dit-scale encode" in said


def test_a_truncated_shard(shards: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(shards, tmp_path / "shards")
    tar = sorted(copy.glob("*.tar"))[1]
    tar.write_bytes(tar.read_bytes()[:-512])
    assert tar.name in refused("train", "quickstart", *TINY, f"data.path={copy}", f"run_dir={tmp_path / 'run'}")


def test_a_flipped_bit_names_shard_and_record(shards: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(shards, tmp_path / "shards")
    tar = sorted(copy.glob("*.tar"))[0]
    content = bytearray(tar.read_bytes())
    content[1024 + 100] ^= 1  # inside the first record's moments
    tar.write_bytes(content)
    settings = [f"data.path={copy}", f"run_dir={tmp_path / 'run'}", "data.mirror=false", "train.steps=20"]
    result = run(["train", "quickstart", *TINY, *settings], check=False)
    assert result.returncode != 0
    assert tar.name in result.stderr
    assert "000000000" in result.stderr


def test_a_model_that_does_not_fit_the_latents(shards: Path, tmp_path: Path) -> None:
    settings = [f"data.path={shards}", f"run_dir={tmp_path / 'run'}", "model.patch_size=3"]
    said = refused("train", "quickstart", *TINY, *settings)
    assert "patch_size" in said


def test_an_image_that_does_not_decode(images: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(images, tmp_path / "images")
    (copy / "circles" / "001.png").write_bytes(b"not an image")
    said = refused("encode", "quickstart-encode", *encode_settings(copy, tmp_path / "out"))
    assert "001.png" in said


def test_an_autoencoder_that_cannot_be_found(images: Path, tmp_path: Path) -> None:
    settings = encode_settings(images, tmp_path / "out", tmp_path / "nowhere")
    said = refused("encode", "quickstart-encode", *settings)
    assert "nowhere" in said
    assert "pca" in said


def test_sampling_without_a_checkpoint(tmp_path: Path) -> None:
    assert "holds no checkpoint" in refused("sample", tmp_path, "--out", tmp_path / "out")


def test_no_write_permission(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()  # a file where a folder must be: denied to root, too
    said = refused("train", "quickstart", *TINY, f"data.path={shards}", f"run_dir={tmp_path / 'file' / 'run'}")
    assert "cannot be written" in said
