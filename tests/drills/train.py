"""Kill training at random, in a step, in a save, while loading, and go on: `python -m tests.drills.train`.

One rank, or all ranks and their launcher, at ZeRO 0 to 3. In the end every loss and all state must equal an
uninterrupted run's to the bit. Prints a JSON line a kill and one a stage.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tests.end_to_end.conftest import draw_images, encode_settings
from tests.end_to_end.runs import losses, num_lines, settings, start, wait_until, workers_of
from tests.launch import run

STEPS = 24
RANKS = 2
MODEL = ["model.hidden_size=128", "model.depth=3"]
"""Large enough that a save takes a while in which it can be killed."""
ROUTING = ["ratio=0.5", "from_block=2", "to_block=2", "fill=learnt", "path_drop=0.2", f"until_step={STEPS // 2}"]
"""Some tokens go around a block in the first half of the run, and all go through it in the second."""

Moment = Literal["step", "save", "load"]
Victims = Literal["one rank", "all ranks and the launcher", "the launcher"]


@dataclass(frozen=True)
class Kill:
    """One SIGKILL, or several at once."""

    zero_stage: int
    moment: Moment
    victims: Victims
    steps_done: int
    half_written: bool
    """Whether a checkpoint was being written."""


@dataclass(frozen=True)
class Outcome:
    """What the kills of one stage came to."""

    zero_stage: int
    kills: int
    same_losses: bool
    same_state: bool


def drill(
    shards: Path, folder: Path, *, zero_stage: int, kills: int, seed: int, tell: Callable[[Kill], None] = lambda _: None
) -> Outcome:
    """Train to the end once without and once with ``kills`` kills; compare."""
    rng = random.Random(f"{seed}/{zero_stage}")
    quiet, killed = folder / f"uninterrupted-{zero_stage}", folder / f"killed-{zero_stage}"
    run(_arguments(shards, quiet, zero_stage), RANKS)
    done = 0
    while done < kills:
        if num_lines(killed / "metrics.jsonl") > STEPS // 2:
            _lose_some(killed)
        tell(_start_and_kill(_arguments(shards, killed, zero_stage), killed, zero_stage, rng))
        done += 1
    run(_arguments(shards, killed, zero_stage), RANKS)
    return Outcome(zero_stage, done, losses(killed) == losses(quiet), _digests(killed) == _digests(quiet))


def _arguments(shards: Path, run_dir: Path, zero_stage: int) -> list[object]:
    own = [f"train.steps={STEPS}", "checkpoint.every_steps=2", "checkpoint.keep=20", f"engine.zero_stage={zero_stage}"]
    return [*settings(shards, run_dir), *MODEL, *(f"routing.{word}" for word in ROUTING), *own]


def _lose_some(run_dir: Path) -> None:
    """Take the run back to an early checkpoint, so that there are steps left to be killed in."""
    for folder in sorted((run_dir / "checkpoints").glob("step-*"))[1:]:
        subprocess.run(["rm", "-r", folder], check=True)


def _start_and_kill(arguments: list[object], run_dir: Path, zero_stage: int, rng: random.Random) -> Kill:
    moment: Moment = rng.choice(("step", "save", "load"))
    victims: Victims = rng.choice(("one rank", "all ranks and the launcher", "the launcher"))
    metrics, begun = run_dir / "metrics.jsonl", time.time()
    process = start(arguments, RANKS)
    if moment == "load":  # from the first import to the first step
        wait_until(lambda: len(workers_of(run_dir)) > RANKS, process)
        time.sleep(rng.uniform(0.0, 8.0))
    else:
        wait_until(lambda: metrics.is_file() and metrics.stat().st_mtime > begun and num_lines(metrics) > 0, process)
        time.sleep(rng.uniform(0.0, 0.5))
    if moment == "save":
        _wait_for_a_save(run_dir, process)
        time.sleep(rng.uniform(0.0, 0.03))
    _kill(process, run_dir, victims, rng)
    half_written = bool(list((run_dir / "checkpoints").glob(".step-*.tmp")))
    return Kill(zero_stage, moment, victims, num_lines(metrics), half_written)


def _wait_for_a_save(run_dir: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        if next((run_dir / "checkpoints").glob(".step-*.tmp"), None):
            return


def _kill(process: "subprocess.Popen[str]", run_dir: Path, victims: Victims, rng: random.Random) -> None:
    workers = [pid for pid in workers_of(run_dir) if pid != process.pid]
    if victims == "one rank" and workers:
        doomed = [rng.choice(workers)]
    else:
        doomed = [process.pid, *(workers if victims == "all ranks and the launcher" else [])]
    for pid in doomed:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it had come to its end
    process.communicate(timeout=120)
    deadline = time.monotonic() + 60
    while workers_of(run_dir):
        if time.monotonic() > deadline:
            raise AssertionError("a rank outlived the others")
        time.sleep(0.05)


def _digests(run_dir: Path) -> object:
    return json.loads((run_dir / "checkpoints" / f"step-{STEPS:08d}" / "manifest.json").read_text())["content_digests"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=13, help="at each stage")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    outcomes = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(["encode", "quickstart-encode", *encode_settings(draw_images(folder / "images"), folder / "shards")])
        for zero_stage in range(4):
            outcomes.append(
                drill(
                    folder / "shards",
                    folder,
                    zero_stage=zero_stage,
                    kills=options.kills,
                    seed=options.seed,
                    tell=lambda kill: print(json.dumps(asdict(kill)), flush=True),
                )
            )
            print(
                json.dumps({"drill": "train", "ranks": RANKS, "seed": options.seed} | asdict(outcomes[-1])), flush=True
            )
    sys.exit(not all(outcome.same_losses and outcome.same_state for outcome in outcomes))


if __name__ == "__main__":
    main()
