"""`dit-scale status`: a run as seen from outside, by what it left in its folder; loads neither torch nor DeepSpeed."""

import json
import sys
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypedDict

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dit_scale.documents import Misfit, fitted
from dit_scale.errors import InputError
from dit_scale.files import holder_of
from dit_scale.jobs.requeue import Limits, decide
from dit_scale.supervision.history import (
    DONE,
    FAILURE,
    HANG,
    HISTORY,
    LOCK,
    Attempt,
    Step,
    last_save,
    read_history,
    tail,
)
from dit_scale.supervision.markers import HUNG, read_marker

REFUSED = 3
"""Exit status of ``--requeue`` where a launcher should let the run be."""
_RECENT_STEPS = 100
_DYING_SECONDS = 10.0
"""How long the processes of an ended job step may still hold the lock."""

State = Literal["running", "stopped", "done", "hung", "killed", "failed", "never started"]


@dataclass(frozen=True)
class Status:
    """What can be known of a run without asking it."""

    run_dir: str
    state: State
    holder: str | None
    """Process and host that write the folder now."""
    job: str | None
    """Slurm job of the last start."""
    host: str | None
    pid: int | None
    world_size: int | None
    zero_stage: int | None
    step: int
    total_steps: int | None
    last_save_step: int | None
    last_save_age_seconds: float | None
    images_per_second: float | None
    left_seconds: float | None
    starts: int
    last_end: dict[str, Any] | None
    """The last end written down: cause, step, time, saved, error."""
    validation_loss: float | None
    troubles: list[str]
    """What failed beside training since the last start, the first of each kind."""


class _Metrics(Step):
    step_seconds: float
    images_per_second: float


class _Validation(Step):
    validation_loss: float


class _Train(TypedDict):
    steps: int


class _Settings(TypedDict):
    train: _Train


def status(run_dir: Path, as_json: bool = False) -> None:
    """Print a table, or the same as JSON."""
    found = look(run_dir)
    if as_json:
        print(json.dumps(asdict(found), indent=1))
    else:
        Console().print(_table(found))


def requeue(run_dir: Path, limits: Limits) -> None:
    """Print in one sentence whether a launcher should start the run again; exit with status 3 where not."""
    deadline = time.monotonic() + _DYING_SECONDS
    while (holder := holder_of(run_dir / LOCK)) is not None and time.monotonic() < deadline:
        time.sleep(0.2)
    if holder is not None:
        print(f"not requeued: the run is being written by {holder}", flush=True)
        sys.exit(REFUSED)
    decision = decide(run_dir, limits)
    print(decision.sentence, flush=True)
    if not decision.requeue:
        sys.exit(REFUSED)


def look(run_dir: Path) -> Status:
    """Gather a run's state from its folder; raises InputError where that is none."""
    if not (run_dir / HISTORY).is_file() and not (run_dir / "config.yaml").is_file():
        raise InputError(f"'{run_dir}' is not a run folder (no {HISTORY}, no config.yaml); give the run_dir of a run")
    attempts = read_history(run_dir)
    start = attempts[-1].start if attempts else {}
    holder = holder_of(run_dir / LOCK)
    save_step, save = last_save(run_dir)
    metrics = tail(run_dir / "metrics.jsonl", _RECENT_STEPS, _Metrics)
    step = metrics[-1]["step"] if metrics else save_step
    total = _total_steps(run_dir)
    seconds, rate = _pace(metrics)
    validation = tail(run_dir / "validation.jsonl", 1, _Validation)
    return Status(
        run_dir=str(run_dir),
        state=_state(run_dir, attempts, holder),
        holder=holder,
        job=start.get("job"),
        host=start.get("host"),
        pid=start.get("pid"),
        world_size=start.get("world_size"),
        zero_stage=start.get("zero_stage"),
        step=step,
        total_steps=total,
        last_save_step=save_step if save else None,
        last_save_age_seconds=time.time() - save.stat().st_mtime if save else None,
        images_per_second=rate,
        left_seconds=seconds * (total - step) if seconds is not None and total is not None else None,
        starts=len(attempts),
        last_end=next((attempt.end for attempt in reversed(attempts) if attempt.end), None),
        validation_loss=validation[-1]["validation_loss"] if validation else None,
        troubles=[_trouble(event) for event in (attempts[-1].troubles if attempts else [])],
    )


def _state(run_dir: Path, attempts: list[Attempt], holder: str | None) -> State:
    if holder is not None:
        return "running"
    if not attempts:
        return "never started"
    last = attempts[-1]
    if last.cause == HANG or (last.end is None and read_marker(run_dir, HUNG) is not None):
        return "hung"
    if last.end is None:
        return "killed"
    if last.cause == DONE:
        return "done"
    return "stopped" if last.end.get("saved") else "failed"


def _pace(metrics: list[_Metrics]) -> tuple[float | None, float | None]:
    """Return seconds a step and images a second over recent steps."""
    seconds = sum(line["step_seconds"] for line in metrics)
    if not metrics or seconds <= 0.0:
        return None, None
    images = sum(line["step_seconds"] * line["images_per_second"] for line in metrics)
    return seconds / len(metrics), images / seconds


def _total_steps(run_dir: Path) -> int | None:
    try:
        settings = fitted(yaml.safe_load((run_dir / "config.yaml").read_bytes()), _Settings)
        return int(settings["train"]["steps"])
    except (OSError, yaml.YAMLError, Misfit):
        return None


def _table(found: Status) -> Table:
    table = Table(show_header=False, title=found.run_dir)
    for name, value in _rows(found).items():
        if value:
            table.add_row(name, escape(value))
    return table


def _rows(found: Status) -> dict[str, str | None]:
    total = f" of {found.total_steps:,}" if found.total_steps is not None else ""
    percent = f" ({100 * found.step / found.total_steps:.1f} %)" if found.total_steps else ""
    age = found.last_save_age_seconds
    return {
        "state": found.state + (f": {found.holder}" if found.holder else ""),
        "job": found.job,
        "ranks": f"{found.world_size}, ZeRO stage {found.zero_stage}" if found.world_size else None,
        "step": f"{found.step:,}{total}{percent}",
        "last good save": f"step {found.last_save_step:,}, {_span(age)} ago" if age is not None else "none",
        "rate": f"{found.images_per_second:,.1f} images/s" if found.images_per_second is not None else None,
        "time left": _span(found.left_seconds) if found.left_seconds is not None else None,
        "starts": str(found.starts),
        "why it last stopped": _last_end(found.last_end),
        "validation loss": f"{found.validation_loss:.5f}" if found.validation_loss is not None else None,
        "beside training": "\n".join(found.troubles),
    }


def _trouble(event: dict[str, Any]) -> str:
    where = f" at step {event['step']}" if event.get("step") is not None else ""
    return f"{event.get('what')} failed{where}: {event.get('error')}"


def _last_end(end: dict[str, Any] | None) -> str | None:
    if end is None:
        return None
    when = time.strftime("%F %T", time.localtime(end["time"]))
    saved = "everything saved" if end.get("saved") else "not saved"
    where = f" on rank {end['rank']}" if end.get("rank") is not None else ""
    error = f"\n{end['error']}" if end.get("error") else ""
    return f"{end.get('cause', FAILURE)}{where} at step {end['step']}, {when}, {saved}{error}"


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
