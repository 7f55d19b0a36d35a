"""Train on 1, 2 and 4 ranks, killed and resumed at random, and compare the order: `python -m tests.drills.order`."""

import argparse
import json
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.end_to_end.conftest import draw_images, encode_settings
from tests.end_to_end.runs import keys_of_steps, kill, lines, num_lines, settings, start, wait_until
from tests.launch import run

WORLDS = ((1, 8), (2, 2), (4, 1))
"""Ranks, and the most images that each puts through the model at once: 1, 2 and 2 micro steps."""

RECORDS = 43
"""A prime number, so that batches straddle epochs at every place."""


@dataclass(frozen=True)
class Run:
    """What one run consumed, and its first step."""

    keys: list[list[str]]
    first_loss: float
    first_grad_norm: float


def drill(
    shards: Path, folder: Path, *, kills: int, steps: int, seed: int, worlds: tuple[tuple[int, int], ...] = WORLDS
) -> list[Run]:
    """Train once for each world, killed ``kills`` times at random; return what each consumed."""
    rng = random.Random(seed)
    runs = []
    for ranks, micro_batch in worlds:
        run_dir = folder / f"ranks-{ranks}"
        arguments = [
            *settings(shards, run_dir, "engine.zero_stage=2"),
            f"train.micro_batch_size_per_gpu={micro_batch}",
            f"train.steps={steps}",
        ]
        for _ in range(kills):
            _start_and_kill(arguments, ranks, run_dir, rng.uniform(0.1, 0.6), steps)
        run(arguments, ranks)
        first = lines(run_dir / "metrics.jsonl")[0]
        runs.append(Run(keys_of_steps(run_dir, ranks), first["loss"], first["grad_norm"]))
    return runs


def _start_and_kill(arguments: list[object], ranks: int, run_dir: Path, part: float, steps: int) -> None:
    """Kill a run once it has done a part of the steps that were left."""
    metrics = run_dir / "metrics.jsonl"
    done = num_lines(metrics)
    until = done + max(1, round(part * (steps - done)))
    process = start(arguments, ranks)
    wait_until(lambda: num_lines(metrics) >= until, process)
    kill(process, run_dir)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=3, help="of each run")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = draw_images(folder / "images")
        for path in sorted(images.rglob("*.*"))[RECORDS:]:
            path.unlink()
        run(["encode", "quickstart-encode", *encode_settings(images, folder / "shards")])
        runs = drill(folder / "shards", folder, kills=options.kills, steps=options.steps, seed=options.seed)
    stream = [key for step in runs[0].keys for key in step]
    epochs = [stream[start : start + RECORDS] for start in range(0, len(stream) - RECORDS + 1, RECORDS)]
    same = all(other.keys == runs[0].keys for other in runs)
    figures = {
        "drill": "order",
        "ranks": [ranks for ranks, _ in WORLDS],
        "kills": options.kills * len(WORLDS),
        "steps": options.steps,
        "seed": options.seed,
        "same_keys": same,
        "records": RECORDS,
        "epochs": len(epochs),
        "epochs_that_are_permutations": sum(len(set(epoch)) == RECORDS for epoch in epochs),
        "first_loss": [entry.first_loss for entry in runs],
        "first_grad_norm": [entry.first_grad_norm for entry in runs],
    }
    print(json.dumps(figures))
    sys.exit(not (same and figures["epochs"] == figures["epochs_that_are_permutations"]))


if __name__ == "__main__":
    main()
