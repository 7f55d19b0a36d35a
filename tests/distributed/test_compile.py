"""Compiled blocks under real DeepSpeed: one graph at every stage, whatever labels are dropped or blocks recomputed."""

import json

import pytest

from tests.launch import run


def test_one_graph_and_no_recompilation_at_every_stage() -> None:
    output = run([], module="tests.distributed.compile_worker").stdout
    results = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    assert len(results) == 8
    for setting, found in results.items():
        assert (found["graphs"], found["frames"], found["breaks"]) == (1, {"total": 1, "ok": 1}, []), setting
        assert found["compiled"] == pytest.approx(found["eager"], rel=1e-6), setting
