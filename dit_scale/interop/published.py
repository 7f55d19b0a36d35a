"""Published .pt files, safetensors and bare state dicts, read and written."""

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dit_scale.errors import InputError
from dit_scale.files import atomic_write

FORMS = ("pt", "safetensors")
"""What ``write_weights`` can write; a file's ending says which it is."""

_LABEL_TABLE = "y_embedder.embedding_table.weight"
_POSITIONS = "pos_embed"
_NOT_WEIGHTS = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError)
"""What torch.load raises for a file of another kind, by what its first bytes happen to mean."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict: .safetensors, or .pt with the weights bare or under ``ema`` (preferred) or ``model``.

    No code of the file is run; the published trainer's ``argparse.Namespace`` is the one type let through.
    """
    if not path.is_file():
        raise InputError(f"weights '{path}' are not a file; give a .safetensors or .pt file, or a folder")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, *_NOT_WEIGHTS) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"weights '{path}' cannot be read as safetensors or as a .pt of tensors: {reason}") from error
    if not isinstance(content, dict):
        raise InputError(f"weights '{path}' hold a {type(content).__name__}; give a file with a state dict")
    for key in ("ema", "model"):
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def write_weights(weights: Mapping[str, Tensor], path: Path, form: str) -> None:
    """Write a bare state dict in one of FORMS, as the published samplers load it; whole or not at all."""
    whole = {name: value.contiguous() for name, value in weights.items()}
    with atomic_write(path) as file:
        if form == "safetensors":
            save_file(whole, file.name, metadata={"format": "pt"})  # into the file that is open, without a copy
        else:
            torch.save(whole, file)


def load_into(model: nn.Module, weights: dict[str, Tensor], origin: str) -> None:
    """Load weights for fine-tuning: positions stay the model's own, another class count gets fresh labels.

    Raises InputError where any other name or shape differs.
    """
    expected = model.state_dict()
    weights = dict(weights)
    weights[_POSITIONS] = expected[_POSITIONS]  # fixed by the latent's size, which may have changed
    table = weights.get(_LABEL_TABLE)
    if (
        table is not None
        and table.shape != expected[_LABEL_TABLE].shape
        and table.shape[1:] == expected[_LABEL_TABLE].shape[1:]
    ):
        fresh = expected[_LABEL_TABLE].clone()
        fresh[-1] = table[-1]  # the null label means the same for any classes
        weights[_LABEL_TABLE] = fresh
    check_names_and_shapes(weights, expected, origin, "set model.* to the model that they were trained as")
    model.load_state_dict(weights)


def check_names_and_shapes(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], origin: str, way_out: str
) -> None:
    """Raise InputError for the first name that either side lacks or whose shape differs."""
    for name in sorted(expected.keys() | weights.keys()):
        here = tuple(expected[name].shape) if name in expected else "absent"
        there = tuple(weights[name].shape) if name in weights else "absent"
        if here != there:
            raise InputError(
                f"weights '{origin}' are of another model: {name} is {there} there and {here} here; {way_out}"
            )
