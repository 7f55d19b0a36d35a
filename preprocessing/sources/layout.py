"""Class folders that are probably none: splits, folders of folders, EDM's blocks; and the folder that was meant."""

import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from dit_scale.errors import InputError, few
from dit_scale.image_files import is_hidden
from preprocessing.sources.ilsvrc import is_wnid
from preprocessing.sources.names import ending_of, is_image, is_tar
from preprocessing.sources.splits import is_split, is_training, splits_among, splits_of_shards

_ONLY_IMAGES = re.compile(
    r"(images?|imgs?|jpe?gs?|jpegimages|pngs?|photos?|pics|pictures|data)([-_ ]?\d+(x\d+)?)?", re.IGNORECASE
)
"""What a folder is called for holding images, not for what they show."""
_LABEL_ENDINGS = frozenset({".txt", ".csv", ".tsv"})
_IMAGES_A_BLOCK = 1000
_MOST_FOLDERS, _MOST_ENTRIES = 5_000, 256
_TAKE = "source.check_labels=false takes"


def check_class_folders(root: Path, names: Sequence[str]) -> None:
    """Raise InputError where the names of class folders are splits, or blocks of numbered images."""
    check_not_splits(names, root)
    if names and _is_block(root / names[-1]):
        raise InputError(
            f"the folders of '{root}' ('{names[0]}' …) are blocks of {_IMAGES_A_BLOCK:,} numbered images, not classes, "
            f"and no dataset.json there holds labels; give source.labels=FILE with a line an image ({_TAKE} the "
            f"blocks as classes)"
        )


def check_not_splits(names: Sequence[str], path: Path) -> None:
    """Raise InputError where all classes, or several of them, are named as splits; one among others may be a train."""
    if splits := splits_among(names):
        named = few(f"'{name}'" for name in splits)
        raise InputError(f"the classes of '{path}' would be splits ({named}){_meant(path)} ({_TAKE} them as classes)")


def check_one_split(tars: Sequence[Path], take: str) -> None:
    """Raise InputError where the names of tars side by side are those of several splits; ``take`` is what allows it."""
    if splits := splits_of_shards(tar.stem for tar in tars):
        named = few(f"'{name}'" for name in splits)
        raise InputError(
            f"the tars in '{tars[0].parent}' belong to several splits ({named}); move those of each split to a folder "
            f"of its own ({take} takes them together)"
        )


def check_says_what_it_shows(root: Path, names: Sequence[str]) -> None:
    """Raise InputError where the one class with images is called images: Tiny ImageNet's val with its annotations."""
    if len(names) != 1 or not _ONLY_IMAGES.fullmatch(names[0]):
        return
    folder = root / names[0]
    files = [name for name in _peek(root)[1] if ending_of(name) in _LABEL_ENDINGS]
    given = root / files[0] if len(files) == 1 else "FILE"
    raise InputError(
        f"the one class folder of '{root}' is '{names[0]}', which says nothing of what the images show; give "
        f"source.path={folder} source.labels={given} with a line an image ({_TAKE} '{names[0]}' as the one class)"
    )


def check_class_folder(root: Path, name: str, paths: Sequence[bytes], others: Sequence[str]) -> None:
    """Raise InputError for a class whose images, ``paths`` below the root, all lie in further folders.

    A folder named as a wnid is a class for certain (Tiny ImageNet's hold a folder ``images``).
    """
    if not paths or is_wnid(name) or any(path.count(b"/") < 2 for path in paths):
        return
    what = f"class folder '{name}' of '{root}' holds no image itself, only folders with images"
    take = f"({_TAKE} '{name}' as a class)"
    beside = next((other for other in others if any(map(is_image, _peek(root / other)[1]))), None)
    if beside is None or is_split(name):
        raise InputError(f"{what}{_meant(root)} {take}")
    below = sorted({f"'{os.fsdecode(path.split(b'/')[1])}'" for path in paths})
    or_else = f", or give source.path={root / name} where they are the classes" if len(below) > 1 else ""
    raise InputError(
        f"{what} ({few(below)}), and '{beside}' beside it holds its own; move the images "
        f"of '{name}' up into it{or_else} {take}"
    )


def check_class_tar(tar: Path, name: str, paths: Sequence[bytes]) -> None:
    """Raise InputError for a class tar whose images, ``paths`` below its name, lie in several folders side by side."""
    folders = sorted({path[: path.rindex(b"/") + 1] for path in paths}, key=len)
    if not is_wnid(name) and not all(folder.startswith(folders[0]) for folder in folders):
        raise InputError(
            f"the tar of class '{name}' in '{tar}' holds no image itself, only folders with images; unpack it and give "
            f"the folder of class folders as source.path ({_TAKE} '{name}' as a class)"
        )


def _meant(path: Path) -> str:
    """Return ``; did you mean …`` for the folder below that looks most like one of classes, or what to give."""
    if path.is_file():
        return "; give what holds the classes of one split"
    found = list(_folders_of_classes(path))
    if not found:
        return "; give a folder with a folder for each class, or one split of it with source.labels=FILE"
    training = [folder for folder in found if any(map(is_training, folder.relative_to(path).parts))]
    likely = (training or found)[0]
    is_likely = bool(training) or len(found) == 1
    return f"; did you mean source.path={likely}?" if is_likely else "; give the folder whose folders are the classes"


def _folders_of_classes(root: Path) -> Iterator[Path]:
    """Yield the folders below that hold tars, wnids, or folders of images that are not splits; higher ones first."""
    waiting = deque([root])
    yielded = {root}
    for _ in range(_MOST_FOLDERS):
        if not waiting:
            return
        folder = waiting.popleft()
        if folder.parent in yielded and folder != root and folder.parent != root:
            continue  # a class of a folder that was found
        folders, files = _peek(folder)
        is_of_wnids = bool(folders) and all(map(is_wnid, folders)) and _holds_image(folder / folders[0])
        if folder not in yielded and (is_of_wnids or any(map(is_tar, files))):
            yielded.add(folder)
            yield folder
        elif any(map(is_image, files)):
            parent = folder.parent
            beside = _peek(parent)[0]
            if parent not in yielded and folder != root and not (any(map(is_split, beside)) or splits_among(beside)):
                yielded.add(parent)
                yield parent
        else:
            waiting.extend(folder / name for name in folders)


def _holds_image(folder: Path) -> bool:
    """Return whether an image is among the first entries of a folder, or of the first folder in it."""
    folders, files = _peek(folder)
    return any(map(is_image, files)) or any(any(map(is_image, _peek(folder / name)[1])) for name in folders[:1])


def _peek(folder: Path) -> tuple[list[str], list[str]]:
    """Return names of the folders, sorted, and of the files among the first entries of a folder."""
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in islice(entries, _MOST_ENTRIES):
                if not is_hidden(entry.name):
                    (folders if entry.is_dir() else files).append(entry.name)
    except OSError:
        return [], []
    return sorted(folders), files


def _is_block(folder: Path) -> bool:
    """Return whether a folder holds numbered images and is named by their thousand: EDM's 00012/img00012345.png.

    FFHQ's are named by the first number (12000/12345.png). A class 00000 may hold 00000.png, too.
    """
    image = next(filter(is_image, _peek(folder)[1]), "")
    found = re.fullmatch(r"(img)?([0-9]{5,8})", image.partition(".")[0])
    if not found or not re.fullmatch(r"[0-9]{5}", folder.name):
        return False
    thousand, block = int(found[2]) // _IMAGES_A_BLOCK, int(folder.name)
    return block in (thousand, thousand * _IMAGES_A_BLOCK) and (block > 0 or found[1] is not None)
