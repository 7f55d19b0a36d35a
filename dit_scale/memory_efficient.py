"""Memory-efficient attention (xformers): its library, loaded with the CUDA runtime that it was built for.

The only import of xformers. Its binary is linked against one CUDA version, PyTorch may bring another; the two runtimes
share a process, but the loader must find the first before xformers is imported, by whichever package that happens.
"""

import ctypes
import functools
import importlib.util
import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # each process imports this module, torch only those that compute
    from torch import Tensor


def load_cuda_runtime() -> None:
    """Load the CUDA runtime that xformers' library needs, where a package brings it; PyTorch is not imported.

    Importing ``dit_scale`` calls this, so that it holds in every process and whatever imports xformers first.
    """
    logging.getLogger("xformers").addFilter(_is_no_build_warning)
    runtime = _cuda_runtime()
    if runtime is not None:
        with suppress(OSError):  # then xformers does not load, and obstacle says so
            ctypes.CDLL(str(runtime))


def attend(query: "Tensor", key: "Tensor", value: "Tensor") -> "Tensor":
    """Attend over tokens with xformers' kernel; all tensors are [N, T, num_heads, head_size]."""
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(query, key, value)


class Obstacle(NamedTuple):
    """Why xformers' library is not loaded, and what to do."""

    reason: str
    fix: str


@functools.cache
def obstacle() -> Obstacle | None:
    """Return why xformers' library is not loaded in this process, in xformers' own terms; None where it is loaded."""
    try:
        from xformers import _cpp_lib
    except ImportError as error:
        return Obstacle(f"xformers cannot be imported ({error})", "pip install xformers")
    failure = _cpp_lib._cpp_library_load_exception
    if failure is None:
        return None
    root: BaseException = failure
    while root.__cause__ is not None:
        root = root.__cause__
    reason = " ".join(str(root).split())
    build = getattr(failure, "build_info", None)  # none where it was installed without its binary
    if build is not None:
        import torch

        cuda = f"CUDA {build.cuda_version // 100}.{build.cuda_version % 100}" if build.cuda_version else "no CUDA"
        reason += f"; built for PyTorch {build.torch_version} and {cuda}, found PyTorch {torch.__version__}"
    missing = re.search(r"libcudart\.so\.(\d+)", str(root))
    fix = f"nvidia-cuda-runtime-cu{missing[1]}" if missing else "-c constraints.txt xformers torch"
    return Obstacle(f"xformers cannot load its library ({reason})", f"pip install {fix}")


def _cuda_runtime() -> Path | None:
    """Return the file of the runtime that xformers was built for, as NVIDIA's package for that version installs it."""
    xformers, nvidia = (importlib.util.find_spec(name) for name in ("xformers", "nvidia"))  # none is imported
    if xformers is None or nvidia is None or not xformers.submodule_search_locations:
        return None
    try:
        built = Path(xformers.submodule_search_locations[0], "cpp_lib.json").read_text()
    except OSError:  # it was installed without its binary
        return None
    cuda = re.search(r'"cuda": *(\d+)', built)  # 1208 is 12.8
    name = f"libcudart.so.{int(cuda[1]) // 100}" if cuda else "none"
    folders = (Path(folder, "cuda_runtime", "lib") for folder in nvidia.submodule_search_locations or ())
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _is_no_build_warning(record: logging.LogRecord) -> bool:
    """Let through all but the lines with which xformers greets every command; ``obstacle`` says it where it matters."""
    return "can't load C++/CUDA extensions" not in record.getMessage()
