"""The estimate of states, gradients and updates against the bytes of every tensor alive in real two-rank engines."""

import json

import pytest

from tests.launch import run


def test_states_are_what_deepspeed_holds() -> None:
    result = run([], ranks=2, module="tests.distributed.memory_worker")
    output = result.stdout
    assert "untested optimizer" not in result.stdout + result.stderr  # as DeepSpeed calls those that are wrapped
    results = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    assert len(results) == 7 + 2 * 4
    for engine, (measured, estimated) in results.items():
        assert estimated == pytest.approx(measured, rel=0.01), engine
