"""Files of torch.save, read without running any code of theirs."""

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dit_scale.errors import InputError

_STATE_DICT_ALONE = "save the state dict alone: torch.save(model.state_dict(), 'weights.pt'), or safetensors"
_NOT_WEIGHTS = (
    pickle.UnpicklingError,
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
)
"""What torch.load raises for a file of another kind, by what its first bytes happen to mean."""
_PATHS = ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
_HARMLESS = (
    *("argparse.Namespace", "types.SimpleNamespace", "datetime.datetime", "datetime.date", "datetime.timedelta"),
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHS),  # the second: Python 3.13
    *("numpy.dtype", "numpy.ndarray"),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"numpy.dtypes.{name}" for name in np.dtypes.__all__),
    *{f"numpy.{scalar.__name__}" for scalar in np.sctypeDict.values()},
)
"""Types that trainers keep beside weights, under every name that numpy 1 and 2 and Python 3 give them."""


class NotAWeight:
    """Stands for an object of a harmless type: takes all that a pickle builds it from, and keeps nothing.

    So not even the code of those types runs on what a stranger wrote.
    """

    def __init__(self, *parts: object) -> None:
        pass

    def __new__(cls, *parts: object) -> "NotAWeight":
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


def read_torch_file(path: Path) -> object:
    """Return what a file of torch.save holds, with NotAWeight for the objects of harmless types.

    Raises InputError for a file that is damaged, of another kind, or that holds objects of other types.
    """
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        raise InputError(f"weights '{path}' cannot be read ({error.strerror}); give a file that can be") from error
    stand_ins: list[Any] = [(NotAWeight, name) for name in _HARMLESS]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what _reason says, in torch's words
            return torch.load(path, map_location="cpu", weights_only=True)
    except _NOT_WEIGHTS as error:
        raise InputError(f"weights '{path}' {_reason(path, head, str(error))}") from error


def _reason(path: Path, head: bytes, error: str) -> str:
    """Return what is wrong with a file, and the fix, without torch's own advice, which is to run its code."""
    is_zip = head.startswith(b"PK")
    if found := re.search(r"GLOBAL ([\w.]+)", error):
        return f"hold an object of type {found[1]}, whose code is not run; {_STATE_DICT_ALONE}"
    if "DTensor" in error:
        return f"hold sharded tensors (DTensor); gather them with full_tensor() and {_STATE_DICT_ALONE}"
    if is_zip and "TorchScript" in error:
        return f"are a TorchScript program, which is not run; {_STATE_DICT_ALONE}"
    if is_zip and not zipfile.is_zipfile(path):
        return "are cut short; copy the file again"
    if head.startswith(b"version https://git-lfs"):
        return "are only Git LFS's pointer to the file; get the file itself with git lfs pull"
    if is_zip or head.startswith(b"\x80"):
        return f"are damaged, or pickled in a way that is not read without running code; {_STATE_DICT_ALONE}"
    return "are neither a file of torch.save nor safetensors; give a .pt or a .safetensors file"
