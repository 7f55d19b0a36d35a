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
