"""The gate: gradients are shortened as PyTorch shortens them, discarded ones leave no trace, and nobody waits."""

import json
from typing import Any

import pytest
import torch

from tests.launch import run


def steps_of(device: str, optimizer: str, *stages: int, within: float = 2e-4, ranks: int = 1) -> dict[str, Any]:
    """Return what was found of the steps at each stage, once they are what plain PyTorch takes."""
    result = run([device, optimizer, *stages], ranks, module="tests.distributed.gate_worker")
    found = json.loads(next(line for line in result.stdout.splitlines() if line.startswith("{")))
    for stage, steps in found.items():
        assert steps["difference"] == pytest.approx(0.0, abs=within), stage
        assert steps["updated"] == [True, True, False, True], stage
        assert steps["averages_differ"] == [], stage
    return found


def test_steps_behind_the_gate_are_plain_pytorchs_and_the_host_reads_nothing() -> None:
    found = steps_of("cpu", "adamw", 0, 1, 2, 3)
    assert [found[stage]["reads"] for stage in ("0", "1", "2")] == [0, 0, 0]  # DeepSpeed's ZeRO 3 reads by itself


def test_groups_with_rates_of_their_own_are_plain_pytorchs_at_every_stage() -> None:
    found = steps_of("cpu", "two-rates", 0, 1, 2, 3)
    assert [found[stage]["reads"] for stage in ("0", "1", "2")] == [0, 0, 0]


def test_an_optimizer_that_knows_no_verdict_is_held_to_it_and_the_host_reads_nothing() -> None:
    assert steps_of("cpu", "muon", 0, within=1e-6)["0"]["reads"] == 0


@pytest.mark.parametrize("ranks", [1, 2])
def test_matrices_that_ranks_hold_in_pieces_are_held_to_it_too(ranks: int) -> None:
    found = steps_of("cpu", "muon", 1, 2, within=1e-6, ranks=ranks)
    assert [steps["reads"] for steps in found.values()] == [0, 0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_on_a_gpu_waits_for_nothing() -> None:
    assert [found["reads"] for found in steps_of("cuda:0", "adamw", 1, 2).values()] == [0, 0]
