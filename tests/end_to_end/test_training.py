"""Training as a user runs it: real processes, killed and started again."""

import json
import signal
from pathlib import Path

import pytest
import torch

from dit_scale.checkpoint import open_whole
from tests.disks import small_disk
from tests.end_to_end.runs import (
    STEPS,
    keys_of_steps,
    kill,
    lines,
    losses,
    num_lines,
    settings,
    start,
    wait_for_line,
    wait_until,
)
from tests.launch import run


def test_a_run_leaves_what_it_promises(uninterrupted: Path) -> None:
    entry = lines(uninterrupted / "metrics.jsonl")[-1]
    assert {
        "step",
        "time",
        "images_seen",
        "loss",
        "grad_norm",
        "learning_rate",
        "step_seconds",
        "cpu_seconds",
        "images_per_second",
        "mfu",
        "data_seconds",
        "compute_seconds",
        "save_seconds",
        "slowest_rank",
    } == set(entry)
    times = lines(uninterrupted / "ranks.jsonl")
    assert [line["step"] for line in times] == list(range(1, STEPS + 1))
    for kind in ("data", "compute", "save", "forward"):
        assert [len(line[f"{kind}_seconds"]) for line in times] == [2] * STEPS
    assert [all(line["save_seconds"]) for line in times] == [step in (5, 9) for step in range(1, STEPS + 1)]
    assert (entry["step"], entry["images_seen"], entry["mfu"]) == (STEPS, STEPS * 8, None)
    assert (uninterrupted / "checkpoints" / "latest").read_text().strip() == "step-00000012"
    config = (uninterrupted / "config.yaml").read_text()
    assert "# torch " in config
    assert "global_batch_size: 8" in config


def test_every_epoch_holds_every_record_once(uninterrupted: Path) -> None:
    keys = [key for step in keys_of_steps(uninterrupted, 2) for key in step]
    assert len(keys) == STEPS * 8
    assert len(set(keys[:45])) == len(set(keys[45:90])) == 45  # 45 records; batches straddle the epochs
    assert keys[:45] != keys[45:90]


def test_compiled_blocks_go_on_to_the_last_bit(shards: Path, tmp_path: Path) -> None:
    """Compiled anew in another process, in bf16, with activations recomputed by budget, under ZeRO 3."""
    options = ["engine.compile=true", "engine.precision=bf16", "engine.activation_budget=0.5", "engine.zero_stage=3"]
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    run(settings(shards, whole, *options), ranks=2)
    run(settings(shards, parted, *options, "train.steps=4"), ranks=2)
    run(settings(shards, parted, *options), ranks=2)
    assert losses(parted) == losses(whole)
    ends = [open_whole(run_dir).whole("master") for run_dir in (whole, parted)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_a_killed_run_goes_on_to_the_last_bit(shards: Path, uninterrupted: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    # Saved before the next step: behind it, a kill may well come before the first save is whole.
    arguments = settings(shards, run_dir, "engine.zero_stage=2", "checkpoint.in_background=false")
    process = start(arguments, ranks=2)
    wait_until(lambda: num_lines(run_dir / "metrics.jsonl") >= 6, process)
    kill(process, run_dir)
    result = run(arguments, ranks=2)
    assert "going on from step-" in result.stdout
    assert losses(run_dir) == losses(uninterrupted)
    assert keys_of_steps(run_dir, 2) == keys_of_steps(uninterrupted, 2)
    assert [line["step"] for line in lines(run_dir / "ranks.jsonl")] == list(range(1, STEPS + 1))


def test_a_run_goes_on_with_other_ranks_and_other_stages(shards: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """2 ranks, then 1, 4 and 2 again; ZeRO 1, then 3, 2 and 0; other micro batches. The EMA's decay is 0.9."""
    run_dir = tmp_path / "run"
    keys: list[list[str]] = []
    for steps, ranks, stage, micro_batch in ((3, 2, 1, 4), (6, 1, 3, 3), (9, 4, 2, 1), (STEPS, 2, 0, 2)):
        overrides = [f"train.steps={steps}", f"engine.zero_stage={stage}"]
        run(settings(shards, run_dir, *overrides, f"train.micro_batch_size_per_gpu={micro_batch}"), ranks)
        by_rank = [lines(run_dir / f"keys-rank{rank}.jsonl") for rank in range(ranks)]
        for step in range(len(keys) + 1, steps + 1):
            keys.append([key for own in by_rank for entry in own if entry["step"] == step for key in entry["keys"]])
    assert keys == keys_of_steps(uninterrupted, 2)
    assert losses(run_dir) == pytest.approx(losses(uninterrupted), rel=1e-5)
    mine, theirs = (open_whole(path) for path in (run_dir, uninterrupted))
    assert mine.weight_kinds == theirs.weight_kinds == ["master", "ema", "ema-0.5", "ema-power-0.1"]
    for kind in mine.weight_kinds:
        found, expected = (
            torch.cat([value.flatten() for value in source.whole(kind).values()]) for source in (mine, theirs)
        )
        assert torch.linalg.vector_norm(found - expected) < 1e-5 * torch.linalg.vector_norm(expected)


def test_a_full_disk_stops_no_training(shards: Path, tmp_path: Path) -> None:
    """For a while neither checkpoints nor logs have room."""
    with small_disk(tmp_path / "disk", 8 << 20) as disk:
        run_dir = disk.folder / "run"
        latest, metrics = run_dir / "checkpoints" / "latest", run_dir / "metrics.jsonl"
        own = ["checkpoint.every_steps=5", "checkpoint.retry_seconds=0.5", "checkpoint.keep=1", "train.steps=100000"]
        process = start(settings(shards, run_dir, *own), ranks=1)
        wait_until(latest.is_file, process)
        ballast = disk.fill()
        said = wait_for_line(process, "IS NOT SAVED")
        stood, good = num_lines(metrics), latest.read_text()
        ballast.unlink()
        wait_until(lambda: latest.read_text() != good and num_lines(metrics) > stood + 5, process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
        assert process.returncode == 0
        assert "Training goes on" in said
        assert json.loads((run_dir / "stopped").read_text())["step"] == len(losses(run_dir))


def test_a_signal_saves_and_leaves_a_marker(shards: Path, uninterrupted: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = settings(shards, run_dir, "engine.zero_stage=2", "checkpoint.every_steps=1000")
    process = start([*arguments, "train.steps=100000"], ranks=1)
    wait_until(lambda: num_lines(run_dir / "metrics.jsonl") >= 3, process)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == 0
    marker = json.loads((run_dir / "stopped").read_text())
    assert marker["reason"] == "SIGUSR1"
    assert len(losses(run_dir)) == marker["step"]
    assert (run_dir / "checkpoints" / f"step-{marker['step']:08d}").is_dir()


def test_a_damaged_checkpoint_is_set_aside(shards: Path, uninterrupted: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run(settings(shards, run_dir, "engine.zero_stage=1", "train.steps=8"), ranks=1)
    file = run_dir / "checkpoints" / "step-00000008" / "rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    result = run(settings(shards, run_dir, "engine.zero_stage=1"), ranks=1)
    assert "step-00000008 is damaged" in result.stderr
    assert "going on from step-00000004" in result.stdout
    assert (run_dir / "checkpoints" / "damaged-step-00000008").is_dir()
    assert losses(run_dir) == pytest.approx(losses(uninterrupted), rel=1e-5)


def test_old_checkpoints_go_and_the_newest_stay(shards: Path, tmp_path: Path) -> None:
    run(settings(shards, tmp_path / "run", "checkpoint.every_steps=3", "checkpoint.keep=2"), ranks=1)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["latest", "step-00000009", "step-00000012"]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.depth=3", "model.depth is 3 but the run began with 2"),
        ("seed=1", "seed is 1 but the run began with 0"),
        ("train.global_batch_size=16", "train.global_batch_size is 16 but the run began with 8"),
        ("diffusion.name=gaussian", "diffusion.name is 'gaussian' but the run began with 'flow'"),
        ("train.steps=4", "train.steps=4 is less than the 12 steps"),
    ],
)
def test_what_is_fixed_for_a_run_is_refused(shards: Path, uninterrupted: Path, override: str, sentence: str) -> None:
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    result = run(settings(shards, uninterrupted, override), check=False)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before


def test_two_writers_of_one_run_folder_are_refused(shards: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    first = start(settings(shards, run_dir, "train.steps=100000"), ranks=1)
    wait_until(lambda: num_lines(run_dir / "metrics.jsonl") >= 1, first)
    second = run(settings(shards, run_dir), check=False)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=60) == 0
    assert second.returncode == 2
    assert f"is being written by process {first.pid}" in second.stderr


def test_fine_tuning_starts_from_a_runs_weights(shards: Path, uninterrupted: Path, tmp_path: Path) -> None:
    fresh = run(settings(shards, tmp_path / "fresh", "train.steps=1"))
    tuned = run(settings(shards, tmp_path / "tuned", "train.steps=1", f"init_from={uninterrupted}"))
    assert fresh.returncode == tuned.returncode == 0
    assert losses(tmp_path / "tuned")[0] < losses(tmp_path / "fresh")[0]


def test_wandb_offline_and_a_preview_grid(shards: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run(
        settings(shards, run_dir, "train.steps=2", "preview.every_steps=2", "preview.cfg_scale=2", "wandb.mode=offline")
    )
    assert list((run_dir / "wandb").glob("offline-run-*/run-*.wandb"))
    assert (run_dir / "samples" / "step-00000002.png").stat().st_size > 1000
