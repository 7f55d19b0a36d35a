"""Published .pt files, safetensors and bare state dicts, read and written."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dit_scale.errors import InputError
from dit_scale.files import atomic_write
from dit_scale.interop.foreign_folders import is_rounded_copy, refuse_part
from dit_scale.interop.wrapping import unwrapped
from dit_scale.torch_file import read_torch_file
from dit_scale.weights import FIXED_TABLES, SIDE_LAYERS, load_strictly

log = logging.getLogger(__name__)

FORMS = ("pt", "safetensors")
"""What ``write_weights`` can write; a file's ending says which it is."""

_LABEL_TABLE = "y_embedder.embedding_table.weight"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict under the model's own names from a .safetensors, or from a .pt as trainers save it.

    No code of the file is run. Raises InputError where there is no state dict in it, or only a part of one.
    """
    if not path.is_file():
        raise InputError(f"weights '{path}' are not a file; give a .safetensors or .pt file, or a folder")
    refuse_part(path)
    weights = unwrapped(_content(path), str(path))
    if is_rounded_copy(path) and any(value.dtype != torch.float32 for value in weights.values()):
        log.warning(
            "weights '%s' are rounded to compute with; to get those in fp32 give the folder, %s: it tells the command",
            path,
            path.parent,
        )
    return weights


def _content(path: Path) -> object:
    if path.suffix != ".safetensors":
        return read_torch_file(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"weights '{path}' cannot be read as safetensors ({error}); copy the file again") from error


def write_weights(weights: Mapping[str, Tensor], path: Path, form: str) -> None:
    """Write a bare state dict in one of FORMS, as the published samplers load it; whole or not at all."""
    whole = {name: value.contiguous() for name, value in weights.items()}
    with atomic_write(path) as file:
        if form == "safetensors":
            save_file(whole, file.name, metadata={"format": "pt"})  # into the file that is open, without a copy
        else:
            torch.save(whole, file)


_MAY_BE_NEW = ("early_layer.", "route.")
"""Layers with useful values of their own from the start."""


def load_into(model: nn.Module, weights: dict[str, Tensor], origin: str) -> None:
    """Load weights for fine-tuning: positions stay the model's own, another class count gets fresh labels.

    Side layers (projectors) are taken along where all of them fit, and are the model's own otherwise. An early layer
    and a route's layers that the weights lack are the model's own, too. Raises InputError where any other name or shape
    differs.
    """
    expected = model.state_dict()
    sides = {name: value.shape for name, value in expected.items() if name.startswith(SIDE_LAYERS)}
    if sides != {name: value.shape for name, value in weights.items() if name.startswith(SIDE_LAYERS)}:
        weights = {name: value for name, value in weights.items() if not name.startswith(SIDE_LAYERS)}
    # A fixed table depends on the latent's size, which may have changed.
    weights = {name: value for name, value in weights.items() if name not in FIXED_TABLES}
    table = weights.get(_LABEL_TABLE) if _LABEL_TABLE in expected else None
    if (
        table is not None
        and table.shape != expected[_LABEL_TABLE].shape
        and table.shape[1:] == expected[_LABEL_TABLE].shape[1:]
    ):
        fresh = expected[_LABEL_TABLE].clone()
        fresh[-1] = table[-1]  # the null label means the same for any classes
        weights[_LABEL_TABLE] = fresh
    missing = [prefix for prefix in _MAY_BE_NEW if not any(name.startswith(prefix) for name in weights)]
    own = [name for name in expected if name.startswith(tuple(missing))]
    fix = "set model.* (and routing.*, for names that begin with route) to the model that they were trained as"
    load_strictly(model, weights, origin, fix, (*FIXED_TABLES, *sides, *own))
