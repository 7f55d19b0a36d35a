"""Names of splits: classes, or tars of samples side by side, that are called train and val."""

import re
from collections.abc import Iterable, Sequence

_SPLIT = re.compile(
    r"(ILSVRC20\d\d_(img_)?)?"
    r"(?P<kind>train|training|trainval|trn|val|valid|validation|test|testing|tst|dev|eval)"
    r"([-_ ]?(set|split|data|images|imgs|\d+(x\d+)?)|[-_ ]?(?-i:[A-Z]))?",
    re.IGNORECASE,
)
"""One letter behind it is a domain, as in CycleGAN's trainA and trainB."""
_BESIDE_A_SPLIT = re.compile(r"extra|unlabell?ed|held?[-_ ]?out", re.IGNORECASE)
_BETWEEN_WORDS = re.compile(r"([-_. ]+|(?<=[a-z])(?=[A-Z]))")
_NUMBER_OF_SHARD = re.compile(r"([-_. ]+(of[-_. ]+)?\d+)+$|(?<=[A-WYZa-wyz])\d+$")  # not the end of 32x32


def is_split(name: str) -> bool:
    """Return whether a name is that of a split: train, val_images, test2017, …"""
    return _SPLIT.fullmatch(name) is not None


def is_training(name: str) -> bool:
    """Return whether a name, or a word of it, is that of a training split."""
    found = filter(None, map(_SPLIT.fullmatch, (name, *_BETWEEN_WORDS.split(name))))
    return any(match["kind"].lower().startswith("tr") for match in found)


def splits_among(names: Sequence[str]) -> list[str]:
    """Return the names of splits where the names cannot be those of classes, else none.

    They cannot where all, or several, are splits, as they are or without the words that all begin or end with
    (imagenet_train and imagenet_val); one among other classes may be a vehicle.
    """
    for shown in (names, _without_common_words(names)):
        found = [name for name, part in zip(names, shown, strict=True) if is_split(part)]
        beside = [name for name, part in zip(names, shown, strict=True) if _BESIDE_A_SPLIT.fullmatch(part)]
        if found and (len(found) > 1 or len(found) + len(beside) == len(names)):
            return [name for name in names if name in found or name in beside]
    return []


def splits_of_shards(stems: Iterable[str]) -> list[str]:
    """Return the names of several splits that shards belong to (train-0000 and val-0000), else none."""
    names = sorted({_NUMBER_OF_SHARD.sub("", stem) for stem in stems} - {""})
    return splits_among(names) if len(names) > 1 else []


def _without_common_words(names: Sequence[str]) -> list[str]:
    """Return names without the words that all of them begin with, and without those that all end with."""
    if len(names) < 2:
        return list(names)
    parts = [_BETWEEN_WORDS.split(name) for name in names]
    first = _num_common(parts)
    last = _num_common([part[first:][::-1] for part in parts])
    return ["".join(part[first : len(part) - last]).strip("-_. ") for part in parts]


def _num_common(parts: list[list[str]]) -> int:
    """Return how many items all lists begin with; the last one of the shortest is left."""
    shortest = min(map(len, parts), default=0)
    return next((at for at in range(shortest) if len({part[at] for part in parts}) > 1), max(0, shortest - 1))
