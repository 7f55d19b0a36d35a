"""What is told on the device is what the host would have reckoned, to the last bit."""

import math
import random
from collections import deque
from statistics import median

import pytest
import torch

from dit_scale.checkpoint.post_hoc import decay_at, gamma_of
from dit_scale.training import ema
from dit_scale.training.ema import Moves
from dit_scale.training.spikes import FEWEST_NORMS, NUM_NORMS, SpikeLimit
from dit_scale.zero.update_guard import Verdict


def verdict(norm: float, is_discarded: bool) -> Verdict:
    return Verdict(torch.tensor(norm), torch.tensor(float(is_discarded)))


@pytest.mark.parametrize("kept", [0, 1, NUM_NORMS, NUM_NORMS + 7])
def test_the_limit_is_a_factor_times_the_median_of_the_latest_norms(kept: int) -> None:
    rng = random.Random(kept)
    norms = deque([torch.tensor(rng.lognormvariate(0.0, 1.0)).item() for _ in range(kept)], maxlen=NUM_NORMS)
    spikes = SpikeLimit(1.7, list(norms), "cpu")
    for _ in range(2 * NUM_NORMS + 31):
        expected = 1.7 * median(norms) if len(norms) >= FEWEST_NORMS else math.inf
        assert float(spikes.limit()) == expected
        is_discarded = rng.random() < 0.2
        norm = math.nan if is_discarded else torch.tensor(rng.lognormvariate(0.0, 1.0)).item()
        spikes.note(verdict(norm, is_discarded))
        if not is_discarded:
            norms.append(norm)
        assert spikes.norms() == list(norms)


def test_without_a_factor_there_is_no_limit_but_norms_are_kept() -> None:
    spikes = SpikeLimit(0.0, [1.0] * 30, "cpu")
    assert spikes.limit() == math.inf
    spikes.note(verdict(2.0, False))
    assert spikes.norms() == [1.0] * 30 + [2.0]


def test_averages_move_by_the_number_of_the_update_that_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over several tables, each made before it is known which updates happened."""
    monkeypatch.setattr(ema, "_UPDATES", 16)
    monkeypatch.setattr(ema, "_ASKED_BEFORE", 5)
    gamma, rng = gamma_of(0.1), random.Random(0)
    moves = Moves([lambda _: 0.999, lambda update: decay_at(update, gamma)], 3, torch.device("cpu"))
    num_updates = 3
    for _ in range(400):
        is_discarded = rng.random() < 0.3
        constant, power = moves.next(torch.tensor(float(is_discarded)))
        if is_discarded:
            assert (constant.item(), power.item()) == (0.0, 0.0)
            continue
        num_updates += 1
        assert constant.item() == torch.tensor(1.0 - 0.999).item()
        assert power.item() == torch.tensor(1.0 - decay_at(num_updates, gamma)).item()
    assert moves.num_updates == num_updates
