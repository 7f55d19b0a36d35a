"""Figures with all that it takes to trace them: date, machine, versions, command."""

import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dit_scale.files import make_writable_folder, write_json
from dit_scale.versions import versions

_FILE_WIDTH = 160
"""Of tables that no terminal shows."""


def begin_report(benchmark: str, packages: tuple[str, ...], path: Path | None) -> dict[str, Any]:
    """Return where figures that are about to be taken come from; ``packages`` are those they depend on.

    Raises InputError where the report could not be written to ``path``.
    """
    if path:
        make_writable_folder(path.absolute().parent, "the folder of the report")
    return {
        "benchmark": benchmark,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["dit-scale", *sys.argv[1:]]),
        "machine": _machine(),
        "versions": {"python": platform.python_version()} | versions(packages),
    }


def show(report: dict[str, Any]) -> None:
    """Print where a report's figures come from."""
    machine = report["machine"]
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    print(f"{report['date']}, {machine['cpu']}, {machine['cores']} cores{gpu}")
    print(", ".join(f"{name} {number}" for name, number in report["versions"].items()))


def show_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a title and a table whose first column is text and whose others are figures."""
    table = Table()
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    print(title)
    console = Console()
    (console if console.is_terminal else Console(width=_FILE_WIDTH)).print(table)


def write_report(report: dict[str, Any], path: Path | None) -> None:
    """Write a report as JSON where that is wanted."""
    if path:
        write_json(path, report)


def _machine() -> dict[str, Any]:
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cpu_model() -> str:
    """Return the processor's name with family and model, since a virtual machine may tell no more than its maker."""
    found: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    if "model name" not in found:
        return platform.processor() or platform.machine()
    return f"{found['model name']} (family {found.get('cpu family', '?')}, model {found.get('model', '?')})"
