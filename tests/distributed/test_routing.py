"""Token routing under real DeepSpeed: the losses of plain PyTorch at every stage, routed and then not."""

import json

import pytest

from tests.launch import run


@pytest.mark.parametrize(("ranks", "options"), [(2, ["learnt"]), (1, ["entered", "compiled"])])
def test_routed_steps_are_plain_pytorchs_at_every_stage(ranks: int, options: list[str]) -> None:
    output = run(options, ranks, module="tests.distributed.routing_worker").stdout
    results = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    plain = results.pop("plain")
    assert len(results) == (2 if "compiled" in options else 4)
    for setting, found in results.items():
        assert found["losses"] == pytest.approx(plain["losses"], rel=1e-5), setting
        assert found["norms"] == pytest.approx(plain["norms"], rel=1e-4), setting
        assert found["graphs"] == (2 if "compiled" in options else 0), setting
