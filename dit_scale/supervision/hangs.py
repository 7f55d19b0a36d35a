"""Is a run stuck, and through whom: judged from what each rank last said of itself; the report about it.

A rank that waits for another is a victim. Culprits are the ranks that give no sign of life; where all do, those that
are behind the others. Ranks that are not behind wait for them, however long, so that a long save of one is no hang.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dit_scale.config import WatchdogConfig
from dit_scale.supervision.phases import Phase

Reason = Literal["no sign of life", "no progress"]
_MOST_STACKS = 4


@dataclass(frozen=True)
class Heartbeat:
    """What a rank says of itself every few seconds."""

    rank: int
    host: str
    pid: int
    phase: Phase
    step: int
    is_long: bool
    num_changes: int
    phase_seconds: float
    """In this phase so far, without the time for which the process was stopped."""
    beat: int
    """Another number each time."""
    has_left: bool = False
    """Whether it is done and nobody needs to wait for it."""

    def to_json(self) -> str:
        """Return this as one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Heartbeat":
        """Read what ``to_json`` wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class LastHeard:
    """A rank's last heartbeat as another one knows it."""

    heartbeat: Heartbeat
    silent_seconds: float
    """How long ago it came."""


@dataclass(frozen=True)
class Limits:
    """How long is too long; 0 is never."""

    step_seconds: float
    long_seconds: float

    @classmethod
    def of(cls, config: WatchdogConfig) -> "Limits":
        """Take what the configuration says."""
        return cls(config.step_seconds, config.long_seconds)

    @property
    def beat_seconds(self) -> float:
        """How often ranks give a sign of life."""
        return min([5.0, *(limit / 10 for limit in (self.step_seconds, self.long_seconds) if limit)])

    def progress_seconds(self, heartbeat: Heartbeat) -> float:
        """Longest stay in the phase that this rank is in; a beat more, so that a reader's own error comes first."""
        limit = self.long_seconds if heartbeat.is_long else self.step_seconds
        return limit and limit + self.beat_seconds

    def silence_seconds(self, heartbeat: Heartbeat) -> float:
        """Longest silence; in long phases code may hold the interpreter for a while, so a minute is never too long."""
        if not heartbeat.is_long or not self.step_seconds:
            return self.step_seconds
        return max(self.step_seconds, min(60.0, self.long_seconds))


@dataclass(frozen=True)
class Hang:
    """Why a run does not go on."""

    reason: Reason
    culprits: tuple[LastHeard, ...]
    """Whom the others wait for; all of them, where nobody stands out."""
    victims: tuple[LastHeard, ...]

    @property
    def stands_out(self) -> bool:
        """Whether it is the culprits, and not what lies between ranks that all wait."""
        return bool(self.victims) or len(self.culprits) == 1

    @property
    def shown(self) -> tuple[LastHeard, ...]:
        """The culprits whose stacks are worth a look."""
        return self.culprits[:_MOST_STACKS]

    def sentence(self) -> str:
        """Say who, in which phase and for how long."""
        first = self.culprits[0]
        who = _name(first.heartbeat) if len(self.culprits) == 1 else f"ranks {_ranges(self.culprits)}"
        if self.reason == "no sign of life":
            s = "s" if len(self.culprits) == 1 else ""
            where = f"last seen in phase {first.heartbeat.phase} of step {first.heartbeat.step}"
            return f"{who} give{s} no sign of life for {first.silent_seconds:.0f} s, {where}"
        seconds = min(culprit.heartbeat.phase_seconds for culprit in self.culprits)
        what = "makes" if len(self.culprits) == 1 else "make"
        where = f"phase {first.heartbeat.phase} of step {first.heartbeat.step}"
        alike = "" if self.stands_out else "; none is behind: a collective that does not end, or one busy in its part"
        return f"{who} {what} no progress for {seconds:.0f} s, in {where}{alike}"

    def record(self) -> dict[str, Any]:
        """Return what the file `hung` says."""
        first = self.culprits[0].heartbeat
        return {
            "reason": self.sentence(),
            "step": first.step,
            "rank": first.rank if self.stands_out else None,
            "ranks": [culprit.heartbeat.rank for culprit in self.culprits],
            "phase": first.phase,
            "host": first.host if self.stands_out else None,
        }

    def report(self, stacks: Mapping[int, Sequence[str]]) -> str:
        """Return the block for the log; ``stacks`` are the culprits' last reported ones."""
        lines = [self.sentence()]
        by_stack: dict[tuple[str, ...], list[LastHeard]] = {}
        for culprit in self.shown:
            by_stack.setdefault(tuple(stacks.get(culprit.heartbeat.rank, ())), []).append(culprit)
        for stack, ranks in by_stack.items():
            names = ", ".join(_name(rank.heartbeat) for rank in ranks)
            lines += [f"  stack last reported by {names}:", *(f"    {line}" for line in stack or ("none yet",))]
        places: dict[str, list[LastHeard]] = {}
        for victim in self.victims:
            places.setdefault(f"phase {victim.heartbeat.phase} of step {victim.heartbeat.step}", []).append(victim)
        lines += [f"  waiting, in {place}: rank {_ranges(ranks)}" for place, ranks in places.items()]
        return "\n".join(lines)


def find_hang(seen: Sequence[LastHeard], limits: Limits) -> Hang | None:
    """Return why the run does not go on, or None while it may well do."""
    present = [rank for rank in seen if not rank.heartbeat.has_left]
    silent = [rank for rank in present if 0 < limits.silence_seconds(rank.heartbeat) <= rank.silent_seconds]
    if silent:
        return _hang("no sign of life", silent, present)
    least = min((rank.heartbeat.num_changes for rank in present), default=0)
    behind = [rank for rank in present if rank.heartbeat.num_changes == least]
    # The last to arrive counts: while one of them has just come, the others did no more than wait for it.
    if behind and all(0 < limits.progress_seconds(each.heartbeat) <= each.heartbeat.phase_seconds for each in behind):
        return _hang("no progress", behind, present)
    return None


def _hang(reason: Reason, culprits: list[LastHeard], present: list[LastHeard]) -> Hang:
    return Hang(reason, tuple(culprits), tuple(rank for rank in present if rank not in culprits))


def _name(heartbeat: Heartbeat) -> str:
    return f"rank {heartbeat.rank} ({heartbeat.host}, process {heartbeat.pid})"


def _ranges(last_heard: Sequence[LastHeard]) -> str:
    """Return numbers of ranks in short: ``0, 2-7``."""
    runs: list[list[int]] = []
    for rank in sorted(rank.heartbeat.rank for rank in last_heard):
        if runs and runs[-1][-1] == rank - 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
