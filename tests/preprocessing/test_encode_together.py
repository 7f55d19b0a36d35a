"""Encoding by several processes: the same bytes for any number of encoders and any history."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dit_scale.autoencoder import FILE_NAME as AUTOENCODER
from dit_scale.config import EncodeConfig, load_config
from dit_scale.data.manifest import read_manifest
from dit_scale.distributed.runtime import World
from dit_scale.errors import InputError
from preprocessing.encode import encode_part
from preprocessing.planning import prepare
from tests.preprocessing.encoding import FITTED, PCA, ROOT, encode_settings, encoded, shard_bytes
from tests.preprocessing.images import draw_tree


def _start(settings: list[str], **environment: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.preprocessing.run_encode", *settings],
        cwd=ROOT,
        env=os.environ | {name: str(value) for name, value in environment.items()},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "codec", [PCA, [*PCA, "keep_crops=true"], FITTED], ids=["latents", "with crops", "fitted codec"]
)
def test_three_workers_that_decode_in_pools_make_the_same_bytes(source: Path, tmp_path: Path, codec: list[str]) -> None:
    encoded(source, tmp_path / "one", *codec)
    encoded(source, tmp_path / "three", *codec, "workers=3", "decode_workers=1")
    assert (tmp_path / "three" / AUTOENCODER).read_bytes() == (tmp_path / "one" / AUTOENCODER).read_bytes()
    assert shard_bytes(tmp_path / "three") == shard_bytes(tmp_path / "one")
    log = [json.loads(line) for line in (tmp_path / "three" / "encode.jsonl").read_text().splitlines()]
    assert {line["shard"] for line in log} == {f"shard-{i:06d}.tar" for i in range(5)}
    assert {line["rank"] for line in log} <= {0, 1, 2}  # a worker that starts late may find nothing left to do


def test_ranks_of_a_launcher_make_the_same_bytes(source: Path, tmp_path: Path) -> None:
    encoded(source, tmp_path / "one", *PCA)
    settings = encode_settings(source, tmp_path / "two", *PCA)
    ranks = [
        _start(settings, RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, LOCAL_WORLD_SIZE=2, GROUP_RANK=0) for rank in (1, 0)
    ]
    for process in ranks:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert shard_bytes(tmp_path / "two") == shard_bytes(tmp_path / "one")


def test_a_killed_encode_goes_on_and_makes_the_same_bytes(tmp_path: Path) -> None:
    source, output = draw_tree(tmp_path / "images", {"a": 200, "b": 200}), tmp_path / "out"
    small_shards = [*PCA, "shard_records=2", "keep_crops=true"]
    encoded(source, tmp_path / "unharmed", *small_shards)
    process = _start(encode_settings(source, output, *small_shards, "workers=2"))
    deadline = time.monotonic() + 120
    while not list(output.glob("encoding/shard-*.json")) and time.monotonic() < deadline:
        time.sleep(0.002)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    while any(_is_alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(_is_alive(child) for child in children), "an encoder outlived its parent"

    finished = {path.stem: (output / f"{path.stem}.tar").stat() for path in output.glob("encoding/shard-*.json")}
    assert 0 < len(finished) < 200
    with pytest.raises(InputError, match=r"its encoding is unfinished"):
        read_manifest(output)
    encoded(source, output, *small_shards)
    assert shard_bytes(output) == shard_bytes(tmp_path / "unharmed")
    for name, before in finished.items():
        assert (output / f"{name}.tar").stat().st_ino == before.st_ino, f"{name} was finished and made again"
    assert not list(output.rglob("*.tmp"))


def _is_alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_fit_does_not_depend_on_who_decodes(source: Path, tmp_path: Path) -> None:
    one = encoded(source, tmp_path / "one", *PCA)
    two = encoded(source, tmp_path / "two", *PCA, "decode_workers=2")
    assert one.fingerprint == two.fingerprint


def test_an_error_in_a_worker_ends_all_and_is_the_users_to_read(tmp_path: Path) -> None:
    source = draw_tree(tmp_path / "images", {"a": 10, "b": 10})
    (source / "b" / "008.jpg").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"image 'b/008.jpg' cannot be decoded"):
        encoded(source, tmp_path / "out", *PCA, "workers=2")


def _array(source: Path, output: Path, element: int, *more: str, count: int = 3) -> "subprocess.Popen[str]":
    variables = {"ID": element + 1, "MIN": 1, "MAX": count, "STEP": 1, "COUNT": count}
    environment = {f"SLURM_ARRAY_TASK_{name}": value for name, value in variables.items()}
    return _start(encode_settings(source, output, *PCA, *more), **environment)


def test_elements_of_an_array_share_the_work_and_the_last_writes_the_manifest(source: Path, tmp_path: Path) -> None:
    encoded(source, tmp_path / "one", *PCA)
    elements = [_array(source, tmp_path / "array", element) for element in range(3)]
    for process in elements:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert shard_bytes(tmp_path / "array") == shard_bytes(tmp_path / "one")


def test_an_element_does_not_wait_for_the_others_nor_leave_their_work_undone(source: Path, tmp_path: Path) -> None:
    """Alone it makes every shard that nobody is at; one that somebody is at it leaves to them."""
    encoded(source, tmp_path / "one", *PCA)
    output = tmp_path / "array"
    output.mkdir()
    elsewhere = output / ".shard-000003.tar.another-node-17.tmp"
    elsewhere.write_bytes(b"half a shard")
    _, errors = _array(source, output, 1).communicate(timeout=120)
    assert "1 shards are being made by other elements of the array" in errors
    assert sorted(path.name for path in output.glob("*.tar")) == [f"shard-{i:06d}.tar" for i in (0, 1, 2, 4)]
    os.utime(elsewhere, (0, 0))  # now it has not grown for long
    _array(source, output, 2).communicate(timeout=120)
    assert shard_bytes(output) == shard_bytes(tmp_path / "one")


@pytest.mark.parametrize("ending", ["tar", "crops", "npy", "json"])
def test_whoever_is_overtaken_at_the_last_moment_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """Another worker finishes the same shard, and clears up, while this one has a file of it written but not named."""
    first, second = tmp_path / "first", tmp_path / "second"
    encoded(source, first, *PCA, "keep_crops=true")
    fsync, overtaken = os.fsync, []

    def fsync_late(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.name.startswith(f".shard-000001.{ending}.") and not overtaken:
            overtaken.append(path)
            for name in (*(f"shard-000001.{kind}" for kind in ("tar", "crops", "npy")), "encoding/shard-000001.json"):
                shutil.copy(first / name, second / name)
            path.unlink()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync_late)
    encoded(source, second, *PCA, "keep_crops=true")
    assert overtaken and shard_bytes(second) == shard_bytes(first)


def test_two_encodings_of_one_folder_end_alike(source: Path, tmp_path: Path) -> None:
    encoded(source, tmp_path / "one", *PCA)
    both = [_start(encode_settings(source, tmp_path / "two", *PCA)) for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert shard_bytes(tmp_path / "two") == shard_bytes(tmp_path / "one")


def test_an_end_waits_for_no_decoder_that_hangs_in_storage(tmp_path: Path) -> None:
    """Two images that are none end it, while what would come next is read from a pipe into which nobody writes."""
    source = draw_tree(tmp_path / "images", {"ant": 24})
    settings = encode_settings(
        source, tmp_path / "shards", *PCA, "decode_workers=1", "batch_size=8", "shard_records=24"
    )
    config = load_config(EncodeConfig, None, [*settings, "max_rejected=0"])
    job = prepare(config)
    paths = [job.source.place(index).path for index in range(24)]
    for path in paths[:2]:
        path.write_bytes(b"no image")
    paths[12].unlink()
    os.mkfifo(paths[12])
    said: list[str] = []

    def encode_it() -> None:
        try:
            encode_part(config, World())
        except InputError as error:
            said.append(str(error))

    thread = threading.Thread(target=encode_it, daemon=True)
    thread.start()
    thread.join(600.0)
    assert not thread.is_alive(), "it waits for the decoder"
    assert "max_rejected" in said[0]


def test_an_image_that_was_fixed_is_not_rejected_any_more(tmp_path: Path) -> None:
    """Where several encoders reject more than is allowed together, each having stayed within the limit."""
    source, output = draw_tree(tmp_path / "images", {"a": 32}), tmp_path / "out"
    names = ("a/000.jpg", "a/008.jpg")
    whole = {name: (source / name).read_bytes() for name in names}
    for name in names:
        (source / name).write_bytes(b"")
    for element in (1, 3):
        _array(source, output, element, "max_rejected=2", "shard_records=8", count=4).communicate(timeout=120)
    for name in names:
        (source / name).write_bytes(whole[name])
    (output / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"image 'a/000.jpg' cannot be decoded .* 2 rejected images .* max_rejected=1"):
        encoded(source, output, *PCA, "max_rejected=1")
    manifest = encoded(source, output, *PCA, "max_rejected=1")
    assert (manifest.num_records, manifest.rejected) == (32, 0)
