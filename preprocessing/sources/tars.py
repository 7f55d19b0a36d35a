"""Tars of images: webdataset's samples with their labels, or plain images and a file of labels."""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, pairwise
from pathlib import Path
from typing import BinaryIO

from dit_scale.classes import ClassNames, as_number
from dit_scale.errors import InputError
from preprocessing.sources.archives import Member, members_of, tars_of
from preprocessing.sources.classes import name_numbers, number_labels
from preprocessing.sources.labels import read_labels
from preprocessing.sources.names import LeftOut, counted_as, is_image, to_bytes
from preprocessing.sources.table import Row, Table, table_of

_Split = Callable[[str], tuple[str | None, str | None]]


def list_tars(path: Path, given: ClassNames | None, left_out: LeftOut) -> tuple[list[str], Table]:
    """List the samples of webdataset tars: tars by name, samples as they come; labels are numbers."""
    from webdataset.tariterators import base_plus_ext  # imports torch, which processes that decode must not

    table = table_of(row for tar in tars_of(path) for row in _samples_of(tar, base_plus_ext, left_out))
    return name_numbers(int(table["label"].max(initial=-1)), given, f"'{path}'"), table


def list_plain_tars(path: Path, labels: Path, given: ClassNames | None, left_out: LeftOut) -> tuple[list[str], Table]:
    """List the images of tars by tar and name, with their labels from a file; what else the tars hold is counted."""
    rows = [row for tar in tars_of(path) for row in plain_rows(tar, None, tar.name, -1, left_out)]
    numbers, class_names = number_labels(read_labels(labels, [row.name for row in rows]), given, f"'{labels}'")
    return class_names, table_of(row._replace(label=label) for row, label in zip(rows, numbers, strict=True))


def plain_rows(tar: Path, inner: Member | None, prefix: str, label: int, left_out: LeftOut) -> list[Row]:
    """Return the images of a tar, or of a tar inside it, sorted by name; all get one label."""
    file_name, start = to_bytes(tar.name), to_bytes(prefix) + b"/"
    rows = []
    with tar.open("rb") as file:
        for member in members_of(file, tar, inner, left_out):
            if is_image(member.name):
                name = start + to_bytes(member.name.removeprefix("./"))
                rows.append(Row(file_name, name, member.offset, member.num_bytes, label))
            else:
                left_out[counted_as(member.name)] += 1
    rows.sort()
    for one, other in pairwise(rows):
        if one.name == other.name:
            raise InputError(
                f"'{tar}' holds image '{one.name.decode('utf-8', 'backslashreplace')}' twice; make the tar again"
            )
    return rows


def _samples_of(tar: Path, split: _Split, left_out: LeftOut) -> Iterator[Row]:
    """Yield a row for each labelled image of a sample: members one after another whose names begin alike."""
    with tar.open("rb") as file:
        named = (
            (*split(member.name), member) for member in _without_meta(members_of(file, tar, None, left_out), left_out)
        )
        for key, sample in groupby(named, key=lambda item: item[0]):
            if key is None:  # a name without a dot
                left_out.update(counted_as(member.name) for _, _, member in sample)
                continue
            parts: dict[str, Member] = {}
            for _, ending, member in sample:
                if (ending := str(ending).lower()) in parts:
                    raise InputError(f"'{tar}' holds '{member.name}' twice in one sample; give each its own key")
                parts[ending] = member
            pairs = _images_of(tar, key, parts)
            used = [member for pair in pairs for member in pair]
            for member in parts.values():
                if member not in used:
                    left_out[counted_as(member.name)] += 1
            for image, part in pairs:
                name = to_bytes(f"{tar.name}/{image.name}")
                yield Row(to_bytes(tar.name), name, image.offset, image.num_bytes, _label_of(file, tar, part))


def _without_meta(members: Iterable[Member], left_out: LeftOut) -> Iterator[Member]:
    """Leave out webdataset's own notes, ``__NAME__`` at the top."""
    for member in members:
        top, _, _ = member.name.partition("/")
        if len(top) >= 4 and top.startswith("__") and top.endswith("__"):
            left_out["webdataset's notes"] += 1
        else:
            yield member


def _images_of(tar: Path, key: str, parts: dict[str, Member]) -> list[tuple[Member, Member]]:
    """Return a sample's image, KEY.jpg before KEY.more.jpg, with its label, KEY.cls before KEY.json.

    Where it has no such label, KEY.more.jpg goes with KEY.more.cls: names with dots, whose key ends at the first.
    Raises InputError for an image without a label, and for two with one.
    """
    images = [ending for ending in parts if is_image(f"x.{ending}")]
    label = _label_beside("", parts)
    if label is None:
        stems = {ending.rpartition(".")[0]: ending for ending in images}
        labelled = {stem: part for stem in stems if (part := _label_beside(stem, parts))}
        if len(labelled) == len(images):
            return [(parts[stems[stem]], part) for stem, part in labelled.items()]
    images = [ending for ending in images if "." not in ending] or images
    if len(images) > 1:
        raise InputError(
            f"sample '{key}' in '{tar}' holds {len(images)} images, .{images[0]} and .{images[1]}; leave one, or name "
            f"them apart before the first dot, where a sample's key ends"
        )
    if images and label is None:
        at_dot = " (a key ends at the first dot of the name)" if "." in images[0] else ""
        raise InputError(
            f"'{tar}' holds image '{parts[images[0]].name}' but no '{key}.cls' or '{key}.json' beside it{at_dot}; give "
            f"each image its label, or source.labels, or source.format=class_tars where each tar is a class, or unpack "
            f"it where its folders are the classes"
        )
    return [(parts[ending], label) for ending in images if label is not None]


def _label_beside(stem: str, parts: dict[str, Member]) -> Member | None:
    start = f"{stem}." if stem else ""
    return parts.get(f"{start}cls") or parts.get(f"{start}json")


def _label_of(file: BinaryIO, tar: Path, part: Member) -> int:
    """Return the label that a part of a sample says: the text of a ``cls``, or ``label`` of a ``json``."""
    file.seek(part.offset)
    content = file.read(part.num_bytes)
    is_json = part.name.lower().endswith(".json")
    number = _number_in_json(content) if is_json else as_number(_text(content))
    if number is None:
        raise InputError(
            f"'{part.name}' in '{tar}' is {content[:40]!r}, not a class number; write 0, 1, 2, … as text (.cls), or as "
            f"label (.json)"
        )
    return number


def _number_in_json(content: bytes) -> int | None:
    try:
        label = json.loads(content)["label"]
    except (ValueError, KeyError, TypeError):
        return None
    return label if isinstance(label, int) and not isinstance(label, bool) and label >= 0 else None


def _text(content: bytes) -> str:
    return content.decode("ascii", "replace").strip()
