"""What trainers and wrappers put around a state dict: keys above it, and prefixes in its names."""

import logging
import re
from collections.abc import Mapping

from torch import Tensor

from dit_scale.errors import InputError

log = logging.getLogger(__name__)

_AVERAGES = ("ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict")
"""Of DiT, SiT, REPA and LightningDiT; of ConvNeXt and MAE's kin; of others; of timm; of others again."""
KEYS = (*_AVERAGES, "model", "state_dict", "module", "app")
"""Where trainers keep weights, the first that is there: an average, then DiT's, Lightning's, DeepSpeed's and DCP's."""

_INSERTED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Of torch.compile, FSDP and activation checkpointing: before any part of a name."""
_BEFORE_ALL = ("module.", "model.")
"""Of DDP and DeepSpeed, and of Lightning: before every name."""
_LATER_BLOCKS = "decoder_blocks"
"""Blocks after the projectors in REPA's first checkpoints, which begin at 0 again."""
_COUNTER = "n_averaged"
"""What torch's AveragedModel keeps beside its weights."""


def unwrapped(content: object, origin: str) -> dict[str, Tensor]:
    """Return the state dict of a file's content under the model's own names, and say in the log what was taken.

    Raises InputError where there is none.
    """
    content, taken = _taken(content)
    if not isinstance(content, Mapping):
        raise InputError(f"weights '{origin}' hold {_kind_of(content)} and no names; give a file with a state dict")
    weights = {str(name): value for name, value in content.items() if isinstance(value, Tensor) and name != _COUNTER}
    if not weights:
        keys = ", ".join(f"'{key}'" for key in list(content)[:5]) or "nothing"
        raise InputError(
            f"weights '{origin}' hold no named tensors where they are looked for ({keys} is there); save the state "
            f"dict alone, or under one of {', '.join(KEYS)}"
        )
    weights, removed = _without_prefixes(weights, origin)
    if any(name.startswith(f"{_LATER_BLOCKS}.") for name in weights):
        weights = _in_one_row(weights)
        removed.append(f"'{_LATER_BLOCKS}' are counted on from 'blocks'")
    if taken or removed:
        log.info("weights '%s': %s", origin, "; ".join([*taken, *removed]))
    return weights


def _taken(content: object) -> tuple[object, list[str]]:
    """Go down to the state dict; also return, in words, which keys led there and which were left."""
    said = []
    while isinstance(content, Mapping):
        there = [key for key in KEYS if isinstance(content.get(key), Mapping)]
        key = next((key for key in there if _holds_weights(content[key])), None)
        if key is None:
            break
        others = [_left(other, content[other]) for other in there if other != key]
        said.append(f"'{key}' is taken" + (f" and not {', '.join(others)}" if others else ""))
        content = content[key]
    return content, said


def _kind_of(content: object) -> str:
    """Return what something is, in words."""
    kinds = {list: "a list", tuple: "a list", Tensor: "one tensor", str: "text", int: "a number", float: "a number"}
    return next((words for kind, words in kinds.items() if isinstance(content, kind)), "another object")


def _left(key: str, content: object) -> str:
    return f"'{key}'" if _holds_weights(content) else f"'{key}' (it holds no named tensors)"


def _holds_weights(content: object) -> bool:
    if not isinstance(content, Mapping):
        return False
    return any(isinstance(value, Tensor) for value in content.values()) or any(
        _holds_weights(content.get(key)) for key in KEYS
    )


def _without_prefixes(weights: Mapping[str, Tensor], origin: str) -> tuple[dict[str, Tensor], list[str]]:
    """Return weights under shorter names; also, in words, what was removed from them."""
    parts = {name: name.split(".") for name in weights}
    removed = [f"'{part}.' is removed" for part in _INSERTED if any(part in words for words in parts.values())]
    names = [".".join(word for word in words if word not in _INSERTED) for words in parts.values()]
    while prefix := next((prefix for prefix in _BEFORE_ALL if all(name.startswith(prefix) for name in names)), None):
        names = [name.removeprefix(prefix) for name in names]
        removed.append(f"'{prefix}' is removed from all names")
    if twice := next((name for name in names if names.count(name) > 1), None) if removed else None:
        raise InputError(
            f"weights '{origin}' hold {twice} twice, with and without a wrapper's prefix; keep one of them"
        )
    return dict(zip(names, weights.values(), strict=True)), removed


def _in_one_row(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights in which later blocks have the numbers after those of the first blocks."""
    pattern = re.compile(rf"(blocks|{_LATER_BLOCKS})\.(\d+)\.(.+)")
    parts = {name: pattern.fullmatch(name) for name in weights}
    begin = 1 + max((int(found[2]) for found in parts.values() if found and found[1] == "blocks"), default=-1)
    return {
        f"blocks.{begin + int(found[2])}.{found[3]}" if found and found[1] == _LATER_BLOCKS else name: weights[name]
        for name, found in parts.items()
    }
