"""ImageNet's classes: are these ILSVRC2012's, and labels that count them in another order."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from dit_scale.errors import InputError
from preprocessing.sources.names import base_of
from preprocessing.sources.table import Source

NUM_CLASSES = 1000
_DIGEST = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"
"""SHA-256 of ILSVRC2012's 1,000 wnids, sorted, with a line feed between them."""
_VALIDATION_NAMES = tuple(f"ILSVRC2012_val_{number:08d}" for number in range(1, 11))
_GROUND_TRUTH = (490, 361, 171, 822, 297, 482, 13, 704, 599, 164)
"""The first lines of ILSVRC2012_validation_ground_truth.txt; by sorted wnids these labels are 65, 970, 230, 809, …"""


def is_wnid(name: str) -> bool:
    """Return whether a class is named like a synset of WordNet, such as n01440764."""
    return re.fullmatch(r"n[0-9]{8}", name) is not None


def described(names: Sequence[str]) -> str | None:
    """Return whether 1,000 classes named like wnids are ILSVRC2012's, or None for other classes."""
    if len(names) != NUM_CLASSES or not all(map(is_wnid, names)):
        return None
    if _digest(names) == _DIGEST:
        return "the classes are ILSVRC2012's 1,000, in their usual order"
    if _digest(sorted(names)) == _DIGEST:
        return "the classes are ILSVRC2012's 1,000, but not in their usual order, which is that of the sorted wnids"
    return "the classes are 1,000 wnids, but not ILSVRC2012's"


def check_ground_truth(source: Source, path: Path) -> None:
    """Raise InputError for ILSVRC2012's validation images with the labels of its devkit, or those less one."""
    if len(source) < len(_VALIDATION_NAMES):
        return
    for index, name in enumerate(_VALIDATION_NAMES):
        if base_of(source.name(index)).partition(".")[0] != name:
            return
    labels = [source.label(index) for index in range(len(_VALIDATION_NAMES))]
    if any(labels == [number - first for number in _GROUND_TRUTH] for first in (0, 1)):
        raise InputError(
            f"the labels of '{path}' are those of ILSVRC2012_validation_ground_truth.txt, which count the classes in "
            f"an order of their own, not in that of the sorted wnids (its 490 is n01751748, which is label 65); give "
            f"source.labels=LOC_val_solution.csv, or a folder for each wnid"
        )


def _digest(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()
