"""Every kernel runs or says why not, and the fastest of those that ran is found."""

import pytest
import torch

from dit_scale.models.kernel_timing import AttentionShape, fastest, seconds_of_backends

SHAPE = AttentionShape(batch_size=2, num_tokens=16, num_heads=2, head_size=8)


@pytest.mark.parametrize("is_compiled", [False, True])
def test_kernels_run_or_say_why_not(is_compiled: bool) -> None:
    found = seconds_of_backends(SHAPE, torch.device("cpu"), torch.float32, ["sdpa", "matmul", "cudnn"], is_compiled)
    assert found["cudnn"] == "it has no operator for device 'cpu'"
    for backend in ("sdpa", "matmul"):
        seconds = found[backend]
        assert isinstance(seconds, float) and 0.0 < seconds < 60.0


def test_the_fastest_is_one_that_ran() -> None:
    assert fastest({"cudnn": "is missing", "flash": 0.2, "xformers": 0.1}) == "xformers"
