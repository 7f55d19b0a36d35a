"""What must not be requeued, what Slurm requeues, and what is run again by hand; two nodes, one task each."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dit_scale.supervision.history import last_save, read_history
from tests.end_to_end.conftest import draw_images, encode_settings
from tests.end_to_end.runs import workers_of
from tests.launch import run
from tests.slurm.cluster import NODES, Cluster, Job
from tests.slurm.jobs import ENDLESS, contents, finish, has_gone_on, losses, settings, submit, write_config, write_site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(autouse=True)
def _a_failure_disturbs_no_other_test(cluster: Cluster) -> Iterator[None]:
    yield
    for node in NODES:
        cluster.restore_power(node)
    cluster.run("scancel", "--user=root")


def endless(cluster: Cluster, site: Path, shards: Path, folder: Path, *overrides: str) -> Job:
    """Submit a training that ends only by what is done to it."""
    config = write_config(folder / "run.yaml", ENDLESS)
    return submit(cluster, site, "train.sbatch", folder, *settings(config, shards, folder / "run", *overrides))


def test_a_lost_node_costs_the_steps_since_the_last_save_and_scancel_ends_it_all(
    cluster: Cluster, site: Path, shards: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    job = endless(cluster, site, shards, tmp_path, "checkpoint.every_steps=5")
    job.wait_until(lambda: last_save(run_dir)[0] >= 5)
    cluster.cut_power("node2")
    job.wait_until(lambda: "a node does not answer" in job.output() or job.facts()["Restarts"] == "1")
    job.wait_until(lambda: job.facts()["Restarts"] == "1")  # by Slurm, after SlurmdTimeout
    cluster.restore_power("node2")
    step, _ = last_save(run_dir)
    job.wait_until(lambda: has_gone_on(job, run_dir, restarts=1))
    assert f"going on from step-{step:08d}" in job.output()
    first, second = read_history(run_dir)
    assert (first.end or {}).get("saved") in (None, False)
    assert (second.start["step"], second.start["restart"]) == (step, 1)

    job.signal()  # scancel
    facts = job.wait()
    assert (facts["JobState"], facts["Restarts"]) == ("CANCELLED", "1"), str(job)
    job.wait_until(lambda: "exit status" in job.output())  # the batch shell outlives the state CANCELLED by a moment
    assert "not requeued: the job is being cancelled" in job.output()
    end = read_history(run_dir)[-1].end or {}
    assert (end["saved"], end["step"]) == (True, last_save(run_dir)[0])


def test_losing_rank_zeros_node_and_the_batch_script_with_it_costs_no_more(
    cluster: Cluster, site: Path, shards: Path, tmp_path: Path
) -> None:
    """The first node runs the script, rank zero with the store, and whoever holds the run folder."""
    run_dir = tmp_path / "run"
    job = endless(cluster, site, shards, tmp_path, "checkpoint.every_steps=5")
    job.wait_until(lambda: last_save(run_dir)[0] >= 5)
    cluster.cut_power("node1")
    job.wait_until(lambda: job.facts()["Restarts"] == "1")
    cluster.restore_power("node1")
    step = max(int(path.name[5:]) for path in (run_dir / "checkpoints").glob("step-*"))  # perhaps not yet the latest
    job.wait_until(lambda: has_gone_on(job, run_dir, restarts=1))
    assert f"going on from step-{step:08d}" in job.output()
    job.signal()
    assert job.wait()["JobState"] == "CANCELLED"


def test_sampling_that_is_requeued_draws_what_is_missing(
    cluster: Cluster, site: Path, shards: Path, tmp_path: Path
) -> None:
    trained = tmp_path / "run"
    run(["train", *settings(write_config(tmp_path / "run.yaml", 1), shards, trained)])
    arguments = ["--num-samples", 96, "--num-sampling-steps", 20, "--batch-size", 4]
    job = submit(cluster, site, "sample.sbatch", tmp_path, trained, *arguments, "--out", tmp_path / "samples")
    done = tmp_path / "samples" / "images"
    job.wait_until(lambda: len(list(done.glob("*.png"))) >= 8)
    cluster.run("scontrol", "requeue", job.number)
    job.wait_until(lambda: job.facts()["Restarts"] == "1")
    before = {path: path.stat().st_mtime_ns for path in done.glob("*.png")}
    finish(job)
    assert 8 <= len(before) < 96
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(done.glob("*.png"))) == 96


def test_a_rank_that_hangs_is_requeued_and_one_that_is_killed_ends_the_job_for_good(
    cluster: Cluster, site: Path, shards: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    job = endless(cluster, site, shards, tmp_path, "checkpoint.every_steps=5", "watchdog.step_seconds=10")
    job.wait_until(lambda: last_save(run_dir)[0] >= 5)
    os.kill(rank_one_of(run_dir), signal.SIGSTOP)
    job.wait_until(lambda: job.facts()["Restarts"] == "1", seconds=240)
    assert "HANG: rank 1 (node2" in job.output()
    assert "requeue: hung at step" in job.output()

    job.wait_until(lambda: has_gone_on(job, run_dir, restarts=1))
    os.kill(rank_one_of(run_dir), signal.SIGKILL)
    facts = job.wait()
    assert (facts["JobState"], facts["Restarts"]) == ("FAILED", "1"), str(job)
    assert "not requeued: the run " in job.output()
    first, second = read_history(run_dir)
    assert (first.cause, (first.end or {})["rank"]) == ("hang", 1)
    assert second.start["step"] >= 5
    assert not (second.end or {}).get("saved")


def rank_one_of(run_dir: Path) -> int:
    """Return the process of rank one, which is that of node2."""
    found = []
    for number in workers_of(run_dir):
        if b"SLURM_PROCID=1\0" in Path(f"/proc/{number}/environ").read_bytes():
            found.append(number)
    assert len(found) == 1, found
    return found[0]


def test_a_stop_at_the_cap_is_not_requeued_and_lets_nobody_begin_after_it(
    cluster: Cluster, site: Path, shards: Path, tmp_path: Path
) -> None:
    capped = tmp_path / "site.sh"
    capped.write_text(site.read_text() + "export DIT_SCALE_MAX_RESTARTS=0\n")
    run_dir = tmp_path / "run"
    job = endless(cluster, capped, shards, tmp_path)
    job.wait_until(lambda: len(losses(run_dir)) >= 3)
    job.signal("--signal=USR1", "--batch")
    facts = job.wait()
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "75:0", "0"), str(job)
    assert "0 restarts are the limit" in job.output()
    assert (run_dir / "stopped").is_file()


def test_what_would_come_again_is_not_requeued(cluster: Cluster, site: Path, shards: Path, tmp_path: Path) -> None:
    job = endless(cluster, site, shards, tmp_path, "train.stesp=3")
    for name in ("nowhere", "diverging"):
        (tmp_path / name).mkdir()
    unstable = ("train.learning_rate=1e30", "train.warmup_steps=0", "train.on_bad_step=stop")
    diverging = endless(cluster, site, shards, tmp_path / "diverging", *unstable)
    nowhere = submit(cluster, site, "train.sbatch", tmp_path / "nowhere", "quickstart")
    facts = job.wait()
    assert (facts["JobState"], facts["Restarts"]) == ("FAILED", "0"), str(job)
    assert facts["ExitCode"] != "0:0"  # srun's is the highest of the tasks': 2, or 143 of the one it ended
    assert "unknown key 'train.stesp'" in job.output()
    assert nowhere.wait()["ExitCode"] == "2:0"
    assert "give run_dir=" in nowhere.output()
    facts = diverging.wait()
    assert (facts["JobState"], facts["Restarts"]) == ("FAILED", "0"), str(diverging)
    assert "the loss or the gradient is not finite" in diverging.output()
    assert [attempt.cause for attempt in read_history(tmp_path / "diverging" / "run")] == ["non_finite"]


def test_elements_of_an_array_that_failed_are_run_again(cluster: Cluster, site: Path, tmp_path: Path) -> None:
    images = draw_images(tmp_path / "images")
    (images / "squares" / "007.png").write_bytes(b"not an image")
    broken = tmp_path / "site.sh"  # element 1 meets a broken node
    broken.write_text(site.read_text() + f'[ "$SLURM_ARRAY_TASK_ID" != 1 ] || [ -e {tmp_path}/mended ] || exit 7\n')
    words = ["quickstart-encode", *encode_settings(images, tmp_path / "latents")]

    def encode(array: str, *more: str) -> list[Job]:
        options = (f"--array={array}", "--nodes=1", f"--output={tmp_path}/%A_%a.log")
        first = submit(cluster, broken, "encode.sbatch", tmp_path, *words, *more, options=options)
        return elements(first, tmp_path)

    failed = [job for job in encode("0-2") if job.wait()["JobState"] == "FAILED"]
    numbers = [job.number.partition("_")[2] for job in failed]
    assert "1" in numbers
    assert len(numbers) >= 2
    assert any("which makes 1 rejected images where max_rejected=0" in job.output() for job in failed)
    (tmp_path / "mended").touch()
    for job in encode(",".join(numbers), "max_rejected=1"):
        finish(job)
    run(["encode", words[0], *encode_settings(images, tmp_path / "alone"), "max_rejected=1"])
    files = contents(tmp_path / "alone", "shard-*")
    assert len(files) == 6
    assert contents(tmp_path / "latents", "shard-*") == files


def elements(array: Job, folder: Path) -> list[Job]:
    """Return the jobs of an array's elements."""
    lines = array.cluster.run("squeue", "-h", "-r", "-t", "all", "-j", array.number, "-o", "%i").split()
    return [Job(array.cluster, line, folder / f"{line}.log") for line in lines]


def test_submit_hands_over_a_whole_chain_or_nothing(cluster: Cluster, site: Path, shards: Path, tmp_path: Path) -> None:
    images = draw_images(tmp_path / "images", ("circles",))
    train = " ".join(settings(Path("quickstart"), shards, tmp_path / "run"))
    encode = " ".join(["quickstart-encode", *encode_settings(images, tmp_path / "latents"), "pca=0"])
    chain = [f"name=broken site={site} logs={tmp_path}/logs sbatch=--time=5", f"train.command={train}"]
    words = [*chain[0].split(" "), chain[1], f"sample.command={tmp_path}/run --out {tmp_path}/samples"]

    def hand_over(*overrides: str) -> tuple[int, str, str]:
        (tmp_path / "chain.yaml").write_text("{}\n")
        command = [sys.executable, "-m", "dit_scale", "submit", tmp_path / "chain.yaml", *words, *overrides]
        result = cluster.attempt(*command)
        return result.returncode, result.stdout, result.stderr

    assert hand_over(f"encode.command={encode}")[2].count("unknown key 'pca'") == 1
    status, _, said = hand_over(f"encode.command={encode.removesuffix(' pca=0')}", "sample.sbatch=--nodes=9")
    assert status == 1
    assert "Slurm would not take sample: " in said
    assert jobs_named("broken", cluster) == []

    unreadable = encode.removesuffix(" pca=0").replace(str(images), str(tmp_path / "nothing-here"))
    status, printed, said = hand_over(f"encode.command={unreadable}")
    assert status == 0, said
    assert printed.count(", after ") == 2
    states = {
        name: Job(cluster, number, tmp_path / "none").wait()["JobState"]
        for name, number in jobs_named("broken", cluster)
    }
    assert states == {"broken-encode": "FAILED", "broken-train": "CANCELLED", "broken-sample": "CANCELLED"}
    assert not (tmp_path / "run").exists()


def jobs_named(prefix: str, cluster: Cluster) -> list[tuple[str, str]]:
    """Return name and number of all jobs, ended ones too, whose name begins so."""
    lines = cluster.run("squeue", "-h", "-t", "all", "-o", "%j %i").splitlines()
    return [(line.split()[0], line.split()[1]) for line in lines if line.startswith(prefix)]
