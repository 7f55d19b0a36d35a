"""What a run folder holds, read once and thinned on the way, so that millions of steps fit on a page.

Nothing is locked and nothing is written: a run may go on meanwhile. A torn last line does not count.
"""

import logging
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NotRequired, cast

from dit_scale.documents import Misfit, parsed, parsed_or_none
from dit_scale.errors import InputError
from dit_scale.supervision.history import DONE, Attempt, Step, read_history
from dit_scale.training.run_log import METRICS, VALIDATION

log = logging.getLogger(__name__)

MOST_POINTS = 2000
"""Of a curve; each stands for as many steps as it takes."""
_MEANS = ("learning_rate", "images_per_second", "mfu", "data_seconds", "compute_seconds", "save_seconds")
_WITH_EXTREMES = ("loss", "grad_norm")
TERM = "loss/"
"""Begins the name of the curve of a term of the loss."""


class _Line(Step):
    time: NotRequired[float | None]
    step_seconds: NotRequired[float]
    losses: NotRequired[dict[str, float | None]]


class _Evaluation(Step):
    metrics: dict[str, float]


@dataclass
class Curve:
    """A number over steps: the mean of each stretch of steps, and for some the extremes."""

    steps: list[int] = field(default_factory=list)
    """The last step of each stretch."""
    mean: list[float] = field(default_factory=list)
    least: list[float] = field(default_factory=list)
    most: list[float] = field(default_factory=list)

    def add(self, step: int, values: list[float]) -> None:
        """Add a stretch."""
        self.steps.append(step)
        self.mean.append(sum(values) / len(values))
        self.least.append(min(values))
        self.most.append(max(values))


@dataclass(frozen=True)
class Restart:
    """Where a run went on, and what that cost."""

    step: int
    cause: str
    """Why the attempt before ended, or each of several that came no further."""
    lost_seconds: float | None
    """From the last step that counts to the end of the first one after it, less the time of a step."""


@dataclass(frozen=True)
class Record:
    """All that the page tells of a run's course."""

    curves: dict[str, Curve]
    last: dict[str, Any]
    """The last line of metrics.jsonl."""
    num_skipped: int
    """Steps whose update was left out."""
    attempts: list[Attempt]
    restarts: list[Restart]
    evaluations: list[dict[str, Any]]
    previews: list[Path]


def read_record(run_dir: Path) -> Record:
    """Read a run's course; raises InputError where the folder holds none."""
    metrics = run_dir / METRICS
    if not (run_dir / "config.yaml").is_file():
        raise InputError(f"'{run_dir}' is not a run folder (no config.yaml); give the run_dir of a run")
    if not metrics.is_file():
        raise InputError(
            f"'{run_dir}' holds no step to report on (no {METRICS}): it was imported, or not begun; train it"
        )
    attempts = read_history(run_dir)
    joints: dict[int, list[str]] = {}
    for before, attempt in pairwise(attempts):
        joints.setdefault(int(attempt.start["step"]), []).append(before.cause)
    curves, last, num_skipped, times = _read_metrics(metrics, joints)
    if not last:
        raise InputError(f"'{run_dir}' has no step to report on yet; ask again when the first is done")
    curves["validation_loss"] = _read_validation(run_dir / VALIDATION)
    return Record(
        curves,
        last,
        num_skipped,
        attempts,
        [
            # Whoever gives a run that was done more steps has lost nothing.
            Restart(step, ", ".join(causes), times.get(step) if set(causes) != {DONE} else None)
            for step, causes in sorted(joints.items())
        ],
        _read_evaluations(run_dir / "evaluation"),
        sorted((run_dir / "samples").glob("step-*.png")),
    )


def _read_metrics(path: Path, joints: Container[int]) -> tuple[dict[str, Curve], dict[str, Any], int, dict[int, float]]:
    """Return the curves, the last line, how many steps were skipped, and the time lost at each joint."""
    stretch = max(1, -(-_count_lines(path) // MOST_POINTS))
    curves = {name: Curve() for name in (*_WITH_EXTREMES, *_MEANS)}
    waiting: dict[str, list[float]] = {name: [] for name in curves}
    last: dict[str, Any] = {}
    num_skipped, lost = 0, {}
    for line in _lines(path):
        before = last.get("time")
        if last.get("step") in joints and before is not None and line.get("time") is not None:
            lost[int(last["step"])] = max(0.0, line["time"] - before - line["step_seconds"])
        last = line
        num_skipped += bool(line.get("skipped"))
        terms = {TERM + str(name): value for name, value in line.get("losses", {}).items()}
        for name in terms.keys() - curves.keys():
            curves[name], waiting[name] = Curve(), []
        for name, values in waiting.items():
            if isinstance(value := (line | terms).get(name), int | float):
                values.append(float(value))
        if line["step"] % stretch == 0:
            _flush(curves, waiting, line["step"])
    if last:
        _flush(curves, waiting, last["step"])
    return curves, last, num_skipped, lost


def _flush(curves: dict[str, Curve], waiting: dict[str, list[float]], step: int) -> None:
    for name, values in waiting.items():
        if values:
            curves[name].add(step, values)
            values.clear()


def _read_validation(path: Path) -> Curve:
    curve = Curve()
    for line in _lines(path) if path.is_file() else ():
        if isinstance(value := line.get("validation_loss"), int | float):
            curve.add(line["step"], [float(value)])
    return curve


def _read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """Return the results of evaluations by step; what is not one is told and skipped."""
    found = []
    for path in sorted(folder.glob("step-*.json")):
        try:
            found.append(cast(dict[str, Any], parsed(path.read_bytes(), _Evaluation)))
        except (OSError, Misfit) as error:
            log.warning("'%s' is not a result of an evaluation (%s): the report is without it", path, error)
    return found


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole lines that tell of a step."""
    with path.open("rb") as file:
        for line in file:
            value = parsed_or_none(line, _Line) if line.endswith(b"\n") else None
            if value is not None:
                yield cast(dict[str, Any], value)


def _count_lines(path: Path) -> int:
    count = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            count += piece.count(b"\n")
    return count
