"""Class tars: a tar of images for each class, side by side in a folder or inside one tar, as ImageNet's train.tar."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from dit_scale.classes import ClassNames
from dit_scale.errors import InputError
from preprocessing.sources.archives import Member, members_of, tars_of
from preprocessing.sources.classes import order_classes
from preprocessing.sources.layout import check_class_tar, check_not_splits
from preprocessing.sources.names import LeftOut, base_of, counted_as, is_image, is_tar, to_bytes
from preprocessing.sources.table import Row, Table, table_of
from preprocessing.sources.tars import plain_rows


class _ClassTar(NamedTuple):
    class_name: str
    tar: Path
    inner: Member | None


def list_class_tars(
    path: Path, given: ClassNames | None, is_checked: bool, left_out: LeftOut
) -> tuple[list[str], Table]:
    """List the images by class and name, with the rows and names that the unpacked class folders would give.

    Raises InputError for tars that are probably no classes where ``is_checked``; names that are given are classes.
    """
    tars = sorted(_class_tars(path, left_out), key=lambda found: to_bytes(found.class_name))
    for one, other in pairwise(tars):
        if one.class_name == other.class_name:
            raise InputError(f"'{path}' holds two tars of class '{one.class_name}'; leave one")
    class_names = order_classes([found.class_name for found in tars], given, f"'{path}'")
    is_checked &= given is None
    if is_checked:
        check_not_splits(class_names, path)
    labels = {name: label for label, name in enumerate(class_names)}

    def rows() -> Iterator[Row]:
        for name, tar, inner in tars:
            found = plain_rows(tar, inner, name, labels[name], left_out)
            if is_checked:
                check_class_tar(tar, name, [row.name for row in found])
            yield from found

    return class_names, table_of(rows())


def _class_tars(path: Path, left_out: LeftOut) -> Iterator[_ClassTar]:
    """Yield the classes of a tar of class tars, or of a folder of class tars."""
    inside = {tar: _inner_tars(tar, left_out) for tar in tars_of(path)}
    outer, plain = ([tar for tar, inner in inside.items() if bool(inner) == is_outer] for is_outer in (True, False))
    if outer and plain:
        raise InputError(
            f"'{outer[0]}' holds a tar a class, '{plain[0].name}' beside it does not; give the one tar as source.path"
        )
    for tar, inner_tars in inside.items():
        yield from (_ClassTar(_stem(base_of(inner.name)), tar, inner) for inner in inner_tars)
        if not inner_tars:
            yield _ClassTar(_stem(tar.name), tar, None)


def _inner_tars(tar: Path, left_out: LeftOut) -> list[Member]:
    """Return the tars inside a tar, by its headers; a tar whose first member is none has none."""
    tars: list[Member] = []
    with tar.open("rb") as file:
        for member in members_of(file, tar):
            if is_tar(member.name):
                tars.append(member)
            elif not tars:
                return []
            elif is_image(member.name):
                raise InputError(f"'{tar}' holds tars and image '{member.name}' beside them; take either out")
            else:
                left_out[counted_as(member.name)] += 1
    return tars


def _stem(name: str) -> str:
    return name[: -len(".tar")]
