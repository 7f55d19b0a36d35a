"""The learning rate over a run."""

import pytest

from dit_scale.config import TrainSection
from dit_scale.optim import learning_rate_at


def test_warm_up_then_constant_or_cosine() -> None:
    train = TrainSection(steps=110, learning_rate=1.0, warmup_steps=10, rate_schedule="cosine", final_learning_rate=0.1)
    assert [learning_rate_at(step, train) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert learning_rate_at(60, train) == pytest.approx(0.55)
    assert learning_rate_at(110, train) == pytest.approx(0.1)
    assert learning_rate_at(10**6, TrainSection(learning_rate=1e-4)) == 1e-4
