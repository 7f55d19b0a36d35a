"""Shard folders as one: one folder's labels as they are; of several, one set of classes told apart by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from dit_scale.classes import ClassNames, as_number, in_words
from dit_scale.data.manifest import Manifest
from dit_scale.errors import InputError, nearest

Renamed = Mapping[str, Mapping[str, str]]
"""``{folder: {class name there, or its label: class name here}}``."""


@dataclass(frozen=True)
class Mixture:
    """What folders have in common."""

    class_names: ClassNames
    """The first folder's, then what the others add."""
    labels: tuple[tuple[int, ...], ...]
    """For each folder, the label here of each of its own labels."""
    names: tuple[str, ...]
    """What each folder is called in keys."""


def mix(manifests: Mapping[str, Manifest], renamed: Renamed | None = None) -> Mixture:
    """Return what folders have in common; raises InputError where their latents or classes do not go together."""
    renamed = renamed or {}
    for place in renamed:
        if place not in manifests:
            raise InputError(
                f"data.class_names renames classes of '{place}', which is not in data.path{nearest(place, manifests)}"
            )
    if len(manifests) == 1 and not any(renamed.values()):
        (names,) = (manifest.class_names for manifest in manifests.values())
        return Mixture(names, (tuple(range(len(names))),), _short_names(list(manifests)))
    own_names = {place: _names_here(place, manifests[place], renamed.get(place, {})) for place in manifests}
    if len(manifests) > 1:
        _check_latents(manifests)
        _check_numbered(manifests, renamed)
        _check_alike(own_names)
    class_names = ClassNames(dict.fromkeys(name for names in own_names.values() for name in names))
    return Mixture(
        class_names,
        tuple(tuple(class_names.labels_named(name)[0] for name in names) for names in own_names.values()),
        _short_names(list(manifests)),
    )


def _names_here(place: str, manifest: Manifest, renamed: Mapping[str, str]) -> list[str]:
    """Return the name here of each label; raises InputError where two classes of the folder cannot be told apart."""
    new_names = {_label_there(place, key, manifest.class_names): name for key, name in renamed.items()}
    for name, labels in manifest.class_names.twice().items():
        left = [label for label in labels if label not in new_names]
        if len(left) > 1:
            raise InputError(
                f"'{place}' has {len(left)} classes named '{name}' ({in_words(left)}), and a mixture tells classes "
                f"apart by name; give each a name by data.class_names={{'{place}': {{'{left[0]}': NAME, …}}}}"
            )
    return [new_names.get(label, name) for label, name in enumerate(manifest.class_names)]


def _label_there(place: str, key: str, names: ClassNames) -> int:
    """Return the label that a key of data.class_names means: a name there, or else a label."""
    labels = names.labels_named(key)
    if not labels and (number := as_number(key)) is not None and number < len(names):
        return number
    if len(labels) == 1:
        return labels[0]
    what = f"data.class_names renames '{key}' of '{place}', which"
    if labels:
        raise InputError(f"{what} is the name of {in_words(labels)} there; give the label")
    raise InputError(f"{what} has no such class{nearest(key, names)}")


def _check_latents(manifests: Mapping[str, Manifest]) -> None:
    (first_place, first), *others = manifests.items()
    for place, other in others:
        for what, ours, theirs in (
            ("autoencoder", first.autoencoder["sha256"][:12], other.autoencoder["sha256"][:12]),
            ("latents", first.latents, other.latents),
        ):
            if ours != theirs:
                raise InputError(
                    f"'{place}' has {what} {theirs}, '{first_place}' has {ours}; a mixture takes folders with "
                    f"the same: encode one of them again"
                )


def _check_numbered(manifests: Mapping[str, Manifest], renamed: Renamed) -> None:
    """Refuse classes that are only numbers: another folder's number 7 need not be the same thing."""
    for place, manifest in manifests.items():
        numbers = [name for name in manifest.class_names if name.isdigit() and name not in renamed.get(place, {})]
        if numbers:
            raise InputError(
                f"class '{numbers[0]}' of '{place}' is a number, which says nothing of what it is in another folder; "
                f"name it by data.class_names={{'{place}': {{'{numbers[0]}': NAME, …}}}}"
            )


def _check_alike(names_by_folder: Mapping[str, list[str]]) -> None:
    """Refuse names of different folders that differ in case or blanks only: they clash, or they are one class."""
    seen: dict[str, str] = {}
    for names in names_by_folder.values():
        plain = {name: "".join(name.split()).casefold().replace("_", "").replace("-", "") for name in names}
        for name, alike in plain.items():
            if seen.get(alike, name) != name:
                raise InputError(
                    f"classes '{seen[alike]}' and '{name}' are too much alike; make them one, or tell them apart, by "
                    f"data.class_names"
                )
        seen |= {alike: name for name, alike in plain.items()}


def _short_names(places: list[str]) -> tuple[str, ...]:
    """Return the last part of each path, or the whole path where two end alike."""
    names = [PurePosixPath(place).name for place in places]
    return tuple(names) if len(set(names)) == len(names) else tuple(places)
