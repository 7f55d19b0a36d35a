"""Ranks that freeze or wait for a read that never ends, and slow ones: noticed, named, and gone on from."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dit_scale.data.loader import LatentDataset
from tests.end_to_end.conftest import draw_images, encode_settings
from tests.end_to_end.runs import lines, losses, num_lines, settings, start, wait_until, workers_of
from tests.launch import ROOT, command, environment, run

LIMIT_SECONDS = 6
WATCHED = [f"watchdog.step_seconds={LIMIT_SECONDS}", "engine.zero_stage=2"]
LONG = ["train.steps=150", "checkpoint.every_steps=10"]


def process_of_rank(run_dir: Path, rank: int) -> int:
    """Return the process of a rank that torchrun started."""
    for pid in workers_of(run_dir):
        if f"\0RANK={rank}\0".encode() in b"\0" + Path(f"/proc/{pid}/environ").read_bytes():
            return pid
    raise AssertionError(f"rank {rank} is not there")


def end_of(process: subprocess.Popen[str], run_dir: Path, what: str) -> tuple[str, dict[str, Any]]:
    """Wait for a run that must notice its hang by itself; return what it printed and what `hung` says."""
    began = time.monotonic()
    output, _ = process.communicate(timeout=120)
    print(f"{what}: ended {time.monotonic() - began:.1f} s after it, with a limit of {LIMIT_SECONDS} s")
    print(output[output.find("HANG") - 200 :])
    assert process.returncode != 0
    assert output.count("HANG:") == 1, output
    assert workers_of(run_dir) == []
    return output, json.loads((run_dir / "hung").read_text())


def freeze(process: subprocess.Popen[str], run_dir: Path, rank: int) -> int:
    """Stop a rank in its steps; return its process."""
    wait_until(lambda: num_lines(run_dir / "metrics.jsonl") >= 13, process)
    time.sleep(2 * LIMIT_SECONDS / 10)  # in which it gives a sign of life there
    pid = process_of_rank(run_dir, rank)
    os.kill(pid, signal.SIGSTOP)
    return pid


def test_a_frozen_rank_ends_the_run_which_then_goes_on(shards: Path, tmp_path: Path) -> None:
    """Rank 0 in one run and rank 1 in another at the same time, since torchrun takes 30 s to kill a frozen process."""
    run_dirs = [tmp_path / "frozen-0", tmp_path / "frozen-1"]
    runs = [settings(shards, run_dir, *LONG, *WATCHED) for run_dir in run_dirs]
    processes = [start(arguments, ranks=2) for arguments in runs]
    frozen = [freeze(process, run_dirs[rank], rank) for rank, process in enumerate(processes)]
    for rank, (process, run_dir, pid) in enumerate(zip(processes, run_dirs, frozen, strict=True)):
        output, hung = end_of(process, run_dir, f"SIGSTOP of rank {rank}")
        assert re.search(rf"HANG: rank {rank} \(\S+, process {pid}\) gives no sign of life", output)
        assert f"phase {hung['phase']} of step {hung['step']}" in output
        reported, _, dumps = output.partition(" waiting, in phase ")
        assert re.search(r"stack last reported by rank(.*\n)+.*dit_scale/training/loop\.py:\d+ in Loop", reported)
        assert re.search(rf"rank {1 - rank} \(\S+\), all threads:\n(.*\n)+.*torch/distributed/distributed_c10d", dumps)
        assert (hung["rank"], hung["ranks"]) == (rank, [rank])
        assert hung["step"] >= 13
    run(settings(shards, tmp_path / "undisturbed", *LONG, *WATCHED), ranks=2)
    for arguments, run_dir in zip(runs, run_dirs, strict=True):
        result = run(arguments, ranks=2)
        assert "the last attempt hung: rank" in result.stderr
        assert "going on from step-" in result.stdout
        assert not (run_dir / "hung").exists()
        assert losses(run_dir) == losses(tmp_path / "undisturbed")


def test_where_rank_zero_holds_the_store_it_is_named_when_that_gives_no_answer(shards: Path, tmp_path: Path) -> None:
    """As under srun, where no launcher's process has the store."""
    run_dir = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        common["MASTER_PORT"] = str(free.getsockname()[1])
    words = command(settings(shards, run_dir, "train.steps=100000", "checkpoint.every_steps=100000", *WATCHED))
    with (tmp_path / "log").open("w") as log:
        ranks = [
            subprocess.Popen(words, env=environment() | common | names, cwd=ROOT, stdout=log, stderr=log)
            for names in ({"RANK": "0", "LOCAL_RANK": "0"}, {"RANK": "1", "LOCAL_RANK": "1"})
        ]
    wait_until(lambda: num_lines(run_dir / "metrics.jsonl") >= 20, ranks[1])  # type: ignore[arg-type]
    ranks[0].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    status = ranks[1].wait(timeout=60)
    print(f"rank 1 ended {time.monotonic() - began:.1f} s after SIGSTOP of rank 0, which holds the store")
    ranks[0].kill()
    ranks[0].wait()
    output = (tmp_path / "log").read_text()
    assert status == 4, output
    assert re.search(rf"HANG: rank 0 \(\S+, process {ranks[0].pid}\) gives no sign of life", output)
    assert re.search(r"stack last reported by rank 0(.*\n)+.*dit_scale/training/loop\.py:\d+ in Loop", output)
    assert "the store, with rank zero or with torchrun on its node, gives no answer" in output
    assert json.loads((run_dir / "hung").read_text())["rank"] == 0


def test_a_read_that_never_ends_is_named(tmp_path: Path) -> None:
    """A pipe that nobody writes to, in place of the one shard that rank 1 alone opens, late in the first epoch."""
    images = draw_images(tmp_path / "images")
    for path in list(images.glob("*/*")):
        for copy in range(4):
            shutil.copy(path, path.with_stem(f"{path.stem}-{copy}"))
    run(["encode", "quickstart-encode", *encode_settings(images, tmp_path / "latents"), "shard_records=1"])
    dataset = LatentDataset.open(tmp_path / "latents")
    last = len(dataset) // 8 * 8 - 1  # rank 1 has the second half of each eight
    record = int(dataset.records_at(dataset.order(0), np.array([last]))[0])
    run_dir = tmp_path / "run"
    overrides = ["seed=0", "data.prefetch_batches=1", "train.steps=1000", *WATCHED]
    process = start(settings(tmp_path / "latents", run_dir, *overrides), ranks=2)
    wait_until((run_dir / "config.yaml").is_file, process)
    shard = tmp_path / "latents" / f"shard-{record:06d}.tar"
    shard.unlink()
    os.mkfifo(shard)
    output, hung = end_of(process, run_dir, "a read that never ends")
    assert (hung["rank"], hung["phase"], hung["step"]) == (1, "data", last // 8 + 1)
    assert re.search(r"HANG: rank 1 .* makes no progress for \d+ s, in phase data", output)
    assert f"waiting, in phase compute of step {hung['step']}: rank 0" in output
    assert "in _open_shard" in output  # of all threads' stacks, the reader's


def test_the_readers_own_error_comes_first_where_its_patience_is_shorter(
    shards: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """And it is no hang."""
    data = shutil.copytree(shards, tmp_path / "latents")
    run_dir = shutil.copytree(uninterrupted, tmp_path / "run")
    overrides = ["train.steps=1000", "data.patience_seconds=1", "data.prefetch_batches=1", *WATCHED]
    process = start(settings(data, run_dir, *overrides), ranks=2)
    wait_until(lambda: process.stdout is not None and "going on" in process.stdout.readline(), process)
    for shard in data.glob("*.tar"):
        shard.unlink()
        os.mkfifo(shard)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "no batch within 1 s: reading the shards has stalled" in output
    assert "HANG" not in output
    assert not (run_dir / "hung").exists()


@contextmanager
def slowed(pid: int) -> Iterator[None]:
    """Stop a process for nine tenths of the time."""
    ended = threading.Event()

    def heartbeat() -> None:
        while not ended.is_set():
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.09)
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.01)  # several in each step, or single steps would tell little

    thread = threading.Thread(target=heartbeat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_slow_rank_is_told_from_those_that_wait_for_it(shards: Path, tmp_path: Path) -> None:
    """And short stops are no hang."""
    run_dir = tmp_path / "run"
    overrides = ["train.steps=100000", "checkpoint.every_steps=100000", "log.every_steps=8"]
    process = start(settings(shards, run_dir, *overrides, *WATCHED), ranks=2)
    wait_until(lambda: num_lines(run_dir / "ranks.jsonl") >= 1, process)
    with slowed(process_of_rank(run_dir, 1)):
        first = num_lines(run_dir / "metrics.jsonl") + 2  # what is read one step late is no more from before
        wait_until(lambda: num_lines(run_dir / "metrics.jsonl") >= first + 64, process)
        last = num_lines(run_dir / "metrics.jsonl")
    os.kill(process_of_rank(run_dir, 0), signal.SIGUSR1)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    metrics = lines(run_dir / "metrics.jsonl")[first:last]
    times = [line for line in lines(run_dir / "ranks.jsonl") if first + 8 <= line["step"] <= last]
    print(*times, sep="\n")
    print(f"rank 1 slowest in {sum(entry['slowest_rank'] for entry in metrics)} of {len(metrics)} steps")
    forward, compute = (np.mean([line[f"{kind}_seconds"] for line in times], axis=0) for kind in ("forward", "compute"))
    assert forward[1] > 1.5 * forward[0]  # single steps tell little where other work shares the cores
    assert compute[0] > 0.7 * compute[1]  # waiting counts, so this does not tell the ranks apart
