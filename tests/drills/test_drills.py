"""The drills, short and with a fixed seed; `make drills` runs them at length."""

from pathlib import Path

import pytest

from tests.drills import encode, order, train
from tests.end_to_end.runs import STEPS, keys_of_steps, lines


def test_encoders_killed_at_random_end_with_the_same_manifest(tmp_path: Path) -> None:
    outcome = encode.drill(tmp_path, kills=3, images=400, seed=1)
    assert outcome.kills == 3
    assert outcome.same_manifest
    assert outcome.same_bytes
    assert outcome.left_over == 0


def test_the_order_is_one_on_other_ranks_and_when_killed(shards: Path, uninterrupted: Path, tmp_path: Path) -> None:
    (four,) = order.drill(shards, tmp_path, kills=1, steps=STEPS, seed=0, worlds=((4, 1),))
    first = lines(uninterrupted / "metrics.jsonl")[0]
    assert four.keys == keys_of_steps(uninterrupted, 2)
    assert four.first_loss == pytest.approx(first["loss"], rel=1e-6)
    assert four.first_grad_norm == pytest.approx(first["grad_norm"], rel=1e-6)


def test_a_run_killed_at_random_ends_as_one_that_was_not(shards: Path, tmp_path: Path) -> None:
    kills: list[train.Kill] = []
    outcome = train.drill(shards, tmp_path, zero_stage=3, kills=3, seed=5, tell=kills.append)
    assert len(kills) == 3
    assert outcome.same_losses
    assert outcome.same_state
