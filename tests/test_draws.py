"""Draws: functions of (seed, stream, position) and of nothing else, with the distributions they claim."""

import pytest
import torch

from dit_scale import draws
from dit_scale.draws import Stream

POSITIONS = torch.arange(20_000)


def test_a_draw_does_not_depend_on_the_batch_around_it() -> None:
    shuffled = POSITIONS[torch.randperm(len(POSITIONS))]
    whole = draws.uniform(7, Stream.TIME, POSITIONS)
    assert torch.equal(draws.uniform(7, Stream.TIME, shuffled), whole[shuffled])
    normals = draws.normal(7, Stream.NOISE, POSITIONS[:64], (4, 3, 3))
    for i in (0, 1, 63):
        assert torch.equal(draws.normal(7, Stream.NOISE, POSITIONS[i : i + 1], (4, 3, 3))[0], normals[i])


def test_no_draw_touches_the_global_generator() -> None:
    before = torch.get_rng_state()
    draws.normal(0, Stream.NOISE, POSITIONS[:10], (5,))
    draws.uniform(0, Stream.MIRROR, POSITIONS)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("first", [0, 10**9, 10**15])
def test_uniforms_are_uniform(first: int) -> None:
    values = draws.uniform(1, Stream.MIRROR, POSITIONS + first)
    assert values.dtype == torch.float64
    assert 0.0 <= values.min() < 0.001
    assert 0.999 < values.max() < 1.0
    counts = torch.histc(values, 20, 0.0, 1.0)
    assert ((counts - 1000).square() / 1000).sum() < 50.0  # chi square with 19 degrees: 43.8 at 0.1 %
    assert torch.corrcoef(torch.stack((values[:-1], values[1:])))[0, 1].abs() < 0.03


def test_normals_have_the_moments_of_normals() -> None:
    values = draws.normal(1, Stream.NOISE, POSITIONS, (5, 5)).double()
    assert values.mean().abs() < 0.01
    assert (values.var() - 1.0).abs() < 0.01
    assert (values**3).mean().abs() < 0.02
    assert ((values**4).mean() - 3.0).abs() < 0.05
    flat = values.flatten(1)
    assert (torch.corrcoef(flat.T) - torch.eye(25)).abs().max() < 0.04
    assert torch.isfinite(values).all()


def test_streams_seeds_and_chapters_are_independent() -> None:
    columns = [draws.uniform(seed, stream, POSITIONS) for seed in (0, 1, 2) for stream in Stream]
    assert (torch.corrcoef(torch.stack(columns)) - torch.eye(len(columns))).abs().max() < 0.04
    offsets = [draws.normal(0, Stream.STEP_NOISE, POSITIONS, (1,), counter_offset=c)[:, 0] for c in range(4)]
    assert (torch.corrcoef(torch.stack(offsets)) - torch.eye(4)).abs().max() < 0.04


def test_seeds_of_any_size_are_taken() -> None:
    draw = [draws.uniform(seed, Stream.TIME, POSITIONS[:100]) for seed in (0, 2**31, 2**63, 2**64 - 1)]
    for i, one in enumerate(draw):
        assert all(not torch.equal(one, other) for other in draw[:i])


def test_draws_stay_what_they_are() -> None:
    """A run that goes on with a newer version must see the same problem."""
    uniforms = draws.uniform(0, Stream.TIME, torch.arange(3))
    normals = draws.normal(0, Stream.NOISE, torch.arange(1), (3,))[0]
    assert uniforms.tolist() == pytest.approx(GOLDEN_UNIFORMS, abs=0)
    assert normals.tolist() == pytest.approx(GOLDEN_NORMALS, abs=1e-6)


GOLDEN_UNIFORMS = [0.6913571128656141, 0.14276790077146695, 0.7775575149002494]
GOLDEN_NORMALS = [-1.2207163572311401, -1.5372451543807983, 0.32461491227149963]


def test_draws_stay_what_they_were() -> None:
    """Other ones would give a run that is resumed another problem than the one it began with."""
    positions = torch.tensor([0, 1, 2**40])
    times = draws.uniform(3, Stream.TIME, positions)
    assert times.tolist() == [0.05928346534286899, 0.7052905055151795, 0.6243281274233214]
    noise = [[0.8561659455299377, 0.08731599152088165], [0.2734011113643646, 0.19902947545051575]]
    torch.testing.assert_close(draws.normal(3, Stream.NOISE, positions[:2], (2,)), torch.tensor(noise))
    later = [[-0.3215569853782654, 1.5022526979446411], [-0.6291123628616333, 0.12703543901443481]]
    torch.testing.assert_close(
        draws.normal(3, Stream.STEP_NOISE, positions[:2], (2,), counter_offset=5), torch.tensor(later)
    )


def test_subsets_are_all_as_likely_and_rising_and_of_the_position_alone() -> None:
    drawn = draws.subset(3, Stream.ROUTING, POSITIONS, 6, 2)
    assert drawn.dtype == torch.int64
    assert (drawn[:, 1] > drawn[:, 0]).all()
    counts = torch.bincount(drawn[:, 0] * 6 + drawn[:, 1], minlength=36)
    counts = counts[counts > 0]
    expected = len(POSITIONS) / 15
    assert len(counts) == 15
    assert ((counts - expected).square() / expected).sum() < 36.0  # chi square with 14 degrees: 36.1 at 0.1 %
    shuffled = POSITIONS[torch.randperm(len(POSITIONS))]
    assert torch.equal(draws.subset(3, Stream.ROUTING, shuffled, 6, 2), drawn[shuffled])
    assert torch.equal(draws.subset(3, Stream.ROUTING, POSITIONS[:3], 6, 6), torch.arange(6).expand(3, 6))


def test_subsets_stay_what_they_were() -> None:
    drawn = draws.subset(3, Stream.ROUTING, torch.tensor([0, 1, 2**40]), 16, 4)
    assert drawn.tolist() == [[5, 8, 9, 10], [1, 3, 5, 11], [0, 2, 7, 8]]
