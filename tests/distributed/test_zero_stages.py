"""Real two-rank DeepSpeed runs: every ZeRO stage trains alike, and any of them goes on from what another saved."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.launch import run


def worker(*arguments: object, ranks: int = 2) -> dict[str, Any]:
    result = run(list(arguments), ranks, module="tests.distributed.worker")
    return json.loads(next(line for line in result.stdout.splitlines() if line.startswith("{")))


@pytest.fixture(scope="module")
def stage_0(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("stage-0")
    return worker(0, "fp32", "save", folder), folder


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_each_stage_trains_alike_and_stage_0_goes_on_from_it(stage: int, stage_0: Any, tmp_path: Path) -> None:
    expected, folder = stage_0
    saved = worker(stage, "fp32", "save", tmp_path)  # compares the EMA with a full replica, to the bit
    assert saved["losses"] == pytest.approx(expected["losses"], rel=1e-6)
    assert saved["norms"] == pytest.approx(expected["norms"], rel=1e-5)
    assert saved["adam_step"] == 3
    onward = worker(stage, "fp32", "load", folder)  # another stage than the one that saved
    back = worker(0, "fp32", "load", tmp_path, ranks=1)  # and another number of ranks
    assert onward["adam_step"] == back["adam_step"] == 6
    assert onward["losses"] == pytest.approx(back["losses"], rel=1e-5)


@pytest.mark.parametrize("stage", [1, 2])
def test_one_rank_which_copies_nothing_into_buckets_takes_the_same_steps(
    stage: int, stage_0: Any, tmp_path: Path
) -> None:
    expected, _ = stage_0
    saved = worker(stage, "fp32", "save", tmp_path, ranks=1)
    assert saved["losses"] == pytest.approx(expected["losses"], rel=1e-6)
    assert saved["norms"] == pytest.approx(expected["norms"], rel=1e-5)


@pytest.mark.parametrize("stage", [1, 2])
def test_gradients_that_go_to_their_owners_alone_take_the_same_steps(stage: int, stage_0: Any, tmp_path: Path) -> None:
    saved = worker(stage, "fp32", "save", tmp_path, "to-owners")
    assert saved["losses"] == pytest.approx(stage_0[0]["losses"], rel=1e-6)
    assert saved["norms"] == pytest.approx(stage_0[0]["norms"], rel=1e-5)


def test_a_copy_of_the_parameters_in_each_node_changes_nothing(stage_0: Any) -> None:
    """Loaded weights are not those that the model began with, so copies of those would show."""
    _, folder = stage_0
    flat = worker(3, "fp32", "load", folder, ranks=4)
    hierarchical = worker(3, "fp32", "load", folder, "hierarchical", ranks=4)
    assert hierarchical == flat


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_follows_fp32(stage: int, stage_0: Any, tmp_path: Path) -> None:
    saved = worker(stage, "bf16", "save", tmp_path)
    assert saved["losses"] == pytest.approx(stage_0[0]["losses"], rel=2e-2)


@pytest.mark.parametrize("stage", [2, 3])
def test_an_offloaded_optimizer_takes_the_same_steps(stage: int, stage_0: Any, tmp_path: Path) -> None:
    saved = worker(stage, "fp32", "save", tmp_path, "offload")
    assert saved["losses"] == pytest.approx(stage_0[0]["losses"], rel=1e-6)


@pytest.fixture(scope="module")
def two_rates_at_stage_0(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return worker(0, "fp32", "save", tmp_path_factory.mktemp("two-rates"), "two-rates")


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_groups_are_trained_and_saved_alike_at_each_stage(
    stage: int, two_rates_at_stage_0: Any, tmp_path: Path
) -> None:
    """DeepSpeed keeps a flat tensor for each."""
    saved = worker(stage, "fp32", "save", tmp_path, "two-rates")
    assert saved["losses"] == pytest.approx(two_rates_at_stage_0["losses"], rel=1e-6)
    onward = worker(stage, "fp32", "load", tmp_path, "two-rates", ranks=1)
    back = worker(0, "fp32", "load", tmp_path, "two-rates")
    assert onward["adam_step"] == back["adam_step"] == 6
    assert onward["losses"] == pytest.approx(back["losses"], rel=1e-5)


@pytest.fixture(scope="module")
def muon_at_stage_0(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return worker(0, "fp32", "save", tmp_path_factory.mktemp("muon"), "muon", "twice", "clean")


@pytest.mark.parametrize(("stage", "ranks"), [(0, 1), (0, 2), (1, 2), (2, 2)])
def test_muon_resumes_to_the_bit_and_discarded_updates_leave_no_trace(
    stage: int, ranks: int, muon_at_stage_0: dict[str, Any], tmp_path: Path
) -> None:
    """The run in two parts sees bad batches, at its start and where it resumes; the one in a piece sees none."""
    whole = worker(stage, "fp32", "save", tmp_path / "whole", "muon", "twice", "clean", ranks=ranks)
    assert whole["losses"] == pytest.approx(muon_at_stage_0["losses"], rel=1e-4)
    worker(stage, "fp32", "save", tmp_path / "parts", "muon", ranks=ranks)
    resumed = worker(stage, "fp32", "load", tmp_path / "parts", "muon", ranks=ranks)
    assert resumed["digest"] == whole["digest"]
    assert resumed["losses"] == whole["losses"][3:]
    other_stage = {0: 0, 1: 2, 2: 1}[stage]
    elsewhere = worker(other_stage, "fp32", "load", tmp_path / "parts", "muon", ranks=3 - ranks)
    assert elsewhere["losses"] == pytest.approx(resumed["losses"], rel=1e-4)


def test_muon_in_bf16_updates_fp32_masters_and_resumes_to_the_bit(
    muon_at_stage_0: dict[str, Any], tmp_path: Path
) -> None:
    whole = worker(2, "bf16", "save", tmp_path / "whole", "muon", "twice", "clean")
    assert whole["losses"] == pytest.approx(muon_at_stage_0["losses"], rel=2e-2)
    worker(2, "bf16", "save", tmp_path / "parts", "muon")
    assert worker(2, "bf16", "load", tmp_path / "parts", "muon")["digest"] == whole["digest"]


def test_a_checkpoint_of_another_optimizer_is_refused(stage_0: Any, tmp_path: Path) -> None:
    _, folder = stage_0
    words = [0, "fp32", "load", folder, "muon"]
    result = run(words, module="tests.distributed.worker", check=False)  # type: ignore[arg-type]
    assert result.returncode != 0
    assert "is another optimizer's (exp_avg, exp_avg_sq, momentum_buffer differ); give the train.opt" in result.stderr
