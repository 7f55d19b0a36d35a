"""Files of class names: a name a line, numbered lines, lines of wnids, and dictionaries or lists."""

import ast
import logging
import re
from pathlib import Path
from typing import Any

from dit_scale.classes import ClassNames, as_number
from dit_scale.documents import parsed_or_none
from dit_scale.errors import InputError

log = logging.getLogger(__name__)

_BRACKETS = ("{", "[")
_NUMBERED_LINE = re.compile(r"([0-9]{1,9})(?:\s*[:,;]\s*|\s+)(\S.*)")
_WNID_LINE = re.compile(r"(n[0-9]{8})(?:\s*[:,;]\s*|\s+)\S.*")
_NAME_A_LINE = "write a name a line, in the order of the labels"


def read_names(path: Path, option: str, errors: str = "strict", otherwise: str = "") -> ClassNames:
    """Read class names, a name a line, in the order of the labels; ``option`` is who asked for the file.

    Lines that all begin with their label, or with a wnid, and a JSON or Python dictionary or list are read as meant,
    with a line in the log. Raises InputError where the file is no text, holds no name or leaves a label without one.
    """
    try:
        text = path.read_text("utf-8-sig", errors)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(
            f"{option} '{path}' cannot be read ({reason}); give a text file with a name a line{otherwise}"
        ) from error
    where = f"{option} '{path}'"
    names = _in_brackets(text, where) if text.lstrip()[:1] in _BRACKETS else _in_lines(text.rstrip(), where)
    return ClassNames(name.strip() for name in names)


def _in_lines(text: str, where: str) -> list[str]:
    """Return the names of a file's lines, which may begin with numbers, or with wnids and more names."""
    lines = [line.strip() for line in text.split("\n")] if text else []
    if not lines:
        raise InputError(f"{where} holds no name; write one a line")
    if "" in lines:
        raise InputError(
            f"line {lines.index('') + 1} of {where} is blank, and a line's place is its label; write the name there, "
            f"or take the line out"
        )
    if all(wnids := [_WNID_LINE.fullmatch(line) for line in lines]):
        log.info("%s: the wnid that each line begins with is the name, what follows it is left out", where)
        return [match[1] for match in wnids if match]
    if all(numbered := [_NUMBERED_LINE.fullmatch(line) for line in lines]):
        named = {int(match[1]): match[2] for match in numbered if match}
        if sorted(named) == list(range(len(lines))):
            log.info("%s: the number that each line begins with is the label, what follows it the name", where)
            return [named[label] for label in range(len(lines))]
        if sorted(named) == list(range(1, len(lines) + 1)):
            raise InputError(f"the lines of {where} are numbered from 1, and labels count from 0; {_NAME_A_LINE}")
    labels = [int(match[1]) for match in numbered[1:] if match]
    if len(labels) > 1 and not numbered[0] and sorted(labels) in [list(range(n, len(lines) - 1 + n)) for n in (0, 1)]:
        raise InputError(
            f"all lines of {where} but the first, '{lines[0]}', are numbered, and each line would be a name; take the "
            f"first one out"
        )
    return lines


def _in_brackets(text: str, where: str) -> list[str]:
    """Return the names of a list, or of a dictionary from labels to names or from names to labels."""
    found: Any = parsed_or_none(text, Any)
    if found is None:
        try:
            found = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise InputError(
                f"{where} begins with '{text.lstrip()[0]}' and is no whole dictionary or list of JSON or Python; "
                f"{_NAME_A_LINE}"
            ) from None
    if isinstance(found, set):
        raise InputError(f"{where} is a set of Python, which has no order; write [ ] for {{ }}, or {_NAME_A_LINE}")
    log.info("%s: read as a %s of class names", where, "dictionary" if isinstance(found, dict) else "list")
    pairs = list(found.items() if isinstance(found, dict) else enumerate(found))
    if pairs and all(type(value) is int for _, value in pairs):  # from names to labels, as torchvision's class_to_idx
        pairs = [(label, name) for name, label in pairs]
    named = {as_number(str(label)): _first(name) for label, name in pairs}
    if not pairs or not all(isinstance(name, str) and name.strip() for name in named.values()):
        raise InputError(f"{where} is no dictionary of labels and names, nor a list of names; {_NAME_A_LINE}")
    if set(named) != set(range(len(pairs))):
        raise InputError(
            f"{where} does not give each label from 0 to {len(pairs) - 1} one name; number the {len(pairs)} names so, "
            f"or {_NAME_A_LINE}"
        )
    return [named[label] for label in range(len(pairs))]


def _first(name: Any) -> Any:
    """Return the first of several names: Keras's imagenet_class_index.json has wnid and name."""
    return name[0] if isinstance(name, list | tuple) and name else name
