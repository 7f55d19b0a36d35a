"""Times of ranks: each fills its own places, the sum holds them all."""

import pytest
from torch import nn, ones

from dit_scale.distributed.runtime import World
from dit_scale.supervision.phases import Phases
from dit_scale.supervision.stragglers import ForwardTime, RankTimes


class _Set(ForwardTime):
    """Forward passes of a given length."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def take(self) -> float:
        return self.seconds


def test_the_sum_over_ranks_holds_the_longest_times_and_the_slowest_rank() -> None:
    forward = (1.0, 3.0, 2.0)
    ranks = [RankTimes(World(rank, 3), _Set(seconds), every_steps=2) for rank, seconds in enumerate(forward)]
    data, save = (0.5, 0.25, 4.0), (0.0, 8.0, 0.0)
    nothing = Phases().lap()
    spent = [nothing | {"data": data[rank], "compute": 5.0, "save": save[rank]} for rank in range(3)]
    total = sum(times.own(seconds) for times, seconds in zip(ranks, spent, strict=True)).tolist()  # type: ignore
    assert ranks[0].metrics(total) == {
        "data_seconds": 4.0,
        "compute_seconds": 5.0,
        "save_seconds": 8.0,
        "slowest_rank": 2,
    }
    assert ranks[0].line(1) is None
    ranks[0].metrics([3.0 * seconds for seconds in total])
    line = ranks[0].line(2)
    assert line is not None
    assert line["data_seconds"] == pytest.approx([1.0, 0.5, 8.0])
    assert line["forward_seconds"] == pytest.approx([2.0, 6.0, 4.0])
    ranks[0].metrics(total)
    ranks[0].metrics(total)
    assert ranks[0].line(4) == {"step": 4} | {
        f"{kind}_seconds": pytest.approx(times)
        for kind, times in (("data", data), ("compute", [5.0] * 3), ("save", save), ("forward", forward))
    }


def test_forward_passes_in_training_are_timed_and_others_not() -> None:
    module = nn.Linear(64, 64)
    forward = ForwardTime(module)
    module.eval()
    module(ones(8, 64))
    assert forward.take() == 0.0
    module.train()
    module(ones(8, 64))
    module(ones(8, 64))
    assert forward.take() > 0.0
    assert forward.take() == 0.0
