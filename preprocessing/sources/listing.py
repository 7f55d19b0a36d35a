"""Which format a source has, and its listing."""

from itertools import islice
from pathlib import Path

from dit_scale.classes import ClassNames
from dit_scale.config import SourceConfig
from dit_scale.errors import InputError
from preprocessing.sources.archives import members_of, tars_of
from preprocessing.sources.class_tars import list_class_tars
from preprocessing.sources.classes import read_class_names
from preprocessing.sources.folders import list_flat, list_folders
from preprocessing.sources.lists import list_listed
from preprocessing.sources.names import base_of, is_image, is_list, is_tar
from preprocessing.sources.table import Source, Table
from preprocessing.sources.tars import list_plain_tars, list_tars

_MEMBERS_LOOKED_AT = 16


def list_source(config: SourceConfig) -> Source:
    """List the images of a source; raises InputError where there is none to list, or a label is missing."""
    path = Path(config.path)
    if not path.exists():
        raise InputError(
            f"source.path '{path}' does not exist; give a folder of class folders or of webdataset tars, a tar, or a "
            f".jsonl or .csv list"
        )
    format_ = _format_of(path, config)
    _check_fits(path, format_, config)
    given = read_class_names(Path(config.class_names)) if config.class_names else None
    class_names, table = _listed(path, format_, Path(config.labels) if config.labels else None, given)
    if not len(table):
        raise InputError(
            f"source.path '{path}' holds no image; images lie in class folders (CLASS/NAME.jpg, .png, …), in "
            f"webdataset tars with KEY.jpg and KEY.cls, in class tars, or in one folder or tar with source.labels"
        )
    return Source(root_of(config), class_names, table)


def root_of(config: SourceConfig) -> Path:
    """Return the folder that a listing's files are relative to."""
    path = Path(config.path)
    return path if path.is_dir() else path.parent


def _listed(path: Path, format_: str, labels: Path | None, given: ClassNames | None) -> tuple[list[str], Table]:
    if format_ == "folders":
        return list_folders(path, given)
    if format_ == "flat" and labels:
        return list_flat(path, labels, given)
    if format_ == "tars":
        return list_plain_tars(path, labels, given) if labels else list_tars(path, given)
    return list_class_tars(path, given) if format_ == "class_tars" else list_listed(path, given)


def _format_of(path: Path, config: SourceConfig) -> str:
    """Return the format given, or the one that what lies in the path has."""
    if config.format != "auto":
        return config.format
    if path.is_file() and is_list(path.name):
        return "list"
    if path.is_file() or tars_of(path):
        return "class_tars" if not config.labels and _holds_class_tars(path) else "tars"
    return "flat" if config.labels else "folders"


def _holds_class_tars(path: Path) -> bool:
    """Look into the first tar: tars in it, or in a folder images called after it (n01440764_10026.JPEG), are classes.

    Images of other names are not taken for a class: they may be a webdataset's whose labels are missing.
    """
    tar = tars_of(path)[0]
    with tar.open("rb") as file:
        names = [base_of(member.name) for member in islice(members_of(file, tar), _MEMBERS_LOOKED_AT)]
    if any(map(is_tar, names)):
        return True
    return path.is_dir() and bool(names) and all(is_image(name) and name.startswith(f"{tar.stem}_") for name in names)


def _check_fits(path: Path, format_: str, config: SourceConfig) -> None:
    """Raise InputError where a format does not go with the path or with ``source.labels``."""
    if format_ in ("folders", "flat") and not path.is_dir():
        raise InputError(
            f"source.path '{path}' is not a folder of {'class folders' if format_ == 'folders' else 'images'}; give "
            f"source.format=tars for a tar, or source.format=list for a list"
        )
    if format_ == "list" and not (path.is_file() and is_list(path.name)):
        raise InputError(f"source.path '{path}' is not a .jsonl or .csv file; a list is either")
    if format_ == "flat" and not config.labels:
        raise InputError("source.format=flat has no class folders; give source.labels, a file with a line an image")
    if config.labels and format_ not in ("flat", "tars"):
        raise InputError(
            f"source.labels '{config.labels}' goes with a flat folder or a tar of images; '{path}' (source.format="
            f"{format_}) says its labels itself, so leave it out"
        )
