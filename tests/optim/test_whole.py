"""Matrices that ranks hold in pieces are updated, to the bit, as whole ones are."""

import json

import pytest

from tests.launch import run


@pytest.mark.parametrize(("ranks", "holders"), [(1, [1, 1, 1, 1]), (2, [1, 2, 1, 1]), (6, [1, 4, 1, 3])])
def test_pieces_are_updated_as_whole_matrices_are(ranks: int, holders: list[int]) -> None:
    """With a rate of their own, gradients that are divided, and an update that is discarded."""
    output = run([], ranks, module="tests.optim.whole_worker").stdout
    found = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    assert found["holders"] == holders
    assert found["differs"] == []
    counted, planned = found["sent"]
    assert counted == planned
    assert (counted > 0) == (ranks > 1)
