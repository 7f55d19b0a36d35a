"""A loss on hidden states has its gradient at every ZeRO stage, with blocks recomputed or compiled."""

import json

import pytest

from tests.launch import run


@pytest.mark.parametrize(("ranks", "options"), [(2, []), (1, ["compiled"])])
def test_a_loss_on_hidden_states_trains_as_in_plain_pytorch(ranks: int, options: list[str]) -> None:
    output = run(options, ranks, module="tests.distributed.hidden_worker").stdout
    results = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    plain = results.pop("plain")
    assert len(results) == 8
    assert plain["norms"][0] > 0.0 and plain["losses"][0] != pytest.approx(plain["losses"][-1], rel=1e-3)
    for setting, found in results.items():
        assert found["losses"] == pytest.approx(plain["losses"], rel=1e-5), setting
        assert found["norms"] == pytest.approx(plain["norms"], rel=1e-4), setting
