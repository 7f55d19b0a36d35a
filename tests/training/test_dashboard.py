"""wandb, the real library: whatever befalls it ends no run, is told once, and the environment's settings hold."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from dit_scale.config import Config, WandbConfig, load_config
from dit_scale.distributed.runtime import World
from dit_scale.supervision.conveniences import Conveniences
from dit_scale.supervision.history import read_history, write_start
from dit_scale.training import dashboard
from dit_scale.training.dashboard import Dashboard, values_of, wandb_mode
from tests.wandb_server import wandb_server

NOBODY = "http://127.0.0.1:9"
"""The discard port, where nobody listens."""


@pytest.fixture(autouse=True)
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A home without a key, one in the environment, and no server."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_BASE_URL", NOBODY)
    return "WANDB_API_KEY"


def log_a_run(run_dir: Path, *overrides: str, meanwhile: Callable[[], None] = lambda: None) -> Any:
    """Log two steps, one on each side of what happens meanwhile; return wandb's run, or None where it never began."""
    run_dir.mkdir(exist_ok=True)
    write_start(run_dir, World(), 0)
    config = load_config(Config, "quickstart", [f"run_dir={run_dir}", "data.path=none", *overrides])
    logged = Dashboard(config, run_dir, Conveniences(run_dir, World()))
    runs: list[Any] = []
    logged._ask(runs.append)
    logged.log({"step": 1, "loss": 1.0})
    deadline = time.monotonic() + 60
    while not runs and logged._thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    meanwhile()
    logged.log({"step": 2, "loss": 1.0, "losses": {"mse": 0.75, "vb": None}})
    logged.close()
    return runs[0] if runs else None


def troubles(run_dir: Path) -> list[str]:
    """Return what is written down of the last start, the first of each kind of trouble."""
    return [f"{event['what']}: {event['error']}" for event in read_history(run_dir)[-1].troubles]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the project's own lines of the log."""
    return [message for name, _, message in caplog.record_tuples if name.startswith("dit_scale.")]


def test_a_server_out_of_reach_makes_the_run_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    caplog.set_level("INFO", "dit_scale")
    run = log_a_run(tmp_path / "run")
    (trouble,) = troubles(tmp_path / "run")
    assert trouble.startswith("wandb online: ") and "CommError" not in trouble and "connection refused" in trouble
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert list(folder.glob("run-*.wandb"))
    first, second = said(caplog)
    assert first.endswith("training goes on")
    assert second.endswith(f"wandb sync {folder}")
    again = log_a_run(tmp_path / "run", "wandb.mode=offline")
    assert again.id == run.id
    assert troubles(tmp_path / "run") == []


def test_a_login_that_is_refused_makes_the_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with wandb_server(refuses=True) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        assert log_a_run(tmp_path / "run").offline
    (trouble,) = troubles(tmp_path / "run")
    assert "401" in trouble


def test_a_key_that_cannot_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert log_a_run(tmp_path / "run").offline
    assert troubles(tmp_path / "run") == [
        "wandb online: WANDB_API_KEY invalid: API key must have 40+ characters, has 5."
    ]


@pytest.mark.parametrize(("name", "value"), [("MODE", "nonsense"), ("INIT_TIMEOUT", "abc"), ("CONSOLE", "x")])
def test_a_variable_that_wandb_does_not_take(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"WANDB_{name}", value)
    assert log_a_run(tmp_path / "run").offline
    (trouble,) = troubles(tmp_path / "run")
    assert trouble == f"wandb online: WANDB_{name}={value} is nothing that wandb takes; it is left out"


def test_a_server_that_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        assert not log_a_run(tmp_path / "run").offline
    assert troubles(tmp_path / "run") == []


def test_a_server_that_is_gone_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dit_scale")
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "1")
        log_a_run(tmp_path / "run", meanwhile=server.go)
    assert troubles(tmp_path / "run") == ["wandb: Timed out finishing run."]
    assert "wandb sync " in said(caplog)[-1]


@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGSTOP"])
def test_its_process_is_killed_or_frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal_name: str) -> None:
    """A frozen one answers nothing: what waits for it is given up."""
    if signal_name == "SIGSTOP":
        for name in ("_INIT_SECONDS", "_FINISH_SECONDS", "_SPARE_SECONDS"):
            monkeypatch.setattr(dashboard, name, 1.0)
    hurt: list[psutil.Process] = []

    def meanwhile() -> None:
        hurt.extend(child for child in psutil.Process().children() if child.name().startswith("wandb-core"))
        for child in hurt:
            child.send_signal(getattr(signal, signal_name))

    log_a_run(tmp_path / "run", "wandb.mode=offline", meanwhile=meanwhile)
    for child in hurt:
        child.kill()
    assert hurt
    (trouble,) = troubles(tmp_path / "run")  # a killed one fails at once, in one of several ways
    assert trouble.startswith("wandb: ")
    assert ("it did not end within 3 s" in trouble) == (signal_name == "SIGSTOP")


def test_one_that_is_stuck_with_a_full_queue_is_given_up_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb's hook at the interpreter's exit would wait for it, for ever."""
    for name in ("_INIT_SECONDS", "_FINISH_SECONDS", "_SPARE_SECONDS"):
        monkeypatch.setattr(dashboard, name, 0.3)
    is_freed, is_given_up = threading.Event(), threading.Event()
    monkeypatch.setattr(dashboard, "_MOST_WAITING", 2)
    monkeypatch.setattr(dashboard, "_teardown", is_given_up.set)
    run = SimpleNamespace(dir=str(tmp_path / "wandb" / "files"), log=lambda values, step: is_freed.wait())
    monkeypatch.setattr(Dashboard, "_begin", lambda self: (run, "offline"))
    config = load_config(Config, "quickstart", [f"run_dir={tmp_path}", "data.path=none"])
    logged = Dashboard(config, tmp_path, Conveniences(tmp_path, World()))
    for step in range(9):
        logged.log({"step": step})
    logged.close()
    assert is_given_up.wait(60)
    is_freed.set()


def test_terms_of_the_loss_have_a_name_each() -> None:
    line = {"step": 2, "time": 1e9, "loss": 1.0, "mfu": None, "losses": {"mse": 0.75, "vb": None}}
    assert values_of(line) == {"loss": 1.0, "loss/mse": 0.75}


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "wandb").touch()
    assert log_a_run(tmp_path / "run", "wandb.mode=offline") is None
    (trouble,) = troubles(tmp_path / "run")
    assert trouble.startswith("wandb: Not a directory: ")


def test_what_the_environment_says_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    first = log_a_run(tmp_path / "run")
    assert (first.project, first.name) == ("dit_scale", "run")
    for name in ("PROJECT", "ENTITY", "NAME", "RUN_ID"):
        monkeypatch.setenv(f"WANDB_{name}", f"env-{name.lower()}")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    second = log_a_run(tmp_path / "run")
    assert (second.project, second.entity, second.name, second.id) == (
        *("env-project", "env-entity", "env-name", "env-run_id"),
    )
    assert list((tmp_path / "wandb").glob("offline-run-*-env-run_id"))
    for name in ("RUN_ID", "DIR"):
        monkeypatch.delenv(f"WANDB_{name}")
    third = log_a_run(tmp_path / "run", "wandb.project=own", "wandb.name=mine")
    assert (third.project, third.name, third.id) == ("own", "mine", "env-run_id")


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({}, "online"),
        ({"WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
        ({"WANDB_DISABLED": "true"}, "disabled"),
        ({"WANDB_DISABLED": "false"}, "online"),
        ({"WANDB_API_KEY": ""}, "offline"),
        ({"WANDB_API_KEY": "", "WANDB_MODE": "online"}, "online"),
    ],
)
def test_the_mode(variables: dict[str, str], mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode(WandbConfig()) == mode
    assert wandb_mode(WandbConfig(mode="offline")) == "offline"


def test_a_user_without_a_home_has_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setattr(Path, "expanduser", fail)
    assert wandb_mode(WandbConfig()) == "offline"


def test_a_key_is_found_by_the_servers_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / ".netrc").write_text("machine wandb.example.org login user password secret\n")
    assert wandb_mode(WandbConfig()) == "offline"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080")
    assert wandb_mode(WandbConfig()) == "online"
