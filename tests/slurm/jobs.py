"""What the tests hand to the batch scripts: a site's settings, small runs, and what is read back from them."""

import json
import sys
from pathlib import Path

from tests.end_to_end.runs import TINY
from tests.launch import ROOT
from tests.slurm.cluster import Cluster, Job

ENDLESS = 1_000_000
_LAUNCHER = """\
#!/usr/bin/env bash
# Stands for a container's launcher: says what it was called with, sets what an image would, becomes the command.
printf '%s %s\\n' "${{DIT_SCALE_END_TIME:-none}}" "$*" >>"{log}"
export CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 WANDB_MODE=disabled PYTHONPATH={root}
exec "$@"
"""
# CUDA_VISIBLE_DEVICES: Slurm sets it for each task by the fake GPUs that it hands out; on a machine with a real one,
# the tasks must not take that for theirs.
_SITE = """\
export DIT_SCALE_PYTHON={python} DIT_SCALE_LAUNCH={launcher} DIT_SCALE_NODE_SECONDS=10
export SBATCH_PARTITION=batch
"""


def write_site(folder: Path) -> Path:
    """Write a site's settings with a launcher before every command; ``launched.log`` beside them tells of its use."""
    launcher = folder / "launcher"
    launcher.write_text(_LAUNCHER.format(log=folder / "launched.log", root=ROOT))
    launcher.chmod(0o755)
    site = folder / "site.sh"
    site.write_text(_SITE.format(python=sys.executable, launcher=launcher))
    return site


def submit(
    cluster: Cluster, site: Path, script: str, folder: Path, *arguments: object, options: tuple[str, ...] = ()
) -> Job:
    """Submit ``slurm/script`` to two nodes, a task each; its log lies in ``folder``."""
    # A list without ALL: the strictest form, in which srun passes on nothing of the batch script's by itself.
    export = f"--export=DIT_SCALE_SITE={site}"
    size = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--time=10")
    return cluster.submit(export, *size, *options, f"slurm/{script}", *arguments, log=folder / f"{script}.log")


def write_config(path: Path, steps: int) -> Path:
    """Write the quickstart's recipe with another number of steps: what a run may change when it goes on."""
    text = (ROOT / "configs" / "quickstart.yaml").read_text()
    changed = text.replace("steps: 1800", f"steps: {steps}").replace("rate_schedule: cosine", "rate_schedule: constant")
    assert changed.count(f" steps: {steps}") == 1
    path.write_text(changed)
    return path


def settings(config: Path, data: Path, run_dir: Path, *overrides: str) -> list[str]:
    """Return what both `dit-scale train` and train.sbatch take; one thread, or sums differ in their last bits."""
    fixed = [f"run_dir={run_dir}", f"data.path={data}", "checkpoint.every_steps=100000"]
    return [str(config), *TINY, *fixed, "engine.zero_stage=2", "engine.threads_per_rank=1", *overrides]


def losses(run_dir: Path) -> list[float]:
    """Return the loss of each step so far; a line still being written does not count."""
    path = run_dir / "metrics.jsonl"
    whole = [line for line in path.read_text().splitlines(True) if line.endswith("\n")] if path.is_file() else []
    entries = [json.loads(line) for line in whole]
    assert [entry["step"] for entry in entries] == list(range(1, len(entries) + 1))
    return [entry["loss"] for entry in entries]


def has_gone_on(job: Job, run_dir: Path, restarts: int, steps: int = 3) -> bool:
    """Whether the job's attempt number ``restarts`` has made some steps of its own."""
    begun = f"restart {restarts}: begins"
    if begun not in job.output():
        return False
    return job.output().rpartition(begun)[2].count("\nstep ") >= steps and len(losses(run_dir)) >= steps


def contents(folder: Path, *patterns: str) -> dict[str, bytes]:
    """Return the bytes of the files that match."""
    return {path.name: path.read_bytes() for pattern in patterns for path in sorted(folder.glob(pattern))}


def finish(job: Job, seconds: float = 180.0) -> dict[str, str]:
    """Wait for a job that must succeed."""
    facts = job.wait(seconds)
    assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0"), str(job)
    return facts
