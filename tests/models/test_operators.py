"""Operators of our own refuse forward-mode differentiation, which they would answer with zeros."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, jvp

from dit_scale.errors import InputError
from dit_scale.models.linear import Linear
from tests.models.test_dit import inputs, random_model


def forward_mode() -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.models.forward_mode"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"TRITON_INTERPRET": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_operator_refuses_a_tangent_however_it_comes() -> None:
    pytest.importorskip("triton")
    answers = forward_mode()
    assert len(answers) == 5, "the walk finds all operators under dit_scale::"
    for operator, said in answers.items():
        assert said.pop("without a tangent") == "nothing", operator
        assert said.pop("jvp of a gradient") != "nothing"  # PyTorch itself refuses
        assert len(said) == 3
        for way, sentence in said.items():
            assert sentence.startswith(f"InputError: operator {operator} has no rule for forward-mode"), way
            assert "give engine.kernels=off" in sentence


@pytest.mark.parametrize("is_outside", [False, True])
def test_compiled_code_refuses_a_tangent_too(is_outside: bool) -> None:
    torch._dynamo.reset()
    linear, tokens = Linear(8, 4), torch.randn(3, 8)

    def derivative(tokens: Tensor) -> Tensor:
        return jvp(torch.compile(linear) if is_outside else linear, (tokens,), (torch.ones_like(tokens),))[1]

    try:
        found = (derivative if is_outside else torch.compile(derivative))(tokens)
    except Exception as error:
        assert "operator dit_scale::linear has no rule for forward-mode" in str(error)
    else:  # the compiler left it to PyTorch, which has the rule
        torch.testing.assert_close(found, torch.ones(3, 8) @ linear.weight.t())


def difference_quotient(model: torch.nn.Module, arguments: tuple[Tensor, ...], direction: Tensor) -> Tensor:
    step = 1e-6
    latent, *rest = arguments
    return (model(latent + step * direction, *rest) - model(latent - step * direction, *rest)) / (2 * step)


@pytest.mark.parametrize("is_compiled", [False, True])
def test_without_kernels_the_network_has_its_derivative(is_compiled: bool) -> None:
    torch._dynamo.reset()
    model = random_model().double()
    model.turn_off_kernels()
    latent, timestep, label = inputs()
    latent, direction = latent.double(), torch.randn(latent.shape, dtype=torch.float64)

    def derivative(latent: Tensor, direction: Tensor) -> Tensor:
        return jvp(lambda latent: functional_call(model, {}, (latent, timestep, label)), (latent,), (direction,))[1]

    with torch.no_grad():
        found = (torch.compile(derivative) if is_compiled else derivative)(latent, direction)
        expected = difference_quotient(model, (latent, timestep, label), direction)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_kernels_off_is_the_same_network() -> None:
    model = random_model()
    expected = model(*inputs())
    model.turn_off_kernels()
    assert not any(getattr(module, "has_kernels", False) for module in model.modules())
    torch.testing.assert_close(model(*inputs()), expected)


def test_compiled_blocks_without_kernels_call_no_operator_of_ours() -> None:
    torch._dynamo.reset()
    graphs = []

    def note(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(str(graph.code))
        return graph.forward

    tokens = torch.randn(3, 8)
    for has_kernels in (True, False):
        linear = Linear(8, 4)
        linear.has_kernels = has_kernels
        torch.compile(linear, backend=note)(tokens)
    assert "dit_scale" in graphs[0]
    assert "dit_scale" not in graphs[1]
    with pytest.raises(InputError):
        jvp(lambda x: torch.ops.dit_scale.linear(x, torch.ones(4, 8), None), (tokens,), (tokens,))
