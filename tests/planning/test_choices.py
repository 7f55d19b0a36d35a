"""Running out of memory, for real, ends in one sentence that says what to change."""

import os
import resource
import subprocess
from pathlib import Path

import pytest
import torch

from dit_scale.config import Config, DiffusionConfig, TrainSection, load_config
from dit_scale.distributed.runtime import World
from dit_scale.errors import Failure
from dit_scale.latents import LatentSpec
from dit_scale.planning.choices import in_words, model_on_meta, setup_of, smaller_choices
from dit_scale.planning.cluster import GPUS, Cluster
from dit_scale.planning.search import _choices
from dit_scale.supervision.out_of_memory import out_of_memory_explained
from tests.data.shard_folder import write_folder
from tests.end_to_end.conftest import images, shards  # noqa: F401 (fixtures)
from tests.end_to_end.runs import TINY
from tests.launch import ROOT, command, environment

ADDRESS_SPACE_BYTES = 6 << 30


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("memory")
    write_folder(folder / "shards", [4])
    overrides = [f"data.path={folder / 'shards'}", f"run_dir={folder / 'run'}", "train.micro_batch_size_per_gpu=8"]
    return load_config(Config, "quickstart", [*TINY, *overrides])


def test_a_failed_allocation_is_told_with_figures(config: Config) -> None:
    with pytest.raises(Failure) as told, out_of_memory_explained(config, World(), "cpu"):
        torch.empty(1 << 56, dtype=torch.uint8)
    sentence = str(told.value)
    assert f"{(1 << 56) / 1e9:.2f} GB more was asked for where CPU (" in sentence
    assert "a micro batch of 8, ZeRO stage 2 on 1 rank and engine.checkpoint_every_blocks=0 need about" in sentence
    assert "give train.micro_batch_size_per_gpu=4 (" in sentence
    assert "engine.checkpoint_every_blocks=1 (" in sentence


def test_other_errors_pass(config: Config) -> None:
    with pytest.raises(RuntimeError, match="size of tensor") as raised, out_of_memory_explained(config, World(), "cpu"):
        torch.ones(2) + torch.ones(3)
    assert not isinstance(raised.value, Failure)


def test_choices_go_on_until_they_fit() -> None:
    train = TrainSection(global_batch_size=256, micro_batch_size_per_gpu=64)
    config = Config(run_dir="run", train=train)
    model = model_on_meta(config, LatentSpec(channels=4, size=32), 1000)
    setup = setup_of(config, model, 2, on_gpu=True)
    choices = {choice.setting: choice.estimate.peak for choice in smaller_choices(config, model, setup)}
    assert set(choices) == {
        *("train.micro_batch_size_per_gpu=32", "engine.zero_stage=2", "engine.checkpoint_every_blocks=1"),
        *("4 ranks", "engine.offload_optimizer=true"),
    }
    limit = choices["train.micro_batch_size_per_gpu=32"] - 1
    assert smaller_choices(config, model, setup, limit)[0].setting == "train.micro_batch_size_per_gpu=16"
    assert in_words(smaller_choices(config, model, setup, 1.0), 1.0).startswith("several of these together")


def test_no_choice_parts_images_that_are_compared() -> None:
    train = TrainSection(global_batch_size=256, micro_batch_size_per_gpu=64)
    config = Config(run_dir="run", train=train, diffusion=DiffusionConfig(name="flow", contrastive_weight=0.05))
    model = model_on_meta(config, LatentSpec(channels=4, size=32), 1000)
    setup = setup_of(config, model, 1, on_gpu=True)
    settings = [choice.setting for choice in smaller_choices(config, model, setup, limit_bytes=1.0)]
    assert "train.micro_batch_size_per_gpu=2" in settings
    assert "128 ranks" in settings
    sizes = {one.train.micro_batch_size_per_gpu for one in _choices(config, Cluster(GPUS["h100"], 2), False)}
    assert sizes == {2, 4, 8, 16, 32, 64, 128}


def test_training_that_runs_out_says_what_to_change(shards: Path, tmp_path: Path) -> None:  # noqa: F811
    """A real run in a limited address space, which a micro batch of 16,384 images does not fit into."""
    large = ["train.global_batch_size=16384", "train.micro_batch_size_per_gpu=16384", "model.hidden_size=256"]
    settings = [*TINY, f"data.path={shards}", f"run_dir={tmp_path / 'run'}", "engine.bucket_elements=1000000", *large]
    limit = (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES)
    result = subprocess.run(
        command(["train", "quickstart", *settings]),
        env=environment(),
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit),
    )
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    said = result.stderr.strip().splitlines()[-1]
    assert said.startswith("dit-scale train: out of memory: ")
    assert f"CPU ({len(os.sched_getaffinity(0))} cores) has 6.44 GB" in said
    assert "give train.micro_batch_size_per_gpu=" in said
