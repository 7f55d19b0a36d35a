"""Quality for compute: configurations trained in turn on the same images, and how good each is after which work."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from dit_scale.bench.measure import Spread
from dit_scale.bench.quality_chart import draw
from dit_scale.bench.report import begin_report, show, show_table, write_report
from dit_scale.config import Config, PreviewConfig, WandbConfig, load_config, to_yaml
from dit_scale.distributed.runtime import World, die_with_parent
from dit_scale.documents import Misfit, parsed, parsed_or_none
from dit_scale.errors import Failure, InputError
from dit_scale.files import atomic_write, make_writable_folder
from dit_scale.supervision.history import Step, last_save, read_history
from dit_scale.training.evaluation import FOLDER, DecodedRecords
from dit_scale.training.run_log import METRICS

_PACKAGES = ("dit_scale", "torch", "deepspeed", "numpy")
_MEASURED_ALIKE = ("num_images", "reference", "weights", "batch_size")
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that wait sleep: on a busy machine they would take as many CPU seconds as those that work."""
_TOLD = "dit-scale train: "
CHART = "quality.png"

Start = Callable[[list[str], int, Path], int]
"""Runs `dit-scale` with these words on so many ranks, its output going to a new file; returns the exit status."""


class _Line(Step):
    step_seconds: float
    cpu_seconds: float


class _Result(Step):
    metrics: dict[str, float]
    protocol: dict[str, Any]


@dataclass(frozen=True)
class Point:
    """How good a run's images are after how much work."""

    step: int
    compute_seconds: float
    """Of its steps so far, over all ranks: CPU seconds, or on GPUs GPU-seconds."""
    distance: float
    """Fréchet distance."""


@dataclass(frozen=True)
class Trained:
    """A configuration with one seed, trained in pieces."""

    name: str
    config: Config
    """With the seed and the folder of this run."""
    file: Path
    """The configuration that `train` is given."""

    @property
    def run_dir(self) -> Path:
        """The folder of the run."""
        return Path(self.config.run_dir)

    @property
    def title(self) -> str:
        """What it is called in messages."""
        return f"{self.name}, seed {self.config.seed}"

    def next_stop(self) -> int | None:
        """Return the next step that is measured; None where the last one is saved."""
        step, last, every = last_save(self.run_dir)[0], self.config.train.steps, self.config.evaluation.every_steps
        return None if step >= last else min(last, (step // every + 1) * every)

    def go_on(self, start: Start, num_ranks: int, is_on_gpu: bool) -> Point:
        """Train to the next step that is measured, and return what was measured there."""
        stop, log = self.next_stop(), self.run_dir.with_suffix(".log")
        words = ["train", str(self.file), f"run_dir={self.run_dir}", f"seed={self.config.seed}"]
        status = start([*words, "--stop-after", str(stop)], num_ranks, log)
        if status:
            said = _sentence(log)
            raise Failure(
                f"the training of {self.title} ended with status {status}{said}; see '{log}', then run this again"
            )
        points = self.points(num_ranks, is_on_gpu)
        if not points or points[-1].step != stop:
            raise Failure(f"the training of {self.title} has measured nothing at step {stop}; see '{log}'")
        return points[-1]

    def points(self, num_ranks: int, is_on_gpu: bool) -> list[Point]:
        """Return what was measured so far."""
        compute = self._compute_seconds(num_ranks, is_on_gpu)
        return [
            Point(result["step"], compute[result["step"]], _distance(result["metrics"])[1])
            for result in self.results()
            if result["step"] in compute
        ]

    def results(self) -> list[_Result]:
        """Return the results of its evaluations; raises Failure for a file that is none."""
        found = []
        for path in sorted((self.run_dir / FOLDER).glob("step-*.json")):
            try:
                found.append(parsed(path.read_bytes(), _Result))
            except Misfit as error:
                raise Failure(
                    f"'{path}' is not a result of an evaluation ({error}); remove this run's folder"
                ) from error
        return found

    def _compute_seconds(self, num_ranks: int, is_on_gpu: bool) -> dict[int, float]:
        """Return the compute up to each step.

        A step that is the first after a start also compiles and sets up: it counts as the median of the others.
        """
        lines = [parsed_or_none(line, _Line) for line in (self.run_dir / METRICS).read_bytes().splitlines()]
        seconds = {
            line["step"]: line["step_seconds"] * num_ranks if is_on_gpu else line["cpu_seconds"]
            for line in lines
            if line is not None
        }
        first = {int(attempt.start["step"]) + 1 for attempt in read_history(self.run_dir)}
        usual = median([value for step, value in seconds.items() if step not in first] or seconds.values())
        total, found = 0.0, {}
        for step, value in seconds.items():
            total += usual if step in first else value
            found[step] = total
        return found


def start_child(words: list[str], num_ranks: int, log: Path) -> int:
    """Run `dit-scale` as a user would, under torchrun where there are several ranks; it dies with this process."""
    launcher = [sys.executable, "-m"]
    if num_ranks > 1:
        local = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(num_ranks)]
        launcher += ["torch.distributed.run", *local, "-m"]
    with log.open("wb") as output:
        return subprocess.run(
            [*launcher, "dit_scale", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_ENVIRONMENT | os.environ,
            preexec_fn=die_with_parent,
            check=False,
        ).returncode


def bench_quality(
    configs: Sequence[str],
    overrides: list[str],
    seeds: Sequence[int],
    out: Path,
    num_ranks: int = 1,
    json_file: Path | None = None,
    start: Start = start_child,
) -> None:
    """Train each configuration with each seed, a piece of each in turn, then print a table, draw curves and write JSON.

    Pieces end where the run is measured. What disturbs the machine for a while so disturbs all of them. Runs that
    ``out`` holds already go on where they are.
    """
    if World.from_environment().world_size > 1:
        raise InputError("bench quality starts its ranks itself; start it without torchrun, and give --ranks N")
    json_file = json_file or out / "quality.json"
    loaded = _load(configs, overrides, out)
    report = begin_report("quality", _PACKAGES, json_file)
    trained = [one for seed in seeds for one in _prepare(loaded, seed, out)]
    is_on_gpu = torch.cuda.is_available()
    while waiting := [one for one in trained if one.next_stop() is not None]:
        for one in waiting:
            point = one.go_on(start, num_ranks, is_on_gpu)
            print(
                f"{one.title}: step {point.step} of {one.config.train.steps}, distance {point.distance:.4g}, "
                f"{point.compute_seconds:.4g} {_unit(is_on_gpu)}",
                flush=True,
            )
    points = {name: [one.points(num_ranks, is_on_gpu) for one in trained if one.name == name] for name in loaded}
    report |= _figures(points, trained, seeds, num_ranks, is_on_gpu)
    show(report)
    _show_figures(report)
    draw(points, f"{report['metric']}, against {report['reference']}", report["compute"], out / CHART)
    write_report(report, json_file)
    print(f"{out / CHART}, {json_file}")


def _load(configs: Sequence[str], overrides: list[str], out: Path) -> dict[str, Config]:
    """Return the configurations by their names; raises InputError where they cannot be compared."""
    found: dict[str, Config] = {}
    for path in configs:
        name = Path(path).stem
        if name in found:
            raise InputError(f"two configurations are called '{name}'; give each file a name of its own")
        config = load_config(Config, path, [*overrides, f"run_dir={out.absolute() / name}"])
        if not config.evaluation.every_steps:
            raise InputError(f"'{path}' has evaluation.every_steps=0, which measures nothing; give it, such as 200")
        # Nobody looks at these; seeds come with each run.
        found[name] = replace(config, preview=PreviewConfig(every_steps=0), wandb=WandbConfig(mode="disabled"))
    first, *others = found
    for name in others:
        for setting in _MEASURED_ALIKE:
            ours, theirs = (getattr(found[one].evaluation, setting) for one in (first, name))
            if ours != theirs:
                raise InputError(
                    f"'{first}' has evaluation.{setting}={ours} and '{name}' {theirs}, whose distances do not compare; "
                    f"give evaluation.{setting} once for all"
                )
        if found[first].evaluation.reference is None and found[first].data.path != found[name].data.path:
            raise InputError(
                f"'{first}' and '{name}' learn other latents, each with a reference of its own; give the original "
                f"images, evaluation.reference=FOLDER, or one data.path for all"
            )
    return found


def _prepare(loaded: dict[str, Config], seed: int, out: Path) -> list[Trained]:
    """Write down what is trained; raises InputError where ``out`` holds runs of other settings."""
    make_writable_folder(out, "--out")
    found = []
    for name, config in loaded.items():
        file = out / f"{name}.yaml"
        make_writable_folder(out / name, "the folder of runs")
        if not file.is_file():
            with atomic_write(file, "w") as text:
                text.write(to_yaml(config))
        elif load_config(Config, file, is_stored=True) != config:
            raise InputError(
                f"'{out}' holds runs of '{name}' with other settings; give another --out DIR, or remove it"
            )
        run_dir = out.absolute() / name / f"seed-{seed}"
        found.append(Trained(name, replace(config, seed=seed, run_dir=str(run_dir)), file))
    return found


def _figures(
    points: dict[str, list[list[Point]]], trained: list[Trained], seeds: Sequence[int], num_ranks: int, is_on_gpu: bool
) -> dict[str, Any]:
    """Return the figures of all runs; the first configuration is what the others are held against."""
    first = next(iter(points))
    result = trained[0].results()[-1]
    last = [run[-1] for run in points[first]]
    reference = result["protocol"]["reference"]
    return {
        "settings": {"seeds": list(seeds), "ranks": num_ranks},
        "metric": _distance(result["metrics"])[0],
        "reference": _reference(reference, trained[0].config.evaluation.reference),
        "compute": f"{_unit(is_on_gpu)} of training steps, all ranks",
        "configurations": {
            name: {
                "distance": asdict(Spread.of([run[-1].distance for run in runs])),
                "compute_seconds": asdict(Spread.of([run[-1].compute_seconds for run in runs])),
                "compute_to_first": [
                    _ratio(run, target.distance, target.compute_seconds) for run, target in zip(runs, last, strict=True)
                ],
                "points": {str(seed): [asdict(point) for point in run] for seed, run in zip(seeds, runs, strict=True)},
            }
            for name, runs in points.items()
        },
    }


def _ratio(run: list[Point], distance: float, compute_seconds: float) -> float | None:
    """Return the compute after which a run was first measured at a distance or below, as a part of another's."""
    reached = next((point for point in run if point.distance <= distance), None)
    return None if reached is None else reached.compute_seconds / compute_seconds


def _show_figures(report: dict[str, Any]) -> None:
    found = report["configurations"]
    first = next(iter(found))
    rows = [
        [
            name,
            str(Spread(**one["distance"])),
            str(Spread(**one["compute_seconds"])),
            _shown(one["compute_to_first"]),
        ]
        for name, one in found.items()
    ]
    seeds = report["settings"]["seeds"]
    show_table(
        f"{report['metric']}, against {report['reference']}; {report['compute']}; seeds {', '.join(map(str, seeds))}",
        ["median (least-most)", "distance at the end", "compute", f"compute to {first}'s final distance, as a part"],
        rows,
    )


def _shown(ratios: list[float | None]) -> str:
    reached = [ratio for ratio in ratios if ratio is not None]
    if not reached:
        return "not reached"
    return str(Spread.of(reached)) + (f", {len(reached)} of {len(ratios)} seeds" if None in ratios else "")


def _reference(identity: dict[str, Any], folder: str | None) -> str:
    """Say what samples were held against."""
    if folder is not None:
        return f"the original images of '{folder}'"
    if identity["kind"] == DecodedRecords.kind:
        return f"{identity['images']} decoded records, which hide what the autoencoder loses"
    return f"{identity['images']} of the images that were encoded"


def _distance(metrics: dict[str, float]) -> tuple[str, float]:
    """Return name and value of the Fréchet distance."""
    return next((name, value) for name, value in metrics.items() if name == "fid" or name.startswith("frechet_"))


def _sentence(log: Path) -> str:
    """Return the sentence in which the last training told its failure, in brackets; nothing where it told none."""
    told = [line for line in log.read_text(errors="replace").splitlines() if line.startswith(_TOLD)]
    return f" ({told[-1].removeprefix(_TOLD)})" if told else ""


def _unit(is_on_gpu: bool) -> str:
    return "GPU-seconds" if is_on_gpu else "CPU seconds"
