"""Weights loaded by name: none missing, none left over, none of another shape, wherever they come from."""

import importlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from dit_scale.errors import InputError

FIXED_TABLES = ("pos_embed",)
"""The weights of a DiT that are computed and never trained: checkpoints may lack these, and no others."""

SIDE_LAYERS = ("projectors.",)
"""What the names of weights begin with that are trained beside a network: one without these layers drops them."""

ROTATIONS = ("feat_rope.", "enc_feat_rope.", "dec_feat_rope.")
"""What the names of tables begin with that LightningDiT's and RAE's files hold, and that a DiT computes."""

_UNREADABLE = (OSError, SafetensorError, RuntimeError, ValueError)
"""What diffusers raises, in words, for files that are absent, damaged or of another kind."""
_MISFITS = (TypeError, AttributeError, LookupError, ArithmeticError, AssertionError)
"""What it runs into where settings are of another kind than they must be, or do not fit each other."""
_NAMES_TOLD = 3


def load_trained(model: nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Load a checkpoint's weights into its own model; raises InputError where one but FIXED_TABLES is missing."""
    load_strictly(model, weights, origin, "give another step-… of the run", FIXED_TABLES)


def load_strictly(
    model: nn.Module, weights: Mapping[str, Tensor], origin: str, fix: str, may_lack: Collection[str] = ()
) -> None:
    """Load weights whose names and shapes are the model's; those of ``may_lack`` keep the model's own values.

    Raises InputError for any other difference.
    """
    expected = model.state_dict()
    weights = without_side_layers(weights, expected)
    complete = {name: value for name, value in expected.items() if name in may_lack} | dict(weights)
    check_names_and_shapes(complete, expected, origin, fix)
    check_finite(weights, origin, fix)
    model.load_state_dict(complete)


def without_side_layers(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights without those of side layers, and tables, that a model, whose state is ``expected``, has not."""
    left = (*SIDE_LAYERS, *ROTATIONS)
    return {name: value for name, value in weights.items() if name in expected or not name.startswith(left)}


def check_names_and_shapes(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], origin: str, fix: str
) -> None:
    """Raise InputError for the first name that either side lacks or whose shape differs."""
    for name in sorted(expected.keys() | weights.keys()):
        here = tuple(expected[name].shape) if name in expected else "absent"
        there = tuple(weights[name].shape) if name in weights else "absent"
        if here != there:
            raise InputError(f"weights '{origin}' are of another model: {name} is {there} there and {here} here; {fix}")


def check_finite(weights: Mapping[str, Tensor], origin: str, fix: str) -> None:
    """Raise InputError for the first weights that hold NaN or infinity."""
    for name, value in weights.items():
        if not (value.float() if value.is_floating_point() and value.itemsize == 1 else value).isfinite().all():
            raise InputError(f"weights '{origin}' hold NaN or infinity in {name}, of which no model computes; {fix}")


def from_diffusers(name: str) -> Any:
    """Return a class of diffusers; it takes seconds the first time, so it is asked for only where one is used."""
    return from_library("diffusers", name)


def from_library(library: str, name: str) -> Any:
    """Return a class of diffusers or transformers, imported without what they say of packages that have no part in it.

    Raises ImportError where the library is not installed.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # they set the level of their own loggers while they are imported
    try:
        return getattr(importlib.import_module(library), name)
    finally:
        logging.disable(before)


@contextmanager
def pretrained(what: str, fix: str) -> Iterator[None]:
    """Turn what diffusers or transformers raises, and what they and the hub's client print, into one sentence."""
    try:
        with _silent("diffusers"), _silent("transformers"), _silent("huggingface_hub"), _silent("urllib3"):
            yield
    except InputError:
        raise
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise InputError(f"{what} cannot be loaded ({reason}); {fix}") from error
    except _MISFITS as error:
        raise InputError(
            f"{what} cannot be built: the settings in its config.json do not fit a model; {fix}"
        ) from error


def from_pretrained(
    model_class: Any,
    source: str | Path,
    what: str,
    fix: str,
    may_be_left: Callable[[Any, str], bool] = lambda model, name: False,
    **options: Any,
) -> Any:
    """Load a model through diffusers or transformers, every weight from its files, and return it.

    diffusers keeps whatever the memory held in the weights that a folder lacks. Raises InputError, with names, where
    weights are missing, of another shape, or left over; ``may_be_left(model, name)`` excuses the last.
    """
    with pretrained(what, fix), _nan_where_uninitialised():
        model, found = model_class.from_pretrained(
            source, output_loading_info=True, low_cpu_mem_usage=False, ignore_mismatched_sizes=True, **options
        )
    reshaped = {name for name, *_ in found["mismatched_keys"]}
    missing = {*found["missing_keys"]} - reshaped
    without = {*_not_finite(model)} - reshaped - missing  # an index of shards may name what no shard holds
    unused = {name for name in found["unexpected_keys"] if not may_be_left(model, name)}
    wrong = {"missing": missing, "of another shape": reshaped, "not in this model": unused}
    wrong |= {"NaN or infinite, or in no file": without}
    if told := "; ".join(f"{kind}: {_listed(names)}" for kind, names in wrong.items() if names):
        raise InputError(f"{what} does not fit its own config.json ({told}); {fix}")
    return model


def _not_finite(model: nn.Module) -> list[str]:
    return [name for name, value in model.named_parameters() if not value.isfinite().all()]


def _listed(names: Collection[str]) -> str:
    told = ", ".join(sorted(names)[:_NAMES_TOLD])
    return told if len(names) <= _NAMES_TOLD else f"{told} and {len(names) - _NAMES_TOLD} more"


@contextmanager
def _nan_where_uninitialised() -> Iterator[None]:
    """Have memory that nobody wrote to hold NaN, and not what was there before."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextmanager
def _silent(library: str) -> Iterator[None]:
    """Keep a library from printing, name by name, what one sentence says."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
