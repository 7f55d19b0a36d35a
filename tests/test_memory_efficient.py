"""xformers' library is loaded beside PyTorch's other CUDA; this fails where a later set of versions breaks it."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from dit_scale.memory_efficient import obstacle

needs_wheels = pytest.mark.skipif(
    sys.platform != "linux" or sysconfig.get_platform() != "linux-x86_64", reason="xformers has no wheels here"
)


@needs_wheels
def test_the_library_is_loaded() -> None:
    assert obstacle() is None


@needs_wheels
def test_the_runtime_is_loaded_by_dit_scale_alone_before_torch_is_imported() -> None:
    code = "import dit_scale, sys; print('torch' in sys.modules, 'libcudart.so.12' in open('/proc/self/maps').read())"
    assert _run(code).stdout.split() == ["False", "True"]


@needs_wheels
@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)])
@pytest.mark.parametrize("head_size", [64, 72])
def test_operators_for_bf16_are_there_but_for_the_device(
    head_size: int, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that xformers asks of tensors and library is met: shapes go through the operators that it chooses."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from xformers.ops import fmha

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)  # of the GPU that is not here
    shape = (2, 256, 16, head_size)
    with FakeTensorMode():
        inputs = fmha.Inputs(*(torch.empty(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3)))
        forward = fmha.dispatch._dispatch_fw(inputs, needs_gradient=True)
        backward = fmha.dispatch._dispatch_bw(inputs, False)
        mixed, context = forward.apply(inputs, needs_gradient=True)
        gradients = backward.apply(context, inputs, torch.empty_like(mixed))
    assert mixed.shape == gradients.dq.shape == gradients.dk.shape == gradients.dv.shape == shape


@needs_wheels
def test_a_missing_runtime_is_told_by_xformers_reason_with_what_to_install_and_no_greeting(tmp_path: Path) -> None:
    """The installed packages without that one, as links."""
    installed, packages = Path(sysconfig.get_path("purelib")), tmp_path / "packages"
    (packages / "nvidia").mkdir(parents=True)
    for entry in installed.iterdir():
        if entry.name != "nvidia" and not entry.name.startswith("__editable__"):
            (packages / entry.name).symlink_to(entry)
    for entry in (installed / "nvidia").iterdir():
        if entry.name != "cuda_runtime":
            (packages / "nvidia" / entry.name).symlink_to(entry)
    code = f"import sys; sys.path.append({str(packages)!r})\n"
    code += "from dit_scale.memory_efficient import obstacle\nprint(obstacle())"
    result = _run(code, "-S")
    assert "libcudart.so.12" in result.stdout and "built for PyTorch 2.10" in result.stdout, result
    assert f"found PyTorch {torch.__version__}" in result.stdout
    assert "fix='pip install nvidia-cuda-runtime-cu12'" in result.stdout
    assert "XFORMERS" not in result.stderr


def _run(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parent.parent
    return subprocess.run(
        [sys.executable, *options, "-c", code], cwd=root, capture_output=True, text=True, timeout=300, check=True
    )
