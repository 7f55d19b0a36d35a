"""Disks that are full or may only be read: one sentence, nothing lost, and more room is all that it takes to go on."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dit_scale.cli import main
from dit_scale.data.dataset import LatentDataset
from dit_scale.errors import Failure
from dit_scale.files import full_disk_explained, write_json
from tests.disks import Disk, small_disk
from tests.end_to_end.conftest import encode_settings
from tests.end_to_end.runs import settings
from tests.launch import run

PAGE_BYTES = 4096
"""What a tmpfs is made of."""
NO_ROOM = "has no room left (No space left on device); make some and run this again, which"


def ends(capsys: pytest.CaptureFixture[str], status: int, *arguments: object) -> str:
    """Run a command here, expect its status and return the last line of what it said."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in arguments])
    assert ended.value.code == status
    return capsys.readouterr().err.strip().splitlines()[-1]


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all that a reader uses."""
    names = ("manifest.json", "autoencoder.safetensors", "*.tar", "*.npy")
    return {path.name: path.read_bytes() for name in names for path in sorted(folder.glob(name))}


def finished(folder: Path) -> dict[str, int]:
    """Return the shards that have a receipt, each with the identity of its file."""
    return {path.stem: (folder / f"{path.stem}.tar").stat().st_ino for path in folder.glob("encoding/shard-*.json")}


def test_a_disk_that_is_full_at_every_place_in_turn(
    images: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Encoding with a page of room more each time ends at whatever it writes next, and at last with all of it."""
    with small_disk(tmp_path / "disk", PAGE_BYTES) as disk:
        output = disk.folder / "latents"
        words = [str(word) for word in ("encode", "quickstart-encode", *encode_settings(images, output))]
        seen: list[dict[str, int]] = [{}]
        for pages in range(2, 200):
            try:
                main(words)
                break
            except SystemExit as ended:
                assert ended.code == 1
            said = capsys.readouterr().err.strip().splitlines()[-1]
            assert said == f"dit-scale encode: output '{output}' {NO_ROOM} goes on with what is missing"
            assert not list(output.rglob("*.tmp"))
            seen.append(finished(output))
            assert seen[-1].items() >= seen[-2].items(), "a finished shard was lost, or made again"
            disk.resize(pages * PAGE_BYTES)
        assert contents(output) == contents(shards)
        assert {len(shards) for shards in seen} >= {0, 1, 2}


def test_a_full_disk_ends_all_encoders(images: Path, shards: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 100_000) as disk:
        output = disk.folder / "latents"
        words = ["encode", "quickstart-encode", *encode_settings(images, output), "workers=2"]
        result = run(words, check=False)
        assert result.returncode == 1
        assert "Traceback" not in result.stderr
        assert (
            result.stderr.strip().splitlines()[-1]
            == f"dit-scale encode: output '{output}' {NO_ROOM} goes on with what is missing"
        )
        assert not (output / "manifest.json").exists()
        disk.resize(1_000_000)
        main([str(word) for word in words[:-1]])
        assert contents(output) == contents(shards)
        assert not list(output.rglob("*.tmp"))


def test_a_full_disk_ends_a_conversion_and_leaves_nothing(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", 40_000) as disk:
        words = ["convert", shards, "--to", "mds", "--out", disk.folder / "mds"]
        assert ends(capsys, 1, *words) == f"dit-scale convert: '{disk.folder}' {NO_ROOM} starts from scratch"
        assert not [path for path in disk.folder.rglob("*") if path.is_file() and path.stat().st_size > 100]
        disk.resize(1_000_000)
        main([str(word) for word in words])
        main(["convert", str(disk.folder / "mds"), "--to", "tar", "--out", str(tmp_path / "back")])
    assert contents(tmp_path / "back") == contents(shards)


def test_a_full_disk_ends_an_indexing(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of tars beside which there is room for two of the five files that it writes."""
    tars = sorted(shards.glob("*.tar"))
    pages = sum(-(-tar.stat().st_size // PAGE_BYTES) for tar in tars) + 2
    with small_disk(tmp_path / "disk", pages * PAGE_BYTES) as disk:
        for tar in tars:
            shutil.copy(tar, disk.folder)
        words = ["index", disk.folder, "--autoencoder", shards]
        assert ends(capsys, 1, *words) == f"dit-scale index: '{disk.folder}' {NO_ROOM} starts from scratch"
        disk.resize(1_000_000)
        main([str(word) for word in words])
        assert len(LatentDataset.open(disk.folder)) == len(LatentDataset.open(shards))


def test_a_full_disk_is_the_folders_only_where_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with small_disk(tmp_path / "disk", PAGE_BYTES) as disk:
        elsewhere = disk.folder / "cache.json"
        with pytest.raises(Failure) as caught, full_disk_explained(folder, name="run folder"):
            write_json(elsewhere, "x" * 100_000)
        assert str(caught.value) == f"the disk of '{elsewhere}' {NO_ROOM} goes on with what is missing"
        with pytest.raises(Failure) as caught, full_disk_explained(disk.folder, name="run folder"):
            write_json(elsewhere, "x" * 100_000)
        assert str(caught.value) == f"run folder '{disk.folder}' {NO_ROOM} goes on with what is missing"
        for place, what in (
            (folder, "the disk of temporary files or caches has no room left (that of run folder '{}' has)"),
            (disk.folder, "run folder '{}' has"),
        ):
            with pytest.raises(Failure) as caught, full_disk_explained(place, name="run folder"):
                Path("/dev/full").write_bytes(b"x")  # as a library would, whose error names no file
            assert str(caught.value).startswith(what.format(place))
        assert not list(disk.folder.iterdir()) and not list(folder.iterdir())


@pytest.fixture
def read_only(shards: Path, tmp_path: Path) -> "Disk":  # type: ignore[misc]
    with small_disk(tmp_path / "disk", 1_000_000) as disk:
        shutil.copytree(shards, disk.folder / "latents")
        disk.make_read_only()
        yield disk


def test_shards_are_read_where_nothing_may_be_written(
    read_only: Disk, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latents = read_only.folder / "latents"
    here, there = LatentDataset.open(shards), LatentDataset.open(latents)
    everything = np.arange(len(here)), np.zeros(len(here), bool)
    assert torch.equal(here.read(*everything)[0], there.read(*everything)[0])
    for how in ([], ["--quick"]):
        main(["verify", str(latents), *how])
        assert "all as the manifest says" in capsys.readouterr().out
    main(["inspect", str(latents), "--out", str(tmp_path / "grid.png")])
    main(["convert", str(latents), "--to", "mds", "--out", str(tmp_path / "mds")])
    assert (tmp_path / "grid.png").is_file()
    run(settings(latents, tmp_path / "run", "train.steps=2"))


def test_writing_where_nothing_may_be_written_is_refused_at_the_door(
    read_only: Disk, images: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latents = read_only.folder / "latents"
    refusal = "cannot be written to (Read-only file system); give a folder that this user may write"
    for output in (latents, read_only.folder / "new"):
        said = ends(capsys, 2, "encode", "quickstart-encode", *encode_settings(images, output))
        assert said == f"dit-scale encode: output folder '{output / 'encoding'}' {refusal}"
    assert ends(capsys, 2, "inspect", latents, "--out", read_only.folder / "grid.png").endswith(refusal)
    assert ends(capsys, 2, "convert", shards, "--to", "mds", "--out", read_only.folder / "mds").endswith(refusal)
    assert contents(latents) == contents(shards)
