"""The page: one HTML file that needs no network, from what a run folder holds."""

import base64
import io
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import plotly.offline
from PIL import Image

from dit_scale.errors import InputError
from dit_scale.files import atomic_write
from dit_scale.jobs.status import Status, look
from dit_scale.report.charts import charts_of
from dit_scale.report.reading import Record, read_record
from dit_scale.supervision.history import Attempt

MOST_PREVIEWS = 40
"""Grids on the page, evenly chosen, the newest always; more would make it heavy."""
_WIDEST_PREVIEW = 1000


@dataclass(frozen=True)
class Preview:
    """A preview grid, ready for the page."""

    step: int
    source: str


def write_report(run_dir: Path, out: Path) -> None:
    """Write the page of a run; raises InputError where the folder holds no run, or ``out`` cannot be written."""
    record, status = read_record(run_dir), look(run_dir)
    if not out.parent.is_dir():
        raise InputError(f"--out '{out}' is in no folder that is there; make it, or give another file")
    settings, versions = _split_config((run_dir / "config.yaml").read_text())
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = template.from_string(files(__package__).joinpath("page.html").read_text()).render(
        name=run_dir.resolve().name,
        now=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        status=status,
        facts=_facts(record, status),
        charts=charts_of(record),
        previews=_previews(record.previews),
        attempts=_attempts(record, status),
        lost=_span(sum(restart.lost_seconds or 0.0 for restart in record.restarts)),
        num_restarts=len(record.restarts),
        num_skipped=record.num_skipped,
        evaluation=_newest_evaluation(record),
        settings=settings,
        versions=versions,
        plotly=plotly.offline.get_plotlyjs(),
    )
    with atomic_write(out, "w") as file:
        file.write(page)


def _facts(record: Record, status: Status) -> list[tuple[str, str]]:
    """Return the headline: what it is, and its value."""
    total = f" of {status.total_steps:,}" if status.total_steps else ""
    last, recent = record.last, record.curves["loss"]
    rows = [
        ("step", f"{status.step:,}{total}"),
        ("images seen", f"{last['images_seen']:,}" if "images_seen" in last else None),
        ("loss", f"{recent.mean[-1]:.4f}" if recent.mean else None),
        ("images/s", f"{status.images_per_second:,.0f}" if status.images_per_second else None),
        ("MFU", f"{last['mfu']:.1%}" if last.get("mfu") else None),
        ("time left", _span(status.left_seconds) if status.left_seconds and status.state == "running" else None),
        ("last save", f"step {status.last_save_step:,}" if status.last_save_step is not None else "none yet"),
        ("ranks", f"{status.world_size}, ZeRO {status.zero_stage}" if status.world_size else None),
    ]
    return [(name, value) for name, value in rows if value is not None]


def _attempts(record: Record, status: Status) -> list[dict[str, str]]:
    lost = {restart.step: restart.lost_seconds for restart in record.restarts}
    rows = []
    for number, attempt in enumerate(record.attempts):
        step = int(attempt.start["step"])
        is_last_there = all(int(later.start["step"]) != step for later in record.attempts[number + 1 :])
        rows.append(_attempt(attempt, lost.get(step) if number and is_last_there else None))
    if rows and status.state == "running":
        rows[-1]["ended"] = "running"
    return rows


def _attempt(attempt: Attempt, lost_seconds: float | None) -> dict[str, str]:
    start, end = attempt.start, attempt.end
    return {
        "began": f"{datetime.fromtimestamp(start['time'], UTC):%Y-%m-%d %H:%M:%S}",
        "at": f"{start['step']:,}",
        "ranks": f"{start.get('world_size', '?')}, ZeRO {start.get('zero_stage', '?')}",
        "where": " ".join(str(start[key]) for key in ("host", "job") if start.get(key)),
        "ended": attempt.cause,
        "step": f"{end['step']:,}" if end is not None else "",
        "error": str(end.get("error") or "") if end is not None else "",
        "lost": _span(lost_seconds) if lost_seconds is not None else "",
    }


def _newest_evaluation(record: Record) -> dict[str, Any] | None:
    """Return the newest evaluation's rows and how it was measured."""
    if not record.evaluations:
        return None
    newest = record.evaluations[-1]
    spread = _mapping(newest, "spread")
    rows = [
        (str(name), f"{value:.5g}", f"{spread[name]:.2g}" if isinstance(spread.get(name), float) else "")
        for name, value in newest["metrics"].items()
        if isinstance(value, int | float)
    ]
    return {"step": newest["step"], "rows": rows, "protocol": _flat(_mapping(newest, "protocol"))}


def _mapping(result: dict[str, Any], key: str) -> dict[str, Any]:
    value = result.get(key)
    return value if isinstance(value, dict) else {}


def _flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in tree.items():
        rows += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", str(value))]
    return rows


def _previews(paths: list[Path]) -> list[Preview]:
    count = min(MOST_PREVIEWS, len(paths))
    chosen = sorted(
        {round(i * (len(paths) - 1) / max(1, count - 1)) for i in range(count)} | {len(paths) - 1} if paths else ()
    )
    found = ((paths[i], _embedded(paths[i])) for i in chosen)
    return [Preview(int(path.stem.removeprefix("step-")), source) for path, source in found if source]


def _embedded(path: Path) -> str | None:
    """Return a picture as a data URL, made smaller where it is wider than any screen column; None for a damaged one."""
    try:
        with Image.open(path) as picture:
            image = picture.convert("RGB")
    except (OSError, SyntaxError):
        return None
    image.thumbnail((_WIDEST_PREVIEW, 4 * _WIDEST_PREVIEW))
    content = io.BytesIO()
    image.save(content, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(content.getvalue()).decode()


def _split_config(text: str) -> tuple[str, list[str]]:
    """Return the settings, and the versions that stand above them as comments."""
    lines = text.splitlines()
    head = [line.removeprefix("# ") for line in lines if line.startswith("# ")]
    return "\n".join(line for line in lines if not line.startswith("# ")), head


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
