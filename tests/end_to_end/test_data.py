"""Training on what data can be: several folders, a held-out split, damage, object storage that dies."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dit_scale.data.manifest import read_manifest
from tests.end_to_end.conftest import draw_images, encode_settings
from tests.end_to_end.runs import STEPS, keys_of_steps, kill, lines, losses, num_lines, settings, start, wait_until
from tests.launch import run
from tests.s3 import running_server


@pytest.fixture(scope="module")
def more(images: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another folder, of the same autoencoder, with a class more and a class in common."""
    folder = tmp_path_factory.mktemp("more")
    images = draw_images(folder / "images", ("squares", "wedges"))
    run(["encode", "quickstart-encode", *encode_settings(images, folder / "others", shards)])
    return folder / "others"


def test_two_folders_and_a_validation_loss_on_any_number_of_ranks(shards: Path, more: Path, tmp_path: Path) -> None:
    overrides = [
        f"data.path={{{shards}: 3, {more}: 1}}",
        "data.held_out_fraction=0.3",
        "validation.every_steps=6",
        "engine.zero_stage=3",
    ]
    for ranks in (1, 2):
        run(settings(shards, tmp_path / f"{ranks}", *overrides), ranks=ranks)
    one, two = (keys_of_steps(tmp_path / f"{ranks}", ranks) for ranks in (1, 2))
    assert one == two
    assert [sum(key.startswith(f"{more.name}:") for key in step) for step in one] == [2] * STEPS
    validations = [lines(tmp_path / f"{ranks}" / "validation.jsonl") for ranks in (1, 2)]
    assert [entry["step"] for entry in validations[0]] == [6, 12]
    for mine, theirs in zip(*validations, strict=True):
        assert mine["images"] == theirs["images"] > 5
        assert mine["validation_loss"] == pytest.approx(theirs["validation_loss"], rel=1e-5)
    description = json.loads((tmp_path / "1" / "checkpoints" / "step-00000012" / "manifest.json").read_text())["data"]
    assert description["class_names"] == ["circles", "squares", "stripes", "wedges"]


def test_a_damaged_record_is_set_aside_and_reported(shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shards, tmp_path / "latents")
    layout = read_manifest(folder).layout
    path = folder / "shard-000000.tar"
    content = bytearray(path.read_bytes())
    content[int(layout.offsets(np.array([3]), np.array([0]))[0]) + 1] ^= 64
    path.write_bytes(content)
    two_terms = ["diffusion.name=gaussian", "model.learn_sigma=true"]
    run(settings(folder, tmp_path / "run", "data.on_damage=set_aside", *two_terms))
    reports = lines(tmp_path / "run" / "set-aside-rank0.jsonl")
    assert {entry["key"] for entry in reports} == {"0000000003"}
    keys = [key for step in keys_of_steps(tmp_path / "run", 1) for key in step]
    assert "0000000003" not in keys
    assert len(keys) + len(reports) == STEPS * 8
    assert len(losses(tmp_path / "run")) == STEPS
    for entry in lines(tmp_path / "run" / "metrics.jsonl"):  # it has no part in the loss, nor in any of its terms
        assert set(entry["losses"]) == {"mse", "vb"}
        assert entry["loss"] == pytest.approx(sum(entry["losses"].values()), rel=1e-5)


def test_a_run_on_object_storage_is_killed_and_goes_on_exactly(
    shards: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """From MDS files in a bucket, against a run on the local tars."""
    run(["convert", shards, "--to", "mds", "--out", tmp_path / "mds"])
    metrics = tmp_path / "run" / "metrics.jsonl"
    with running_server() as server:
        place = server.upload(tmp_path / "mds", "imagenet")
        arguments = settings(
            shards,
            tmp_path / "run",
            "engine.zero_stage=2",
            "checkpoint.in_background=false",  # so that the first save is whole before the kill
            f"data.path={place}",
            f"data.cache={tmp_path / 'cache'}",
        )
        process = start(arguments, 2)
        wait_until(lambda: num_lines(metrics) >= 6, process)
        kill(process, tmp_path / "run")
        leftover = next((tmp_path / "cache").rglob("*.mds"))
        leftover.write_bytes(leftover.read_bytes()[:100])  # as a full disk would leave it
        result = run(arguments, 2)
    assert "going on from step-" in result.stdout
    assert keys_of_steps(tmp_path / "run", 2) == keys_of_steps(uninterrupted, 2)
    assert losses(tmp_path / "run") == losses(uninterrupted)
    assert not [path for path in Path("/dev/shm").iterdir() if "latents" in path.name]
