"""The batch scripts under a real Slurm: two nodes, one task each, against the same work without Slurm."""

import json
import sys
from pathlib import Path

import pytest

from tests.end_to_end.conftest import TINY, encode_settings
from tests.launch import ROOT, run
from tests.slurm.cluster import Cluster, Job

STEPS = 200
ENVIRONMENT = {
    "DIT_SCALE_PYTHON": sys.executable,
    "PYTHONPATH": str(ROOT),
    "WANDB_MODE": "disabled",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
EXPORT = "--export=" + ",".join(f"{name}={value}" for name, value in ENVIRONMENT.items())
"""A list without ALL: the strictest form, in which srun passes on nothing of the batch script's by itself."""
SAMPLING = ["--num-samples", 6, "--num-sampling-steps", 4, "--cfg-scale", 2, "--batch-size", 2]


def submit(cluster: Cluster, script: str, folder: Path, *arguments: object) -> Job:
    """Submit ``slurm/script`` to two nodes; its log lies in ``folder``."""
    nodes = ("--nodes=2", "--ntasks-per-node=1", "--time=10")
    return cluster.submit(EXPORT, *nodes, f"slurm/{script}", *arguments, log=folder / f"{script}.log")


def settings(data: Path, run_dir: Path, steps: int = STEPS) -> list[object]:
    """Return what both `dit-scale train` and train.sbatch take; one thread, or sums differ in their last bits."""
    fixed = [f"run_dir={run_dir}", f"data.path={data}", f"train.steps={steps}", "checkpoint.every_steps=100000"]
    return ["quickstart", *TINY, *fixed, "engine.zero_stage=2", "engine.threads_per_rank=1"]


def losses(run_dir: Path) -> list[float]:
    """Return the loss of each step so far; a line still being written does not count."""
    path = run_dir / "metrics.jsonl"
    whole = [line for line in path.read_text().splitlines(True) if line.endswith("\n")] if path.is_file() else []
    entries = [json.loads(line) for line in whole]
    assert [entry["step"] for entry in entries] == list(range(1, len(entries) + 1))
    return [entry["loss"] for entry in entries]


def contents(folder: Path, *patterns: str) -> dict[str, bytes]:
    """Return the bytes of the files that match."""
    return {path.name: path.read_bytes() for pattern in patterns for path in sorted(folder.glob(pattern))}


def finish(job: Job) -> dict[str, str]:
    """Wait for a job that must succeed."""
    facts = job.wait()
    assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0"), str(job)
    return facts


@pytest.fixture(scope="module")
def shards(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of the images."""
    output = tmp_path_factory.mktemp("data") / "latents"
    run(["encode", "quickstart-encode", *encode_settings(images, output)])
    return output


@pytest.fixture(scope="module")
def uninterrupted(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of two ranks under torchrun."""
    run_dir = tmp_path_factory.mktemp("torchrun") / "run"
    run(["train", *settings(shards, run_dir)], ranks=2)
    return losses(run_dir)


@pytest.fixture(scope="module")
def trained(cluster: Cluster, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a job that nothing disturbed."""
    folder = tmp_path_factory.mktemp("trained")
    facts = finish(submit(cluster, "train.sbatch", folder, *settings(shards, folder / "run")))
    assert facts["Restarts"] == "0"
    return folder / "run"


def test_two_tasks_encode_the_same_shards_as_one_process(
    cluster: Cluster, images: Path, shards: Path, tmp_path: Path
) -> None:
    output = tmp_path / "latents"
    finish(submit(cluster, "encode.sbatch", tmp_path, "quickstart-encode", *encode_settings(images, output)))
    files = contents(shards, "shard-*")
    assert len(files) == 6
    assert contents(output, "shard-*") == files
    fingerprints = [json.loads((folder / "manifest.json").read_text())["fingerprint"] for folder in (shards, output)]
    assert fingerprints[0] == fingerprints[1]


def test_two_nodes_train_as_torchrun_does(trained: Path, uninterrupted: list[float]) -> None:
    assert len(uninterrupted) == STEPS
    assert losses(trained) == uninterrupted
    assert not (trained / "stopped").exists()


def test_a_stopped_job_is_requeued_and_goes_on_to_the_last_bit(
    cluster: Cluster, shards: Path, uninterrupted: list[float], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    job = submit(cluster, "train.sbatch", tmp_path, *settings(shards, run_dir))
    stop(job, run_dir, "USR1", restarts=1)  # as before the time limit
    stop(job, run_dir, "TERM", restarts=2)  # as by preemption
    assert finish(job)["Restarts"] == "2"
    assert job.output().count("stopped with everything saved") == 2
    assert losses(run_dir) == uninterrupted
    assert not (run_dir / "stopped").exists()


def stop(job: Job, run_dir: Path, signal: str, restarts: int) -> None:
    """Signal the batch shell once the run has gone on from where it stood, and wait until the job is requeued."""
    stood = len(losses(run_dir))
    beginning = f"going on from step-{stood:08d}" if stood else "step 1/"
    job.wait_until(lambda: beginning in job.output() and len(losses(run_dir)) >= stood + 3)
    job.signal(f"--signal={signal}", "--batch")
    job.wait_until(lambda: job.facts()["Restarts"] == str(restarts))
    assert json.loads((run_dir / "stopped").read_text()) == {"reason": "SIGUSR1", "step": len(losses(run_dir))}


def test_a_cancelled_job_is_saved_and_not_requeued(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = submit(cluster, "train.sbatch", tmp_path, *settings(shards, run_dir, steps=1_000_000))
    job.wait_until(lambda: len(losses(run_dir)) >= 3)
    job.signal()
    facts = job.wait()
    assert (facts["JobState"], facts["Restarts"]) == ("CANCELLED", "0"), str(job)
    job.wait_until(lambda: "exit status" in job.output())  # the batch shell outlives the state CANCELLED by a moment
    assert "not requeued: the job is being cancelled" in job.output()
    step = json.loads((run_dir / "stopped").read_text())["step"]
    assert (run_dir / "checkpoints" / f"step-{step:08d}").is_dir()


def test_a_failed_job_is_not_requeued(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    job = submit(cluster, "train.sbatch", tmp_path, *settings(shards, tmp_path / "run"), "train.stesp=3")
    facts = job.wait()
    assert (facts["JobState"], facts["Restarts"]) == ("FAILED", "0"), str(job)
    assert facts["ExitCode"] != "0:0"  # srun's is the highest of the tasks': 2, or 143 of the one it ended
    assert "unknown key 'train.stesp'" in job.output()


def test_train_without_a_run_folder_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, "train.sbatch", tmp_path, "quickstart")
    assert job.wait()["ExitCode"] == "2:0"
    assert "give run_dir=" in job.output()


def test_two_tasks_draw_the_same_images_as_one_process(cluster: Cluster, trained: Path, tmp_path: Path) -> None:
    finish(submit(cluster, "sample.sbatch", tmp_path, trained, *SAMPLING, "--out", tmp_path / "two"))
    run(["sample", trained, *SAMPLING, "--out", tmp_path / "one"])
    images = contents(tmp_path / "one" / "images", "*.png")
    assert len(images) == 6
    assert contents(tmp_path / "two" / "images", "*.png") == images
