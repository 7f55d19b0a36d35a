"""A rank's phases: where it stands, and where its seconds went."""

import pytest

from dit_scale.supervision.phases import PHASES, Phases


def test_a_place_is_found_and_left_again() -> None:
    phases = Phases()
    assert (phases.place.phase, phases.place.step, phases.place.is_long) == ("setup", 0, True)
    with phases("data", step=7):
        assert (phases.place.phase, phases.place.step, phases.place.num_changes) == ("data", 7, 1)
    with pytest.raises(KeyError), phases("compute"):
        raise KeyError
    assert (phases.place.phase, phases.place.step, phases.place.num_changes) == ("setup", 7, 4)


def test_the_first_step_of_a_process_may_take_long_and_others_not() -> None:
    phases = Phases()
    seen = []
    for step in (100, 101):
        for phase in PHASES[1:]:
            with phases(phase, step=step if phase == "data" else None):
                seen.append((step, phase, phases.place.is_long))
    assert [(step, phase) for step, phase, is_long in seen if not is_long] == [(101, "data"), (101, "compute")]


def test_a_lap_shares_all_time_out_among_phases() -> None:
    now = [0.0]
    phases = Phases(clock=lambda: now[0])
    with phases("save"):
        now[0] += 3
        with phases("data"):
            now[0] += 5
        now[0] += 1
        first = phases.lap()
        now[0] += 2
    now[0] += 7
    second = phases.lap()
    assert {phase: seconds for phase, seconds in first.items() if seconds} == {"save": 4, "data": 5}
    assert {phase: seconds for phase, seconds in second.items() if seconds} == {"save": 2, "setup": 7}
