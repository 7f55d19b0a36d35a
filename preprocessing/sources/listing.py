"""Which format a source has, its listing, and whether that can be meant."""

from itertools import islice
from pathlib import Path

from dit_scale.classes import ClassNames
from dit_scale.config import SourceConfig
from dit_scale.errors import InputError
from dit_scale.image_files import is_hidden
from preprocessing.sources.archives import members_of, tars_of
from preprocessing.sources.class_tars import list_class_tars
from preprocessing.sources.classes import check_counted_from_zero, read_class_names
from preprocessing.sources.folders import list_flat, list_folders
from preprocessing.sources.foreign import foreign_file
from preprocessing.sources.ilsvrc import check_ground_truth
from preprocessing.sources.layout import check_not_splits, check_one_split, check_says_what_it_shows
from preprocessing.sources.lists import list_in, list_listed
from preprocessing.sources.names import LeftOut, base_of, counted_as, is_image, is_tar
from preprocessing.sources.summary import nothing_in
from preprocessing.sources.table import Source, Table
from preprocessing.sources.tars import list_plain_tars, list_tars

_MEMBERS_LOOKED_AT = 16
_TAKE = "source.check_labels=false"


def list_source(config: SourceConfig) -> Source:
    """List the images of a source; raises InputError where there is none to list, or a label is missing.

    Classes and labels that are probably not meant are refused, too, unless ``check_labels`` is off.
    """
    path = Path(config.path)
    if not path.exists():
        raise InputError(
            f"source.path '{path}' does not exist; give a folder of class folders or of webdataset tars, a tar, or a "
            f".jsonl or .csv list"
        )
    format_ = _format_of(path, config)
    _check_fits(path, format_, config)
    given = read_class_names(Path(config.class_names)) if config.class_names else None
    if format_ == "tars" and config.check_labels:
        check_one_split(tars_of(path), _TAKE)
    left_out = _beside_tars(path) if format_ in ("tars", "class_tars") and path.is_dir() else LeftOut()
    class_names, table = _listed(path, format_, config, given, left_out)
    if not len(table):
        raise InputError(nothing_in(path, left_out))
    source = Source(root_of(config), class_names, table, left_out)
    if config.check_labels:
        check_ground_truth(source, Path(config.labels or path))
        if given is None:
            _check_meant(source, format_, Path(config.labels or path))
    return source


def root_of(config: SourceConfig) -> Path:
    """Return the folder that a listing's files are relative to."""
    path = Path(config.path)
    return path if path.is_dir() else path.parent


def _listed(
    path: Path, format_: str, config: SourceConfig, given: ClassNames | None, left_out: LeftOut
) -> tuple[list[str], Table]:
    labels = Path(config.labels) if config.labels else None
    if format_ == "folders":
        return list_folders(path, given, config.check_labels, left_out)
    if format_ == "flat" and labels:
        return list_flat(path, labels, given, left_out)
    if format_ == "tars":
        return list_plain_tars(path, labels, given, left_out) if labels else list_tars(path, given, left_out)
    if format_ == "class_tars":
        return list_class_tars(path, given, config.check_labels, left_out)
    return list_listed(list_in(path) or path, given, left_out)


def _beside_tars(folder: Path) -> LeftOut:
    """Count what lies beside the tars in a folder; folders are not looked into."""
    entries = (entry for entry in folder.iterdir() if not is_tar(entry.name) or is_hidden(entry.name))
    return LeftOut("folders beside the tars" if entry.is_dir() else counted_as(entry.name) for entry in entries)


def _check_meant(source: Source, format_: str, path: Path) -> None:
    """Raise InputError for classes that are splits or only images, and for labels that count from 1."""
    counts = source.images_per_class()
    present = [name for name, count in zip(source.class_names, counts, strict=True) if count]
    check_not_splits(present, path)
    if format_ == "folders":
        check_says_what_it_shows(path, present)
    if format_ in ("flat", "tars", "list") and source.class_names[0] == "0":
        check_counted_from_zero(counts, f"'{path}'", _TAKE)


def _format_of(path: Path, config: SourceConfig) -> str:
    """Return the format given, or the one that what lies in the path has."""
    if config.format != "auto":
        return config.format
    if list_in(path) and not (config.labels or (path.is_dir() and tars_of(path))):
        return "list"
    if path.is_file() and (foreign := foreign_file(path)):
        raise InputError(foreign)
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
    if format_ == "list" and not list_in(path):
        raise InputError(f"source.path '{path}' is not a .jsonl or .csv file or EDM's dataset.json; a list is either")
    if format_ == "flat" and not config.labels:
        raise InputError("source.format=flat has no class folders; give source.labels, a file with a line an image")
    if config.labels and format_ not in ("flat", "tars"):
        raise InputError(
            f"source.labels '{config.labels}' goes with a flat folder or a tar of images; '{path}' (source.format="
            f"{format_}) says its labels itself, so leave it out"
        )
