"""Tars of images: webdataset's samples with their labels, or plain images and a file of labels."""

from collections.abc import Iterator
from itertools import groupby, pairwise
from pathlib import Path

from dit_scale.classes import ClassNames
from dit_scale.errors import InputError
from preprocessing.sources.archives import Member, members_of, tars_of
from preprocessing.sources.classes import name_numbers, number_labels
from preprocessing.sources.labels import read_labels
from preprocessing.sources.names import LeftOut, counted_as, is_image, to_bytes
from preprocessing.sources.samples import Split, Words, label_in, pairs_of, put, without_meta
from preprocessing.sources.table import Row, Table, table_of

_WORDS = Words(
    "image",
    "leave one, or name them apart before the first dot, where a sample's key ends",
    "give each image its label, or source.labels, or source.format=class_tars where each tar is a class, or unpack it "
    "where its folders are the classes",
)


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


def _samples_of(tar: Path, split: Split, left_out: LeftOut) -> Iterator[Row]:
    """Yield a row for each labelled image of a sample: members one after another whose names begin alike."""
    with tar.open("rb") as file:
        named = (
            (*split(member.name), member) for member in without_meta(members_of(file, tar, None, left_out), left_out)
        )
        for key, sample in groupby(named, key=lambda item: item[0]):
            if key is None:  # a name without a dot
                left_out.update(counted_as(member.name) for _, _, member in sample)
                continue
            parts: dict[str, Member] = {}
            for _, ending, member in sample:
                put(tar, parts, ending, member)
            for _, image, part in pairs_of(tar, key, parts, _stem_of, _WORDS, left_out):
                name = to_bytes(f"{tar.name}/{image.name}")
                yield Row(to_bytes(tar.name), name, image.offset, image.num_bytes, label_in(file, tar, part))


def _stem_of(ending: str) -> str | None:
    """Return what stands between a sample's key and an image's own ending, or None for what is no image."""
    return ending.rpartition(".")[0] if is_image(f"x.{ending}") else None
