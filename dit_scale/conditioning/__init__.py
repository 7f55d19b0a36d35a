"""Conditions: what a network is told beside the latent and its time. A new one is a file here and a line below."""

from dit_scale.conditioning.interface import Condition, RecordArray
from dit_scale.conditioning.labels import Labels
from dit_scale.conditioning.none import Unconditional
from dit_scale.errors import InputError, nearest

__all__ = ["CONDITIONS", "Condition", "Labels", "RecordArray", "Unconditional", "build_condition", "condition_named"]

CONDITIONS: dict[str, type[Condition]] = {"label": Labels, "none": Unconditional}
"""By what ``model.condition`` calls them."""


def condition_named(name: str, key: str = "model.condition") -> type[Condition]:
    """Return a kind of condition; raises InputError, which names ``key``, where none has this name."""
    if name not in CONDITIONS:
        raise InputError(f"{key} {name!r} is unknown{nearest(name, CONDITIONS)}")
    return CONDITIONS[name]


def build_condition(name: str, num_classes: int, has_null: bool) -> Condition:
    """Build a condition for data of so many classes; raises InputError where none has this name."""
    return condition_named(name)(num_classes, has_null)
