import logging
import math
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from dit_scale import memory_efficient
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


def formula(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    weights = (torch.einsum("nqhd,nkhd->nhqk", query, key) / math.sqrt(query.shape[-1])).softmax(dim=-1)
    return torch.einsum("nhqk,nkhd->nqhd", weights, value)


@pytest.mark.parametrize("backend", ["sdpa", "matmul", "flash"])
def test_every_kernel_that_a_cpu_has_is_the_formula(backend: str) -> None:
    query, key, value = torch.randn(3, 2, 5, 4, 72).unbind()  # [N, T, H, d]
    torch.testing.assert_close(attention(query, key, value, backend), formula(query, key, value))


def test_xformers_is_refused_on_a_cpu_with_the_way_out() -> None:
    with pytest.raises(InputError, match="no operator for device 'cpu'; set attention to 'auto' or 'sdpa'"):
        choose_backend("xformers", CPU)
    with pytest.raises(InputError, match="'cudnn' cannot run here: it has no operator for device 'cpu'"):
        choose_backend("cudnn", CPU)


@pytest.mark.parametrize("kernel", ["cudnn", "flash"])
def test_kernels_of_half_precision_are_refused_in_fp32(kernel: str) -> None:
    with pytest.raises(InputError, match=f"'{kernel}' cannot run here: it computes in bf16 and fp16, not in float32"):
        choose_backend(kernel, CUDA, torch.float32)


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(InputError, match="attention 'spda' is unknown; did you mean 'sdpa'"):
        choose_backend("spda", CPU)


def test_auto_takes_sdpa_where_xformers_has_no_operator() -> None:
    assert choose_backend("auto", CPU) == "sdpa"


def test_auto_spells_attention_out_in_compiled_bf16_on_a_cpu() -> None:
    assert choose_backend("auto", CPU, torch.bfloat16, is_compiled=True) == "matmul"
    assert choose_backend("auto", CPU, torch.bfloat16) == "sdpa"
    assert choose_backend("auto", CPU, torch.float32, is_compiled=True) == "sdpa"
    assert choose_backend("sdpa", CPU, torch.bfloat16, is_compiled=True) == "sdpa"


def test_without_kernels_attention_is_matrix_products() -> None:
    assert choose_backend("auto", CPU, has_kernels=False) == "matmul"
    assert choose_backend("sdpa", CPU, has_kernels=False) == "sdpa"
    with pytest.raises(InputError, match=r"'xformers' cannot run here: .* kernels are off; set"):
        choose_backend("xformers", CPU, has_kernels=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.usefixtures("nothing_chosen")
def test_what_auto_takes_on_a_gpu_runs_there() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        backend = choose_backend("auto", CUDA, dtype)
        tokens = torch.randn(2, 16, 4, 72, device="cuda", dtype=dtype, requires_grad=True)
        attention(tokens, tokens, tokens, backend).sum().backward()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.usefixtures("nothing_chosen")
def test_auto_takes_sdpa_where_xformers_finds_no_gpu(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="dit_scale.models.attention"):
        assert choose_backend("auto", CUDA, torch.bfloat16) == "sdpa"
    assert "there is no GPU for xformers" in caplog.text
    with pytest.raises(InputError, match="attention 'xformers' cannot run here: there is no GPU"):
        choose_backend("xformers", CUDA, torch.bfloat16)


@pytest.mark.usefixtures("nothing_chosen")
def test_xformers_that_is_not_installed_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xformers", None)  # what a missing module looks like
    memory_efficient.obstacle.cache_clear()
    with pytest.raises(InputError, match=r"xformers cannot be imported .*; pip install xformers; set attention to"):
        choose_backend("xformers", CUDA, torch.bfloat16)
    memory_efficient.obstacle.cache_clear()


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
@pytest.mark.parametrize("kernel", ["xformers", "cudnn", "flash", "matmul"])
def test_every_kernel_of_a_gpu_agrees_with_fp64(kernel: str, head_size: int) -> None:
    try:
        choose_backend(kernel, CUDA, torch.bfloat16)
    except InputError as error:
        pytest.skip(str(error))
    qkv = torch.randn(2, 64, 3, 4, head_size, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    exact = qkv.detach().double().requires_grad_()
    found, expected = attention(*qkv.unbind(dim=2), kernel), formula(*exact.unbind(dim=2))
    direction = torch.randn_like(found)
    (gradient,) = torch.autograd.grad(found, qkv, direction)
    (right,) = torch.autograd.grad(expected, exact, direction.double())
    for ours, theirs in ((found, expected), (gradient, right)):
        assert ((ours.double() - theirs).norm() / theirs.norm()).item() < 1e-2
