"""Which checkpoints stay."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from dit_scale.checkpoint.layout import MANIFEST, newest_first, step_of
from dit_scale.files import remove


@dataclass(frozen=True)
class Retention:
    """How many checkpoints stay, and which."""

    newest: int = 3
    every_steps: int = 0
    """Those of every so many steps stay for ever; 0 is none."""
    best: int = 0
    best_by: str = "validation_loss"
    """The metric that is compared."""
    higher_is_better: bool = False

    def kept(self, checkpoints: Path) -> set[Path]:
        """Return those of the checkpoints that stay."""
        folders = newest_first(checkpoints)
        forever = {folder for folder in folders if self.every_steps and step_of(folder) % self.every_steps == 0}
        measured = [folder for folder in folders if math.isfinite(_metric(folder, self.best_by))] if self.best else []
        sign = -1.0 if self.higher_is_better else 1.0
        best = sorted(measured, key=lambda folder: sign * _metric(folder, self.best_by))[: self.best]
        return {*folders[: max(1, self.newest)], *forever, *best}


def prune(checkpoints: Path, retention: Retention) -> None:
    """Remove the checkpoints that need not stay, and what a killed run left half-written (one process)."""
    sweep(checkpoints)
    kept = retention.kept(checkpoints)
    for folder in newest_first(checkpoints):
        if folder not in kept:
            doomed = folder.with_name(f".{folder.name}.removed")  # first: never half a checkpoint under its name
            folder.replace(doomed)
            remove(doomed)


def sweep(checkpoints: Path) -> None:
    """Remove what a killed run, or a save that failed, left half-written or half-removed (one process)."""
    for leftover in checkpoints.glob(".step-*"):
        remove(leftover)


def _metric(folder: Path, name: str) -> float:
    """Return a checkpoint's metric, infinite where it has none."""
    try:
        return float(json.loads((folder / MANIFEST).read_text())["metrics"][name])
    except (OSError, ValueError, KeyError, TypeError):
        return math.inf
