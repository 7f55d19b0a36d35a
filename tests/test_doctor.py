"""`dit-scale doctor` as a user runs it: on a healthy configuration, and on each kind of broken one."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dit_scale.cli import main
from dit_scale.config import WandbConfig
from dit_scale.distributed.runtime import World
from dit_scale.doctor import software
from dit_scale.doctor.finding import Status
from tests.end_to_end.conftest import images, shards  # noqa: F401 (fixtures)
from tests.end_to_end.runs import TINY, settings
from tests.launch import run
from tests.wandb_server import wandb_server

CHECKS = {
    *("versions", "device", "process group", "model", "attention", "memory", "host memory", "batch", "shards"),
    *("disk", "run folder", "free space", "save time", "wandb"),
}


def examine(folder: Path, *overrides: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Run in this process; return the exit status and the findings by name."""
    status = 0
    try:
        main(["doctor", "quickstart", *TINY, *overrides, "--json", str(folder / "findings.json")])
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    return status, _findings(folder / "findings.json")


def _findings(path: Path) -> dict[str, dict[str, Any]]:
    content = json.loads(path.read_text())
    return {finding["name"]: finding for finding in content["findings"]}


def _failing(findings: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name, finding in findings.items() if finding["status"] == "fail"}


def test_two_healthy_ranks_pass(shards: Path, tmp_path: Path) -> None:  # noqa: F811
    report = tmp_path / "findings.json"
    place = [f"data.path={shards}", f"run_dir={tmp_path / 'run'}", "--json", report]
    output = run(["doctor", "quickstart", *TINY, *place], ranks=2).stdout
    findings = _findings(report)
    assert set(findings) == CHECKS
    assert not _failing(findings)
    assert "0 fail" in output
    assert output.count("dit-scale doctor:") == 1  # rank zero's
    assert findings["process group"]["figure"].startswith("gloo, 2 ranks on 1 node: ")
    assert findings["process group"]["figure"].endswith("sums right")
    assert findings["batch"]["figure"] == "8 images = 2 ranks x 4, in 2 micro steps of 2"
    assert findings["disk"]["details"]["write_bytes_per_second"] > 0
    assert findings["memory"]["details"]["parts"]["activations"] > 0
    assert "is new" in findings["run folder"]["figure"]
    assert os.listdir(tmp_path) == ["findings.json"]  # noqa: PTH208 (nothing else is left behind)


def test_ranks_that_do_not_divide_the_batch(shards: Path, tmp_path: Path) -> None:  # noqa: F811
    report = tmp_path / "findings.json"
    place = [f"data.path={shards}", f"run_dir={tmp_path / 'run'}", "train.global_batch_size=7", "--json", report]
    result = run(["doctor", "quickstart", *TINY, *place], ranks=2, check=False)
    assert result.returncode != 0
    findings = _findings(report)
    assert _failing(findings) == {"batch", "memory"}
    assert "train.global_batch_size=7 does not divide over 2 ranks" in findings["batch"]["figure"]
    assert "use a multiple of 2, such as 8" in findings["batch"]["way_out"]


def test_a_damaged_shard_and_a_model_too_large(shards: Path, tmp_path: Path) -> None:  # noqa: F811
    copy = shutil.copytree(shards, tmp_path / "shards")
    tar = sorted(copy.glob("*.tar"))[1]
    content = bytearray(tar.read_bytes())
    content[3] ^= 16
    tar.write_bytes(content)
    huge = ["model.hidden_size=65536", "model.depth=100", "train.global_batch_size=4"]
    status, findings = examine(tmp_path, f"data.path={copy}", f"run_dir={tmp_path / 'run'}", *huge)
    assert status == 2
    assert _failing(findings) >= {"shards", "memory", "free space"}
    assert tar.name in findings["shards"]["figure"]
    assert "dit-scale verify SHARDS --repair" in findings["shards"]["way_out"]
    assert "none is enough alone: " in findings["memory"]["way_out"]
    assert "4 ranks (" in findings["memory"]["way_out"]
    assert "checkpoint.keep" in findings["free space"]["way_out"]
    assert "sbatch --signal=B:USR1@" in findings["save time"]["way_out"]  # petabytes take longer than five minutes


def test_what_training_would_refuse_fails(shards: Path, tmp_path: Path) -> None:  # noqa: F811
    place = [f"data.path={shards}", f"run_dir={tmp_path / 'run'}"]
    status, findings = examine(tmp_path, *place, "engine.zero_stage=0", "engine.precision=bf16")
    assert (status, _failing(findings)) == (2, {"model"})
    assert "engine.zero_stage=1" in findings["model"]["way_out"]
    status, findings = examine(tmp_path, *place, "model.patch_size=3", "wandb.mode=disabled")
    assert (status, _failing(findings)) == (2, {"model"})
    assert findings["memory"]["figure"] == "unknown, since the model is"
    status, findings = examine(tmp_path, f"data.path={tmp_path / 'nowhere'}", f"run_dir={tmp_path / 'run'}")
    assert (status, _failing(findings)) == (2, {"model", "shards"})


def test_a_mistyped_key_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", "quickstart", "train.stesp=3"])
    assert stopped.value.code == 2
    assert "unknown key 'train.stesp'; did you mean 'steps'?" in capsys.readouterr().err


def test_a_run_that_goes_on(shards: Path, tmp_path: Path) -> None:  # noqa: F811
    run_dir = tmp_path / "run"
    run(settings(shards, run_dir, "train.steps=2", "checkpoint.every_steps=1"))
    place = [f"data.path={shards}", f"run_dir={run_dir}", "train.steps=9"]
    status, findings = examine(tmp_path, *place)
    assert status == 0
    assert findings["run folder"]["figure"] == "goes on from step-00000002 of 9 steps"

    status, findings = examine(tmp_path, *place, "seed=1")
    assert (status, _failing(findings)) == (2, {"run folder"})
    assert "seed is 1 but the run began with 0" in findings["run folder"]["figure"]

    newest = next((run_dir / "checkpoints" / "step-00000002").glob("*.safetensors"))
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    status, findings = examine(tmp_path, *place)
    assert (status, findings["run folder"]["status"]) == (0, "warn")
    assert "step-00000002 is damaged" in findings["run folder"]["figure"]
    assert "goes on from step-00000001" in findings["run folder"]["figure"]
    assert newest.is_file()  # training sets it aside, not the doctor


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB."""
    folder = tmp_path / "full"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", folder], capture_output=True, text=True)
    if mount.returncode != 0:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            f"a small file system needs root: {mount.stderr.strip()}"
        )
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_no_room_for_a_checkpoint(shards: Path, full_disk: Path, tmp_path: Path) -> None:  # noqa: F811
    status, findings = examine(tmp_path, f"data.path={shards}", f"run_dir={full_disk / 'run'}", "model.depth=8")
    assert (status, _failing(findings)) == (2, {"disk", "free space"})
    assert "No space left on device" in findings["disk"]["figure"]
    assert "with room left" in findings["disk"]["way_out"]
    assert list(full_disk.iterdir()) == []


@pytest.mark.parametrize(("said", "status"), [("nonsense", Status.WARN), ("dryrun", Status.PASS), ("", Status.PASS)])
def test_a_mode_that_wandb_does_not_take(
    said: str, status: Status, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {"HOME": str(tmp_path), "WANDB_API_KEY": "", "WANDB_MODE": said}.items():
        monkeypatch.setenv(name, value)
    found = software.wandb(WandbConfig(), World())
    assert (found.status, "WANDB_MODE=nonsense is nothing that wandb takes" in found.figure) == (
        status,
        status == Status.WARN,
    )


@pytest.mark.parametrize(
    ("refuses", "variables", "status", "part"),
    [
        (False, {}, Status.PASS, " takes the key"),
        (True, {}, Status.WARN, "but the run would log offline: Failed to authenticate"),
        (None, {}, Status.WARN, "but the run would log offline: http://127.0.0.1:9 is not reached"),
        (None, {"WANDB_CONSOLE": "x"}, Status.WARN, "log offline: WANDB_CONSOLE=x is nothing that wandb takes"),
        (None, {"WANDB_API_KEY": ""}, Status.WARN, "without an API key: the run logs offline"),
    ],
)
def test_whether_wandb_answers(
    refuses: bool | None,
    variables: dict[str, str],
    status: Status,
    part: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A server that takes the key, one that does not, and none."""
    with wandb_server(bool(refuses)) as server:
        url = "http://127.0.0.1:9" if refuses is None else server.url
        own = {"HOME": str(tmp_path), "WANDB_BASE_URL": url, "WANDB_API_KEY": "0123456789" * 4}
        for name, value in (own | {"WANDB_HTTP_TIMEOUT": "5" if refuses is not None else "1"} | variables).items():
            monkeypatch.setenv(name, value)
        found = software.wandb(WandbConfig(mode="online"), World())
    assert (found.status, part in found.figure) == (status, True), found
    assert "wandb.mode=offline" in found.way_out or status == Status.PASS
