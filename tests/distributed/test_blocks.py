"""A network with every switch and a head trains alike at every ZeRO stage, and resumes to the last bit."""

import json
from pathlib import Path

import pytest

from tests.launch import run


def test_every_switch_trains_alike_at_each_stage_and_resumes_to_the_bit(tmp_path: Path) -> None:
    output = run([tmp_path], 2, module="tests.distributed.blocks_worker", timeout=900).stdout
    results = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    expected = results["stage 0"]["losses"]
    assert expected[0] != pytest.approx(expected[-1], rel=1e-3)
    for setting, found in results.items():
        assert found["losses"] == pytest.approx(expected, rel=1e-5), setting
        if "same" in found:
            assert found["same"] and found["resumed"] == found["losses"][2:], setting
