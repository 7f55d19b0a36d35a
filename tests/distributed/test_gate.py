"""The gate: gradients are shortened as PyTorch shortens them, discarded ones leave no trace, and nobody waits."""

import json

import pytest

from tests.launch import run


def test_steps_behind_the_gate_are_plain_pytorchs_and_the_host_reads_nothing() -> None:
    result = run([], 1, module="tests.distributed.gate_worker")
    stages = json.loads(next(line for line in result.stdout.splitlines() if line.startswith("{")))
    for stage, found in stages.items():
        assert found["difference"] == pytest.approx(0.0, abs=2e-4), stage
        assert found["updated"] == [True, True, False, True], stage
    # DeepSpeed's ZeRO 3 reads by itself.
    assert [stages[stage]["reads"] for stage in ("0", "1", "2")] == [0, 0, 0]
