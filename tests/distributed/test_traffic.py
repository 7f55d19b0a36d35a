"""What a plan says of communication, beside a count of what real ranks of DeepSpeed tell each other."""

import json

import pytest

from tests.launch import run

SCALARS = 64
"""Bytes of norms and flags in a step, which no plan counts."""


@pytest.mark.parametrize(
    ("stage", "micro_batch", "ranks", "options"),
    [
        (0, 4, 2, []),
        (1, 2, 2, []),
        (2, 2, 2, []),
        (3, 1, 2, []),
        (1, 4, 8, []),
        (3, 2, 8, []),
        (1, 2, 2, ["to-owners"]),
        (2, 2, 8, ["to-owners"]),
    ],
)
def test_ranks_tell_each_other_what_is_planned(stage: int, micro_batch: int, ranks: int, options: list[str]) -> None:
    output = run([stage, micro_batch, 180, *options], ranks, module="tests.distributed.traffic_worker").stdout
    found = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    assert set(found["counted"]) == set(found["planned"]) | {"all_reduce"}  # of scalars, where of nothing else
    for kind, num_bytes in found["counted"].items():
        assert 0 <= num_bytes - found["planned"].get(kind, 0) <= SCALARS, (kind, found)
