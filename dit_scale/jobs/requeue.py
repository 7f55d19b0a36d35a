"""Whether a launcher should start a run again: decided from the run folder, never from an exit status."""

from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from dit_scale.supervision.history import DONE, HANG, KILLED, Attempt, last_save, read_history
from dit_scale.supervision.markers import HUNG, STOPPED, read_marker


@dataclass(frozen=True)
class Limits:
    """How often is too often."""

    max_restarts: int = 100
    """Restarts of one job."""
    max_without_progress: int = 3
    """Starts at one and the same step."""
    max_hangs: int = 3
    """Hangs in a row."""


@dataclass(frozen=True)
class Decision:
    """Whether to requeue, and why, in one sentence."""

    requeue: bool
    sentence: str


def decide(run_dir: Path, limits: Limits) -> Decision:
    """Requeue what stopped on request with everything saved, and what hung; each within limits."""
    stopped, hung = read_marker(run_dir, STOPPED), read_marker(run_dir, HUNG)
    attempts = read_history(run_dir)
    if stopped is not None:
        said = f"stopped ({stopped.get('reason', 'reason unknown')}) at step {stopped.get('step', '?')}"
    elif hung is not None:
        said = f"hung at step {hung.get('step', '?')} ({hung.get('reason', 'reason unknown')})"
    else:
        return Decision(False, f"not requeued: {_how_it_ended(attempts)}")
    if obstacle := _obstacle(run_dir, attempts, stopped is None, limits):
        return Decision(False, f"not requeued: {said}, but {obstacle}")
    return Decision(True, f"requeue: {said}")


def restarts_of_job(attempts: list[Attempt]) -> int:
    """Return how often the job of the last start has started again, by its own count or by the starts written down."""
    if not attempts:
        return 0
    job = attempts[-1].start.get("job")
    starts = sum(1 for attempt in attempts if attempt.start.get("job") == job)
    return max(starts - 1, int(attempts[-1].start.get("restart") or 0))


def starts_without_progress(attempts: list[Attempt], step: int) -> int:
    """Return how many of the last starts stood at ``step``, where the run still stands."""
    return sum(1 for _ in takewhile(lambda attempt: attempt.start.get("step") == step, reversed(attempts)))


def hangs_in_a_row(attempts: list[Attempt], hung_now: bool) -> int:
    """Return how many attempts at the end hung; the last may have left a marker only."""
    if not hung_now:
        return 0
    return 1 + sum(1 for _ in takewhile(lambda attempt: attempt.cause == HANG, reversed(attempts[:-1])))


def _obstacle(run_dir: Path, attempts: list[Attempt], hung: bool, limits: Limits) -> str | None:
    step, _ = last_save(run_dir)
    if (hangs := hangs_in_a_row(attempts, hung)) > limits.max_hangs:
        return f"that is the hang number {hangs} in a row and {limits.max_hangs} are the limit (--max-hangs)"
    stuck = starts_without_progress(attempts, step)
    if stuck >= limits.max_without_progress:
        return f"the last {stuck} starts all stood at step {step}, where the run still is (--max-without-progress)"
    if (restarts := restarts_of_job(attempts)) >= limits.max_restarts:
        return f"{restarts} restarts are the limit (--max-restarts, DIT_SCALE_MAX_RESTARTS={limits.max_restarts})"
    return None


def _how_it_ended(attempts: list[Attempt]) -> str:
    if not attempts:
        return "the run never started"
    cause = attempts[-1].cause
    if cause == DONE:
        return "the run is done"
    if cause == KILLED:
        return "the run was killed and left no word"
    end = attempts[-1].end or {}
    return f"the run ended by {cause}" + (f" ({end['error']})" if end.get("error") else "")
