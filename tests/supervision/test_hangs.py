"""Who is to blame, and who only waits."""

from dataclasses import replace

import pytest

from dit_scale.config import WatchdogConfig
from dit_scale.supervision.hangs import Hang, Heartbeat, LastHeard, Limits, find_hang
from dit_scale.supervision.phases import Phase

LIMITS = Limits.of(WatchdogConfig(step_seconds=100.0, long_seconds=1000.0))
ENOUGH = 100.0 + LIMITS.beat_seconds


def sighting(
    rank: int, phase: Phase, changes: int, seconds: float, *, silent: float = 0.0, is_long: bool | None = None
) -> LastHeard:
    is_long = phase not in ("data", "compute") if is_long is None else is_long
    return LastHeard(
        Heartbeat(rank, f"node{rank // 2}", 70 + rank, phase, 7, is_long, changes, seconds, beat=3), silent
    )


def found(*seen: LastHeard, limits: Limits = LIMITS) -> Hang:
    hang = find_hang(seen, limits)
    assert hang is not None
    return hang


def test_a_silent_rank_is_named_whatever_else_waits() -> None:
    victims = [sighting(rank, "compute", 12, 300.0) for rank in (0, 2, 3)]
    hang = found(victims[0], sighting(1, "data", 11, 2.0, silent=101.0), *victims[1:])
    assert hang.record() == {
        "reason": "rank 1 (node0, process 71) gives no sign of life for 101 s, last seen in phase data of step 7",
        "step": 7,
        "rank": 1,
        "ranks": [1],
        "phase": "data",
        "host": "node0",
    }
    report = hang.report({1: ["loader.py:1 in read"]})
    assert "    loader.py:1 in read" in report
    assert "waiting, in phase compute of step 7: rank 0, 2-3" in report


def test_the_rank_that_is_behind_is_named_and_not_those_that_wait_longer() -> None:
    waiting = sighting(0, "compute", 12, 500.0)
    assert found(waiting, sighting(1, "data", 11, ENOUGH)).record()["rank"] == 1
    assert find_hang([waiting, sighting(1, "data", 11, 99.0)], LIMITS) is None


def test_ranks_that_wait_for_a_long_phase_of_another_are_patient() -> None:
    waiting = sighting(0, "compute", 12, 900.0)
    assert find_hang([waiting, sighting(1, "save", 11, 900.0)], LIMITS) is None
    assert find_hang([waiting, sighting(1, "compute", 11, 900.0, is_long=True)], LIMITS) is None  # compiles
    assert found(waiting, sighting(1, "save", 11, 1100.0)).record()["phase"] == "save"


def test_the_last_to_arrive_counts_where_all_wait_in_one_collective() -> None:
    early, late = sighting(0, "compute", 12, 300.0), sighting(1, "compute", 12, 10.0)
    assert find_hang([early, late], LIMITS) is None
    hang = found(early, sighting(1, "compute", 12, ENOUGH))
    assert (hang.record()["rank"], hang.record()["ranks"]) == (None, [0, 1])
    assert "none is behind" in hang.report({})


def test_a_rank_that_just_fell_silent_is_not_yet_judged_by_what_it_said_last() -> None:
    assert find_hang([sighting(0, "compute", 12, 95.0), sighting(1, "compute", 12, 0.5, silent=95.0)], LIMITS) is None


def test_who_has_left_is_waited_for_by_nobody() -> None:
    gone = sighting(1, "setup", 11, 0.0, silent=5000.0)
    gone = LastHeard(replace(gone.heartbeat, has_left=True), gone.silent_seconds)
    assert find_hang([sighting(0, "setup", 12, 5.0), gone], LIMITS) is None
    assert find_hang([gone], LIMITS) is None


@pytest.mark.parametrize(("limits", "hangs"), [((0.0, 0.0), 0), ((0.0, 1000.0), 1), ((100.0, 0.0), 2)])
def test_zero_is_never(limits: tuple[float, float], hangs: int) -> None:
    cases = [
        [sighting(0, "save", 11, 1e6)],
        [sighting(0, "data", 11, 1e6)],
        [sighting(0, "data", 11, 1.0, silent=1e6)],
    ]
    assert sum(find_hang(case, Limits(*limits)) is not None for case in cases) == hangs


def test_silence_while_setting_up_is_borne_for_a_minute() -> None:
    limits = Limits(step_seconds=4.0, long_seconds=3600.0)
    assert find_hang([sighting(0, "setup", 1, 1.0, silent=59.0)], limits) is None
    assert found(sighting(0, "setup", 1, 1.0, silent=61.0), limits=limits).reason == "no sign of life"


def test_a_pulse_reads_back() -> None:
    heartbeat = sighting(1, "preview", 5, 1.5).heartbeat
    assert Heartbeat.from_json(heartbeat.to_json()) == heartbeat
