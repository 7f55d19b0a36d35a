"""Matrices that ranks hold in pieces are updated, to the bit, as whole ones are."""

import json

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dit_scale.optim import whole_cost
from dit_scale.optim.description import Group, everything
from dit_scale.optim.muon import MUON
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


def test_products_are_those_that_pytorch_counts_and_a_rank_takes_its_own() -> None:
    matrices = {"a": nn.Parameter(torch.ones(8, 24)), "b": nn.Parameter(torch.ones(32, 8))}
    counted = []
    for matrix in matrices.values():
        matrix.grad = torch.ones_like(matrix)
        with FlopCounterMode(display=False) as counter:
            MUON.build([{"params": [matrix], "lr": 0.1, "weight_decay": 0.0}]).step()
        counted.append(counter.get_total_flops())
    groups = [Group(everything, MUON)]
    assert whole_cost(groups, matrices).flops == sum(counted)
    assert whole_cost(groups, matrices, 2) == (sum(counted), 3 * 256, 2 * 224)  # b is cut: 32 numbers, and 224
    assert whole_cost(groups, matrices, 7) == (max(counted), 3 * 256, 2 * 64 * 3)  # of 64 numbers; b lies in 4
