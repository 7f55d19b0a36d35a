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
from preprocessing.sources.names import ending_of, is_image, to_bytes
from preprocessing.sources.table import Row, Table, table_of

_Split = Callable[[str], tuple[str | None, str | None]]


def list_tars(path: Path, given: ClassNames | None) -> tuple[list[str], Table]:
    """List the samples of webdataset tars: tars by name, samples as they come; labels are numbers."""
    from webdataset.tariterators import base_plus_ext  # imports torch, which processes that decode must not

    table = table_of(row for tar in tars_of(path) for row in _samples_of(tar, base_plus_ext))
    return name_numbers(int(table["label"].max(initial=-1)), given, f"'{path}'"), table


def list_plain_tars(path: Path, labels: Path, given: ClassNames | None) -> tuple[list[str], Table]:
    """List the images of tars by tar and name, with their labels from a file; what else the tars hold is ignored."""
    rows = [row for tar in tars_of(path) for row in plain_rows(tar, None, tar.name, -1)]
    numbers, class_names = number_labels(read_labels(labels, [row.name for row in rows]), given, f"'{labels}'")
    return class_names, table_of(row._replace(label=label) for row, label in zip(rows, numbers, strict=True))


def plain_rows(tar: Path, inner: Member | None, prefix: str, label: int) -> list[Row]:
    """Return the images of a tar, or of a tar inside it, sorted by name; all get one label."""
    file_name, start = to_bytes(tar.name), to_bytes(prefix) + b"/"
    with tar.open("rb") as file:
        rows = [
            Row(file_name, start + to_bytes(member.name.removeprefix("./")), member.offset, member.num_bytes, label)
            for member in members_of(file, tar, inner)
            if is_image(member.name)
        ]
    rows.sort()
    for one, other in pairwise(rows):
        if one.name == other.name:
            raise InputError(
                f"'{tar}' holds image '{one.name.decode('utf-8', 'backslashreplace')}' twice; make the tar anew"
            )
    return rows


def _samples_of(tar: Path, split: _Split) -> Iterator[Row]:
    """Yield a row for each sample with an image: members one after another whose names begin alike."""
    with tar.open("rb") as file:
        named = ((*split(member.name), member) for member in _without_meta(members_of(file, tar)))
        for key, sample in groupby((item for item in named if item[0] is not None), key=lambda item: item[0]):
            parts: dict[str, Member] = {}
            for _, ending, member in sample:
                if (ending := str(ending).lower()) in parts:
                    raise InputError(f"'{tar}' holds '{member.name}' twice in one sample; give each its own key")
                parts[ending] = member
            if image := _image_of(tar, str(key), parts):
                name = to_bytes(f"{tar.name}/{image.name}")
                yield Row(to_bytes(tar.name), name, image.offset, image.num_bytes, _label_of(file, tar, image, parts))


def _without_meta(members: Iterable[Member]) -> Iterator[Member]:
    """Leave out webdataset's own notes, ``__NAME__`` at the top."""
    for member in members:
        top, _, _ = member.name.partition("/")
        if not (len(top) >= 4 and top.startswith("__") and top.endswith("__")):
            yield member


def _image_of(tar: Path, key: str, parts: dict[str, Member]) -> Member | None:
    """Return a sample's image: KEY.jpg before KEY.more.jpg; raises InputError where there are two alike."""
    images = [ending for ending in parts if is_image(f"x.{ending}")]
    images = [ending for ending in images if "." not in ending] or images
    if len(images) > 1:
        raise InputError(
            f"sample '{key}' in '{tar}' holds {len(images)} images, .{images[0]} and .{images[1]}; leave one"
        )
    return parts[images[0]] if images else None


def _label_of(file: BinaryIO, tar: Path, image: Member, parts: dict[str, Member]) -> int:
    """Return a sample's label: the text of its ``cls``, else ``label`` of its ``json``."""
    part = parts.get("cls") or parts.get("json")
    if part is None:
        key = image.name.removesuffix(ending_of(image.name))
        raise InputError(
            f"'{tar}' holds image '{image.name}' but no '{key}.cls' or '{key}.json' beside it; give each image its "
            f"label, or source.labels, or source.format=class_tars where each tar is a class"
        )
    file.seek(part.offset)
    content = file.read(part.num_bytes)
    number = _number_in_json(content) if part is not parts.get("cls") else as_number(_text(content))
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
