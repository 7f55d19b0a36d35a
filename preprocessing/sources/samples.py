"""Webdataset's samples: members whose names begin alike, and which label goes with which of them."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypedDict

from dit_scale.classes import as_number
from dit_scale.documents import parsed_or_none
from dit_scale.errors import InputError
from preprocessing.sources.archives import Member
from preprocessing.sources.names import LeftOut, counted_as

Split = Callable[[str], tuple[str | None, str | None]]
"""Webdataset's ``base_plus_ext``: a member's key, up to the first dot of its name, and its ending."""
Parts = dict[str, Member]
"""A sample's members by their endings."""
_LONGEST_EXCERPT = 40


class Words(NamedTuple):
    """What sentences about a sample call what is labelled, and what they advise."""

    thing: str
    for_several: str
    for_unlabelled: str


def without_meta(members: Iterable[Member], left_out: LeftOut) -> Iterator[Member]:
    """Leave out webdataset's own notes, ``__NAME__`` at the top."""
    for member in members:
        top, _, _ = member.name.partition("/")
        if len(top) >= 4 and top.startswith("__") and top.endswith("__"):
            left_out["webdataset's notes"] += 1
        else:
            yield member


def put(tar: Path, parts: Parts, ending: str | None, member: Member) -> None:
    """Add a member to its sample; raises InputError where the sample has one with this ending."""
    if (ending := str(ending).lower()) in parts:
        raise InputError(f"'{tar}' holds '{member.name}' twice in one sample; give each its own key")
    parts[ending] = member


def pairs_of(
    tar: Path, key: str, parts: Parts, stem_of: Callable[[str], str | None], words: Words, left_out: LeftOut
) -> list[tuple[str, Member, Member]]:
    """Return a sample's data, KEY.jpg before KEY.more.jpg, with its label, KEY.cls before KEY.json, and its key.

    Where it has no such label, KEY.more.jpg goes with KEY.more.cls: names with dots, whose key ends at the first.
    ``stem_of`` returns of an ending what stands before the data's own (``more``), or None for no data. The other
    members are counted. Raises InputError for data without a label, and for two with one.
    """
    pairs = _paired(tar, key, parts, stem_of, words)
    used = {member for _, *pair in pairs for member in pair}
    left_out.update(counted_as(member.name) for member in parts.values() if member not in used)
    return pairs


def _paired(
    tar: Path, key: str, parts: Parts, stem_of: Callable[[str], str | None], words: Words
) -> list[tuple[str, Member, Member]]:
    stems = {ending: stem for ending in parts if (stem := stem_of(ending)) is not None}
    label = _label_beside("", parts)
    if label is None:
        endings = {stem: ending for ending, stem in stems.items()}
        labelled = {stem: part for stem in endings if (part := _label_beside(stem, parts))}
        if len(labelled) == len(stems):
            return [(f"{key}.{stem}", parts[endings[stem]], part) for stem, part in labelled.items()]
    chosen = [ending for ending, stem in stems.items() if not stem] or list(stems)
    if len(chosen) > 1:
        raise InputError(
            f"sample '{key}' in '{tar}' holds {len(chosen)} {words.thing}s, .{chosen[0]} and .{chosen[1]}; "
            f"{words.for_several}"
        )
    if chosen and label is None:
        at_dot = " (a key ends at the first dot of the name)" if stems[chosen[0]] else ""
        raise InputError(
            f"'{tar}' holds {words.thing} '{parts[chosen[0]].name}' but no '{key}.cls' or '{key}.json' beside it"
            f"{at_dot}; {words.for_unlabelled}"
        )
    return [(key, parts[ending], label) for ending in chosen if label is not None]


def _label_beside(stem: str, parts: Parts) -> Member | None:
    start = f"{stem}." if stem else ""
    return parts.get(f"{start}cls") or parts.get(f"{start}json")


class _Labelled(TypedDict):
    label: int


def label_in(file: BinaryIO, tar: Path, part: Member) -> int:
    """Return the label that a part of a sample says: the text of a ``cls``, or ``label`` of a ``json``."""
    file.seek(part.offset)
    content = file.read(part.num_bytes)
    if part.name.lower().endswith(".json"):
        found = parsed_or_none(content, _Labelled)
        number = None if found is None or found["label"] < 0 else found["label"]
    else:
        number = as_number(_text(content))
    if number is None:
        text = _text(content)
        found_text = f"'{text[:_LONGEST_EXCERPT]}'" if text else "empty"
        raise InputError(
            f"'{part.name}' in '{tar}' is {found_text}, not a class number; write 0, 1, 2, … as text (.cls), or as "
            f"label (.json)"
        )
    return number


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace").strip()
