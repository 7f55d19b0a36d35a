import math

import pytest
import torch

from dit_scale.models.embeddings import TimestepEmbedding, sincos_positions, timestep_sinusoids


def test_sinusoids_by_hand() -> None:
    values = timestep_sinusoids(torch.tensor([0, 7]))
    assert values.dtype == torch.float32
    assert torch.equal(values[0], torch.cat([torch.ones(128), torch.zeros(128)]))
    for index in (0, 1, 64, 127):
        angle = 7 * 10_000 ** (-index / 128)
        assert values[1, index].item() == pytest.approx(math.cos(angle), abs=1e-6)
        assert values[1, 128 + index].item() == pytest.approx(math.sin(angle), abs=1e-6)


def test_bf16_weights_still_tell_neighbouring_timesteps_apart() -> None:
    embedding = TimestepEmbedding(32).to(torch.bfloat16)
    assert torch.tensor(998.0, dtype=torch.bfloat16) == torch.tensor(999.0, dtype=torch.bfloat16)
    last, before = embedding(torch.tensor([999, 998]))
    assert not torch.equal(last, before)


def test_positions_encode_the_column_then_the_row() -> None:
    table = sincos_positions(8, grid_side=3)[0]
    for row in range(3):
        for column in range(3):
            expected = [
                wave(place * frequency)
                for place in (column, row)
                for wave in (math.sin, math.cos)
                for frequency in (1.0, 0.01)
            ]
            torch.testing.assert_close(table[3 * row + column], torch.tensor(expected, dtype=torch.float64))
