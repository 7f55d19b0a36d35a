"""A record that is not a number: found, named, skipped; by leaving out the update or by going back."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dit_scale.data.manifest import read_manifest
from tests.end_to_end.runs import STEPS, lines, settings
from tests.launch import run

KEY = "0000000003"
SPIKE_AT_21 = ["seed=1", "train.spike_factor=1.1"]
"""The first update that is judged: with this seed its gradient is a third above the median of those before."""


@pytest.fixture(scope="module")
def poisoned(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards one of whose records holds NaN, as an encoder in half precision may leave it."""
    folder = shutil.copytree(shards, tmp_path_factory.mktemp("poisoned") / "latents")
    layout = read_manifest(folder).layout
    path = folder / "shard-000000.tar"
    content = bytearray(path.read_bytes())
    for mirror in (0, 1):
        start = int(layout.offsets(np.array([3]), np.array([mirror]))[0])
        content[start : start + 2] = np.float16(np.nan).tobytes()
    path.write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def skipped(poisoned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that leaves bad updates out."""
    run_dir = tmp_path_factory.mktemp("skipped") / "run"
    result = run(settings(poisoned, run_dir, "engine.zero_stage=2", "data.verify=false"), ranks=2)
    assert "its update is left out" in result.stderr
    return run_dir


def state_of(run_dir: Path) -> Any:
    """Return the digests of all state at the end, which do not depend on how it is laid out."""
    return json.loads((run_dir / "checkpoints" / f"step-{STEPS:08d}" / "manifest.json").read_text())["content_digests"]


def test_the_record_and_the_module_are_named(skipped: Path) -> None:
    found = lines(skipped / "bad-steps.jsonl")
    assert found
    for entry in found:
        assert entry["keys"] == [KEY]
        assert entry["reason"] == "the loss or the gradient is not finite"
        assert list(entry["modules"].values()) == ["forward of x_embedder.proj, whose input is not finite already"]
    bad = {entry["step"] for entry in found}
    for entry in lines(skipped / "metrics.jsonl"):
        assert (entry["loss"] is None) == entry.get("skipped", False) == (entry["step"] in bad)
    keys = [step for rank in (0, 1) for step in lines(skipped / f"keys-rank{rank}.jsonl")]
    assert {entry["step"] for entry in keys if KEY in entry["keys"]} == bad


def test_going_back_comes_to_the_same_state(poisoned: Path, skipped: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = settings(poisoned, run_dir, "engine.zero_stage=2", "data.verify=false", "train.on_bad_step=roll_back")
    result = run([*arguments, "checkpoint.every_steps=1"], ranks=2)
    bad = [entry["step"] for entry in lines(run_dir / "bad-steps.jsonl")]
    assert bad == [entry["step"] for entry in lines(skipped / "bad-steps.jsonl")]
    for step in bad:
        assert f"back at step-{step - 1:08d}; step {step} will be skipped" in result.stdout
    assert state_of(run_dir) == state_of(skipped)
    assert [entry["step"] for entry in lines(run_dir / "metrics.jsonl")] == list(range(1, STEPS + 1))


def test_with_nothing_to_go_back_to_the_run_goes_on_and_is_saved(shards: Path, tmp_path: Path) -> None:
    """The last step is the first one that is judged."""
    overrides = [*SPIKE_AT_21, "train.steps=21", "train.on_bad_step=roll_back"]
    result = run([*settings(shards, tmp_path / "run", *overrides), "checkpoint.every_steps=1000"])
    assert "no checkpoint to go back to from step 21: only its update is left out" in result.stderr
    assert (tmp_path / "run" / "checkpoints" / "step-00000021" / "manifest.json").is_file()


@pytest.mark.parametrize("override", ["train.on_bad_step=stop", "train.max_bad_steps=0"])
def test_enough_is_enough(poisoned: Path, tmp_path: Path, override: str) -> None:
    result = run(settings(poisoned, tmp_path / "run", "data.verify=false", override), check=False)
    assert result.returncode == 1
    assert "the loss or the gradient is not finite; first in forward of x_embedder.proj" in result.stderr
    assert f"records {KEY}" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_spike_is_left_out(shards: Path, tmp_path: Path) -> None:
    run(settings(shards, tmp_path / "run", *SPIKE_AT_21, "train.steps=22"))
    (first, *_) = lines(tmp_path / "run" / "bad-steps.jsonl")
    assert first["step"] == 21
    assert "1.1 times the median" in first["reason"]
    assert lines(tmp_path / "run" / "metrics.jsonl")[20]["skipped"]
