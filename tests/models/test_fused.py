import json
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dit_scale.models.fused import EPSILON, add_and_norm, linear_gelu

TOLERANCE = {"float32": 1e-6, "bfloat16": 6e-3}


def parity(device: str, **environment: str) -> dict[str, list[float]]:
    command = [sys.executable, "-m", "tests.models.kernel_parity", device]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)
    assert done.returncode == 0, done.stderr
    errors: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return errors


def check(errors: dict[str, list[float]], cases: int) -> None:
    assert len(errors) == cases
    for case, found in errors.items():
        assert max(found) < TOLERANCE[case.split()[0]], case
        if case.startswith("bfloat16"):
            assert max(found) > 1e-4, f"{case} cannot be so close"  # or nothing was compared


def test_interpreted_kernels_and_their_gradients_are_those_of_pytorch() -> None:
    pytest.importorskip("triton")
    check(parity("cpu", TRITON_INTERPRET="1"), cases=18)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_of_a_gpu_and_their_gradients_are_those_of_pytorch_compiled_or_not() -> None:
    check(parity("cuda"), cases=36)


def test_without_a_gpu_plain_pytorch_is_used() -> None:
    tokens, branch = torch.randn(2, 2, 9, 32).unbind()
    gate, shift, scale = torch.randn(3, 2, 1, 32).unbind()
    summed, modulated = add_and_norm(tokens, branch, gate, shift, scale)
    assert torch.equal(summed, tokens + gate * branch)
    assert torch.equal(modulated, F.layer_norm(summed, (32,), eps=EPSILON) * (1 + scale) + shift)
    linear = nn.Linear(32, 64)
    assert torch.equal(linear_gelu(linear, tokens), F.gelu(linear(tokens), approximate="tanh"))
