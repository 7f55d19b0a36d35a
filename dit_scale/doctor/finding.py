"""What a check found, the worst of all ranks, and the table that shows it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from dit_scale.errors import Failure, InputError
from dit_scale.files import write_json


class Status(IntEnum):
    """How a check ended, the worst last."""

    PASS = 0
    WARN = 1
    FAIL = 2

    @property
    def word(self) -> str:
        """Its name in the table and in JSON."""
        return self.name.lower()


_COLOURS = {Status.PASS: "green", Status.WARN: "yellow", Status.FAIL: "bold red"}


@dataclass(frozen=True)
class Finding:
    """One check's result: its figure, and the fix where it is not a pass."""

    name: str
    status: Status
    figure: str
    way_out: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    """Numbers for the JSON file."""


def guarded(name: str, check: Callable[..., Finding], *arguments: Any) -> Finding:
    """Return what a check finds; one that raises has failed, in its error's words."""
    try:
        return check(*arguments)
    except (InputError, Failure) as error:
        return failed_with(name, error)
    except Exception as error:  # a check that breaks is a finding, and the other ranks wait for this one
        said = str(error).strip().splitlines() or ["no reason given"]
        return Finding(name, Status.FAIL, f"{type(error).__name__}: {said[0]}", "fix what the error names")


def failed_with(name: str, error: Exception) -> Finding:
    """Return a failure from an error whose sentence ends with the fix."""
    figure, _, way_out = str(error).rpartition("; ")
    return Finding(name, Status.FAIL, figure or way_out, way_out if figure else "")


def worst_of_ranks(by_rank: Sequence[Sequence[Finding]]) -> list[Finding]:
    """Return each check's worst finding over ranks, naming the rank where it is not rank zero's."""
    merged = []
    for same in zip(*by_rank, strict=True):
        rank, worst = max(enumerate(same), key=lambda entry: (entry[1].status, -entry[0]))
        alike = sum(finding.status == worst.status for finding in same) - 1
        if rank > 0:
            more = f" and {alike} more" if alike else ""
            worst = replace(worst, figure=f"rank {rank}{more}: {worst.figure}")
        merged.append(worst)
    return merged


def show(findings: Sequence[Finding], title: str) -> None:
    """Print the table and a line that sums it up."""
    console = Console()
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("check", "", "found", "fix"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        word = f"[{_COLOURS[finding.status]}]{finding.status.word}[/]"
        table.add_row(finding.name, word, _plain(finding.figure), _plain(finding.way_out))
    # A pipe has no width: wide enough there that sentences stay whole lines for who searches them.
    (console if console.is_terminal else Console(width=160)).print(table)
    counts = {status: sum(finding.status == status for finding in findings) for status in Status}
    print(", ".join(f"{count} {status.word}" for status, count in counts.items()), flush=True)


def write(path: Path, findings: Sequence[Finding], world_size: int) -> None:
    """Write all findings as JSON, or raise `InputError`."""
    worst = max(finding.status for finding in findings)
    values = [json.loads(json.dumps(asdict(finding) | {"status": finding.status.word})) for finding in findings]
    try:
        write_json(path, {"status": worst.word, "world_size": world_size, "findings": values})
    except OSError as error:
        raise InputError(f"--json {path} cannot be written ({error.strerror}); give another file") from None


def _plain(text: str) -> str:
    """Keep rich from reading brackets as its markup."""
    return text.replace("[", r"\[")
