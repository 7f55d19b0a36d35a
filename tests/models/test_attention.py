import logging
import math
import sys
from collections.abc import Iterator

import pytest
import torch

from dit_scale.errors import InputError
from dit_scale.models import attention as attention_module
from dit_scale.models.attention import attention, choose_backend

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


@pytest.fixture
def nothing_chosen() -> Iterator[None]:
    """Forget the choices made so far, and afterwards those of the test."""
    attention_module._choose_backend.cache_clear()
    yield
    attention_module._choose_backend.cache_clear()


def test_sdpa_is_the_formula() -> None:
    query, key, value = torch.randn(3, 2, 5, 4, 8, dtype=torch.float64).unbind()  # [N, T, H, d]
    weights = (torch.einsum("nqhd,nkhd->nhqk", query, key) / math.sqrt(8)).softmax(dim=-1)
    expected = torch.einsum("nhqk,nkhd->nqhd", weights, value)
    torch.testing.assert_close(attention(query, key, value, "sdpa"), expected)


def test_xformers_is_refused_on_a_cpu_with_the_way_out() -> None:
    with pytest.raises(InputError, match="no operator for device 'cpu'; set attention to 'auto' or 'sdpa'"):
        choose_backend("xformers", CPU)


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(InputError, match="attention 'spda' is unknown; did you mean 'sdpa'"):
        choose_backend("spda", CPU)


def test_auto_takes_sdpa_where_xformers_has_no_operator() -> None:
    assert choose_backend("auto", CPU) == "sdpa"
    assert choose_backend("auto", CUDA, torch.float64) == "sdpa"


@pytest.mark.usefixtures("nothing_chosen")
def test_auto_takes_xformers_on_cuda_where_it_is_installed() -> None:
    pytest.importorskip("xformers")
    assert choose_backend("auto", CUDA, torch.bfloat16) == "xformers"
    assert choose_backend("sdpa", CUDA, torch.bfloat16) == "sdpa"


@pytest.mark.usefixtures("nothing_chosen")
def test_auto_takes_sdpa_where_xformers_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xformers.ops", None)  # what a missing module looks like
    assert choose_backend("auto", CUDA, torch.bfloat16) == "sdpa"


@pytest.mark.usefixtures("nothing_chosen")
def test_the_choice_is_logged_once_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="dit_scale.models.attention"):
        choose_backend("auto", CPU)
        choose_backend("auto", CPU)
    assert [record.message for record in caplog.records] == [
        "attention on cpu in torch.float32: sdpa (xformers has no operator for device 'cpu')"
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("head_size", [64, 72])
def test_xformers_agrees_with_sdpa(head_size: int) -> None:
    pytest.importorskip("xformers")
    qkv = torch.randn(2, 64, 3, 4, head_size, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    results = []
    for backend in ("xformers", "sdpa"):
        output = attention(*qkv.unbind(dim=2), backend)
        (gradient,) = torch.autograd.grad(output.float().square().sum(), qkv)
        results.append((output, gradient))
    torch.testing.assert_close(*results, rtol=2e-2, atol=2e-2)
