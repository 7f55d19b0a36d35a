"""`dit-scale bench checkpoint`: what a save costs the step loop, written before its eyes or behind it."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dit_scale.bench.loop import CLASSES, Loop
from dit_scale.bench.measure import Spread
from dit_scale.bench.report import begin_report, show, show_table, write_report
from dit_scale.checkpoint import Description, Position, Retention, Saver
from dit_scale.config import EngineConfig
from dit_scale.distributed.runtime import World, device_of, process_group, set_threads
from dit_scale.latents import LatentSpec
from dit_scale.models import build_model

_PACKAGES = ("dit_scale", "torch", "deepspeed", "numpy")
_LATENTS = LatentSpec(channels=4, size=16)
_BATCH = 4
_SECONDS_BETWEEN_SAVES = 600


@dataclass(frozen=True)
class _Round:
    """One save and the steps after it."""

    stalled_seconds: float
    """For which the loop stood still."""
    saved_seconds: float
    """Until all was on disk."""
    step_seconds: float
    """A step while it was being written, or after it."""

    def lost_seconds(self, steps: int, quiet_seconds: float) -> float:
        """Return what training lost: standing still, and slower steps after it."""
        return self.stalled_seconds + steps * max(0.0, self.step_seconds - quiet_seconds)


class _SavingLoop(Loop):
    """A loop that saves."""

    def step_seconds(self, count: int) -> float:
        """Take some steps; return the seconds of each."""
        started = time.perf_counter()
        for _ in range(count):
            self.step()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / count

    def save(self, saver: Saver, step: int, steps_after: int) -> _Round:
        """Save, and take steps meanwhile or afterwards."""
        started = time.perf_counter()
        saver.save(Description(Position(step, step * _BATCH), {}, {}), self.state.part())
        stalled = time.perf_counter() - started
        seconds = self.step_seconds(steps_after)
        outcome = saver.wait()
        if outcome is None or outcome.trouble is not None:
            raise OSError(f"the benchmark's checkpoint could not be written: {outcome and outcome.trouble}")
        return _Round(stalled, outcome.seconds, seconds)


def bench_checkpoint(model_name: str, folder: Path | None, rounds: int, steps: int, json_file: Path | None) -> None:
    """Save a model's whole state in both ways, in turn, ``rounds`` times each; print and write what it took."""
    report = begin_report("checkpoint", _PACKAGES, json_file)
    device = device_of(World())
    set_threads(World())
    with process_group(World(), device), _place(folder) as place:
        model = build_model(model_name, latent_size=_LATENTS.size, num_classes=CLASSES)
        engine = EngineConfig(precision="fp32")
        loop = _SavingLoop(model, _LATENTS, engine, _BATCH, _BATCH, World(), device)
        savers = {
            "synchronous": Saver(place / "a", World(), Retention(newest=1), in_background=False),
            "in the background": Saver(place / "b", World(), Retention(newest=1)),
        }
        loop.step_seconds(1)
        measured: dict[str, list[_Round]] = {name: [] for name in savers}
        quiet = []
        for number in range(rounds + 1):
            quiet.append(loop.step_seconds(steps))
            for name, saver in savers.items():
                measured[name].append(loop.save(saver, number, steps))
        state_bytes = loop.state.part().num_bytes()
    measured = {name: found[1:] for name, found in measured.items()}  # the first made the memory and the folders
    report |= _figures(model_name, loop.num_parameters, state_bytes, steps, quiet[1:], measured)
    _show(report)
    write_report(report, json_file)


def _figures(
    model_name: str,
    num_parameters: int,
    num_bytes: int,
    steps: int,
    quiet: list[float],
    measured: dict[str, list[_Round]],
) -> dict[str, Any]:
    ratios = [
        mine.stalled_seconds / theirs.stalled_seconds
        for mine, theirs in zip(measured["in the background"], measured["synchronous"], strict=True)
    ]
    quiet_seconds = Spread.of(quiet).median
    return {
        "model": model_name,
        "parameters": num_parameters,
        "checkpoint_bytes": num_bytes,
        "steps_a_save": steps,
        "step_seconds_without_a_save": asdict(Spread.of(quiet)),
        "ways": {
            name: {
                figure: asdict(Spread.of([getattr(one, figure) for one in found]))
                for figure in ("stalled_seconds", "saved_seconds", "step_seconds")
            }
            for name, found in measured.items()
        },
        "stall_ratio": asdict(Spread.of(ratios)),
        "share_of_time": {
            name: asdict(Spread.of([one.lost_seconds(steps, quiet_seconds) / _SECONDS_BETWEEN_SAVES for one in found]))
            for name, found in measured.items()
        },
    }


def _show(report: dict[str, Any]) -> None:
    show(report)
    print(
        f"{report['model']}, {report['parameters'] / 1e6:.1f}M parameters, a checkpoint of "
        f"{report['checkpoint_bytes'] / 1e9:.2f} GB; a step without a save takes "
        f"{Spread(**report['step_seconds_without_a_save'])} s"
    )
    rows = [
        [name, *(str(Spread(**way[figure])) for figure in ("stalled_seconds", "saved_seconds", "step_seconds"))]
        for name, way in report["ways"].items()
    ]
    columns = ["a save", "the loop stands still, s", "on disk after, s", "a step then takes, s"]
    show_table("median (least-most)", columns, rows)
    print(f"standing still, in the background against synchronous: {Spread(**report['stall_ratio'])}")
    for name, share in report["share_of_time"].items():
        print(f"one save every 10 minutes costs {share['median']:.2%} of the time: {name}")


@contextmanager
def _place(folder: Path | None) -> Iterator[Path]:
    """Give an empty folder that goes with its checkpoints; ``folder`` says on which disk."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="bench-checkpoint-") as name:
        yield Path(name)
