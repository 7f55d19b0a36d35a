"""Encode, train, sample and evaluate by `dit-scale submit`, and all that a cluster does to a run on its way.

Two nodes with two ranks each. One training job sees its time limit come near, is preempted, and is requeued by an
administrator; then it ends with what an undisturbed run computes, to the last bit.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from dit_scale.supervision.history import Attempt, read_history
from tests.end_to_end.conftest import encode_settings
from tests.evaluation.small import pictures, write_folder
from tests.launch import run
from tests.slurm.cluster import Cluster, Job
from tests.slurm.jobs import ENDLESS, contents, finish, has_gone_on, losses, settings, write_config, write_site

pytestmark = pytest.mark.timeout(1200)  # the whole story is told before the first test
SAMPLING = ["--num-samples", 16, "--num-sampling-steps", 4, "--cfg-scale", 2, "--batch-size", 2]
_CHAIN = """\
name: tests
site: {folder}/site.sh
logs: {folder}/logs
paths: {{latents: {folder}/latents, run: {folder}/run}}
sbatch: --gpus-per-node=2 --time=10
encode:
  sbatch: --array=0-1 --nodes=1 --ntasks-per-node=1
  command: {encode}
train:
  sbatch: --nodes=2 --ntasks-per-node=2 --time=3 --signal=B:USR1@170
  command: {train}
sample:
  sbatch: --nodes=1 --ntasks-per-node=2
  command: ${{paths.run}} {sample} --out {folder}/samples
evaluate:
  sbatch: --nodes=1 --ntasks-per-node=1 --gpus-per-node=1
  command: {folder}/samples {folder}/reference --cache {folder}/references
"""
# The limit is 3 minutes, and Slurm says that it is near 170 s before it: some seconds after the start.


@dataclass(frozen=True)
class Story:
    """The chain after its end."""

    folder: Path
    steps: int
    jobs: dict[str, Job]
    status_while_running: dict[str, object]
    attempts: list[Attempt]


@pytest.fixture(scope="module")
def story(cluster: Cluster, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Submit the chain and disturb its training three times."""
    folder = tmp_path_factory.mktemp("chain")
    write_site(folder)
    commands = {
        "encode": " ".join(["quickstart-encode", *encode_settings(images, folder / "latents")]),
        "train": " ".join(settings(write_config(folder / "run.yaml", ENDLESS), folder / "latents", folder / "run")),
        "sample": " ".join(map(str, SAMPLING)),
    }
    write_folder(folder / "reference", pictures(range(20), size=32))
    (folder / "chain.yaml").write_text(_CHAIN.format(folder=folder, **commands))
    left_over = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}  # of a torchrun of before
    submitted = cluster.attempt(sys.executable, "-m", "dit_scale", "submit", folder / "chain.yaml", **left_over)
    assert submitted.returncode == 0, submitted.stderr
    jobs = _jobs(cluster, submitted.stdout, folder / "logs")
    try:
        steps, status = _disturb(cluster, jobs, folder)
    except BaseException:
        cluster.run("scancel", *(job.number for job in jobs.values()))  # it would train on beside all other tests
        raise
    return Story(folder, steps, jobs, status, read_history(folder / "run"))


def _disturb(cluster: Cluster, jobs: dict[str, Job], folder: Path) -> tuple[int, dict[str, object]]:
    """Return the steps in all, and what status said in between."""
    train, run_dir = jobs["train"], folder / "run"
    train.wait_until(lambda: train.facts()["Restarts"] == "1")  # the time limit
    cluster.run("scontrol", "update", f"JobId={train.number}", "TimeLimit=60")
    train.wait_until(lambda: has_gone_on(train, run_dir, restarts=1))
    status = run(["status", run_dir, "--json"]).stdout
    urgent = ("--partition=urgent", "--nodes=2", "--gpus-per-node=2", "--wrap=true")
    cluster.submit(*urgent, log=folder / "urgent.log")
    train.wait_until(lambda: train.facts()["Restarts"] == "2")
    train.wait_until(lambda: has_gone_on(train, run_dir, restarts=2))
    cluster.run("scontrol", "requeue", train.number)
    train.wait_until(lambda: (run_dir / "stopped").is_file())
    steps = json.loads((run_dir / "stopped").read_text())["step"] + 5  # as many, so that any machine's speed will do
    write_config(folder / "run.yaml", steps)
    finish(train)
    finish(jobs["sample"])
    finish(jobs["evaluate"])
    return steps, json.loads(status)


def _jobs(cluster: Cluster, printed: str, logs: Path) -> dict[str, Job]:
    """Read `NAME job NUMBER, …` lines."""
    words = [line.replace(",", " ").replace(";", " ").split() for line in printed.splitlines() if " job " in line]
    found = [(line[0], line[2]) for line in words if line[1] == "job"]
    return {name: Job(cluster, number, logs / f"tests-{name}-{number}.log") for name, number in found}


@pytest.fixture(scope="module")
def uninterrupted(story: Story, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training under torchrun, with nothing in its way."""
    run_dir = tmp_path_factory.mktemp("torchrun") / "run"
    run(["train", *settings(story.folder / "run.yaml", story.folder / "latents", run_dir)], ranks=4)
    return run_dir


def test_an_arrays_elements_encode_the_same_shards_as_one_process(story: Story, shards: Path) -> None:
    files = contents(shards, "shard-*")
    assert len(files) == 6
    assert contents(story.folder / "latents", "shard-*") == files
    number = story.jobs["encode"].number
    assert len(list((story.folder / "logs").glob(f"tests-encode-{number}_[01].log"))) == 2


def test_the_time_limit_saves_and_requeues(story: Story) -> None:
    first = story.attempts[0]
    assert first.start["step"] == 0
    assert first.cause in ("SIGUSR1", "time_limit")  # where loading took too long, the run has looked at the clock
    assert "USR1: asking the tasks to stop" in story.jobs["train"].output()
    assert f"requeue: stopped ({first.cause})" in story.jobs["train"].output()


def test_preemption_saves_and_requeues(story: Story) -> None:
    assert story.attempts[1].cause in ("SIGTERM", "SIGUSR1")  # Slurm tells the tasks, the batch script tells them too


def test_an_administrators_requeue_saves(story: Story) -> None:
    assert story.attempts[2].cause in ("SIGTERM", "SIGUSR1")


def test_each_attempt_goes_on_where_the_last_one_stopped(story: Story) -> None:
    ends = [attempt.end or {} for attempt in story.attempts]
    assert [end.get("saved") for end in ends] == [True] * 4
    assert [attempt.start["step"] for attempt in story.attempts[1:]] == [end["step"] for end in ends[:-1]]
    assert [attempt.start["restart"] for attempt in story.attempts] == [0, 1, 2, 3]
    assert (story.attempts[3].cause, ends[3]["step"]) == ("done", story.steps)
    assert story.jobs["train"].facts()["Restarts"] == "3"
    assert not (story.folder / "run" / "stopped").exists()


def test_the_result_is_the_uninterrupted_one_to_the_last_bit(story: Story, uninterrupted: Path) -> None:
    assert len(losses(uninterrupted)) == story.steps
    assert losses(story.folder / "run") == losses(uninterrupted)
    final = Path("checkpoints", f"step-{story.steps:08d}", "manifest.json")
    saved = [json.loads((run_dir / final).read_text()) for run_dir in (story.folder / "run", uninterrupted)]
    assert saved[0]["content_digests"] == saved[1]["content_digests"]


def test_status_says_where_the_run_is(story: Story) -> None:
    status = story.status_while_running
    assert (status["state"], status["job"], status["world_size"]) == ("running", story.jobs["train"].number, 4)
    assert str(status["holder"]).endswith("on node1")
    assert run(["status", story.folder / "run"]).stdout.count("done") >= 1


def test_the_site_launches_every_command(story: Story) -> None:
    launched = (story.folder / "launched.log").read_text()
    for command in ("encode", "train", "status", "sample", "evaluate"):
        assert f"-m dit_scale {command} " in launched


def test_the_tasks_know_when_their_time_is_up(story: Story) -> None:
    lines = (story.folder / "launched.log").read_text().splitlines()
    end = float(next(line.split()[0] for line in lines if "-m dit_scale train " in line))
    assert 0 < end - story.attempts[0].start["time"] <= 180  # --time=3


def test_sampling_waits_for_the_end_and_draws_the_same_images_as_one_process(story: Story, tmp_path: Path) -> None:
    assert story.jobs["sample"].facts()["StartTime"] >= story.jobs["train"].facts()["EndTime"]
    run(["sample", story.folder / "run", *SAMPLING, "--out", tmp_path])
    images = contents(tmp_path / "images", "*.png")
    assert len(images) == 16
    assert contents(story.folder / "samples" / "images", "*.png") == images


def test_evaluation_waits_for_the_images_and_measures_what_one_process_does(story: Story, tmp_path: Path) -> None:
    assert story.jobs["evaluate"].facts()["StartTime"] >= story.jobs["sample"].facts()["EndTime"]
    place = ["--cache", story.folder / "references", "--out", tmp_path / "evaluation.json"]
    run(["evaluate", story.folder / "samples", story.folder / "reference", *place])
    ours, theirs = (json.loads((at / "evaluation.json").read_text()) for at in (story.folder / "samples", tmp_path))
    assert ours["protocol"] == theirs["protocol"]
    assert ours["metrics"] == pytest.approx(theirs["metrics"])
    assert ours["protocol"]["samples"]["images"] == 16
