"""Kill encoders at random moments and begin again, until the manifest is there: `python -m tests.drills.encode`."""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.launch import ROOT, environment
from tests.preprocessing.images import draw_tree

WORKERS = 3


@dataclass(frozen=True)
class Outcome:
    """What a drill came to."""

    kills: int
    starts: int
    same_manifest: bool
    same_bytes: bool
    left_over: int
    """Temporary files that are still there."""


def drill(folder: Path, *, kills: int, images: int, seed: int) -> Outcome:
    """Encode with three workers, killing at least ``kills`` times, and compare with one undisturbed process."""
    rng = random.Random(seed)
    source = _many_images(folder / "images", images)
    _finish(source, folder / "undisturbed", workers=1)
    output, starts, killed = folder / "killed", 0, 0
    while killed < kills:
        starts += 1
        process = _start(source, output, WORKERS)
        done = _receipts(output)
        # From the first imports to far into the work.
        wait = rng.choice((rng.uniform(0.0, 6.0), None))
        _wait(process, wait, lambda done=done: _receipts(output) > done + rng.randrange(1, 40))
        if process.poll() is None:
            killed += 1
            _kill(process, rng)
        elif process.returncode == 0:
            _undo_some(output, rng)
        else:
            raise AssertionError(process.communicate()[1])
        process.communicate()
    _finish(source, output, WORKERS)
    return Outcome(
        killed,
        starts + 1,
        (output / "manifest.json").read_bytes() == (folder / "undisturbed" / "manifest.json").read_bytes(),
        _contents(output) == _contents(folder / "undisturbed"),
        len(list(output.rglob("*.tmp"))),
    )


def _many_images(root: Path, count: int) -> Path:
    """Make a tree of many names for few images."""
    few = sorted(draw_tree(root.with_name("few"), {"a": 20}).rglob("*.*"))
    for number in range(count):
        original = few[number % len(few)]
        link = root / f"class-{number % 7}" / f"{number:05d}{original.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(original.resolve())
    return root


def _start(source: Path, output: Path, workers: int) -> "subprocess.Popen[str]":
    settings = {
        "source.path": source,
        "output": output,
        "workers": workers,
        "autoencoder.name": "pca",
        "autoencoder.pca_fit_images": 64,
        "image_size": 32,
        "shard_records": 4,
        "batch_size": 4,
        "decode_workers": 0,
        "keep_crops": "true",
    }
    arguments = [f"{key}={value}" for key, value in settings.items()]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.preprocessing.run_encode", *arguments],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _finish(source: Path, output: Path, workers: int) -> None:
    process = _start(source, output, workers)
    _, errors = process.communicate(timeout=600)
    if process.returncode != 0:
        raise AssertionError(errors)


def _wait(process: "subprocess.Popen[str]", seconds: float | None, is_time: "object") -> None:
    """Wait for so many seconds, or until so many shards have been finished."""
    deadline = time.monotonic() + (60.0 if seconds is None else seconds)
    while process.poll() is None and time.monotonic() < deadline:
        if seconds is None and is_time():  # type: ignore[operator]
            return
        time.sleep(0.005)


def _kill(process: "subprocess.Popen[str]", rng: random.Random) -> None:
    """Kill the leader, one of its encoders, or all at once."""
    children = _children(process.pid)
    how = rng.choice(("leader", "encoder", "all"))
    if how == "encoder" and children:
        os.kill(rng.choice(children), signal.SIGKILL)
    elif how == "all":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait(timeout=60)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{child}/cmdline").is_file() and _is_alive(child) for child in children):
        if time.monotonic() > deadline:
            raise AssertionError("an encoder outlived its leader")
        time.sleep(0.01)


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _undo_some(output: Path, rng: random.Random) -> None:
    """Lose some shards of a finished encoding, so that there is work to be killed in."""
    (output / "manifest.json").unlink()
    for path in sorted([*output.glob("*.tar"), *output.glob("*.crops")]):
        if rng.random() < 0.3:
            path.unlink()


def _receipts(output: Path) -> int:
    return sum(1 for _ in output.glob("encoding/shard-*.json"))


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "encode.jsonl"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = drill(Path(folder), kills=options.kills, images=options.images, seed=options.seed)
    print(json.dumps({"drill": "encode", "workers": WORKERS, "seed": options.seed} | outcome.__dict__))
    sys.exit(not (outcome.same_manifest and outcome.same_bytes and outcome.left_over == 0))


if __name__ == "__main__":
    main()
