"""Whether gradients are reduced beside the backward pass: decided by what a sum over ranks takes."""

import logging

import pytest

from dit_scale.config import EngineConfig
from dit_scale.distributed.runtime import World
from dit_scale.zero import engine, overlap

RANKS = World(world_size=8, local_world_size=8)


@pytest.mark.parametrize(("share", "pays", "when"), [(1.1, True, "beside"), (0.9, False, "after")])
def test_it_overlaps_where_the_sum_takes_longer_than_the_wait(
    share: float, pays: bool, when: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(overlap, "reduction_seconds", lambda num_bytes, device: share * overlap.WAIT_SECONDS)
    monkeypatch.setattr(overlap.dist, "get_rank", lambda: 0)
    with caplog.at_level(logging.INFO, logger="dit_scale.zero.overlap"):
        assert overlap.overlap_pays(1000, "cuda:0") is pays
    assert f"gradients are reduced {when} the backward pass" in caplog.text


@pytest.mark.parametrize(
    ("settings", "world", "device", "overlaps", "measured_bytes"),
    [
        ({}, World(), "cuda:0", False, None),  # nothing is reduced
        ({}, RANKS, "cpu", False, None),
        ({"reduce_to_owners": False}, RANKS, "cuda:0", True, 2_000_000),
        ({"reduce_to_owners": True}, RANKS, "cuda:0", True, 1_000_000),
        ({"precision": "fp32", "zero_stage": 2, "reduce_to_owners": False}, RANKS, "cuda:0", True, 4_000_000),
        ({"overlap_reduction": False}, RANKS, "cuda:0", False, None),
        ({"overlap_reduction": True}, RANKS, "cuda:0", True, None),
        ({"zero_stage": 3}, RANKS, "cuda:0", True, None),
    ],
)
def test_it_is_measured_at_stages_1_and_2_alone(
    settings: dict[str, object],
    world: World,
    device: str,
    overlaps: bool,
    measured_bytes: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(engine, "overlap_pays", lambda num_bytes, device: asked.append(num_bytes) or True)
    config = EngineConfig(**settings)  # type: ignore[arg-type]
    assert engine._overlaps(config, world, 1_000_000, device) is overlaps
    assert asked == ([] if measured_bytes is None else [measured_bytes])
