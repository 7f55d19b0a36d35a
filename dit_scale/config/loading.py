"""Settings from a YAML file and ``key.sub=value`` overrides, checked; one sentence for each mistake."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import (
    ConfigKeyError,
    GrammarParseError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
)
from yaml import YAMLError, safe_dump

from dit_scale.config.checking import changed, check_together, check_used, check_values
from dit_scale.config.fields import Spell
from dit_scale.config.typed import is_override, problem, read_options, read_override, read_yaml
from dit_scale.errors import InputError, nearest

T = TypeVar("T")

_INTERPOLATION = (InterpolationResolutionError, UnsupportedInterpolationType)
_NO_INTERPOLATION = "write \\${ for these characters themselves"
_FILE, _COMMAND_LINE = 1, 2
_MARK = "dit_scale: every setting"
_MARKS = re.compile(rf"# ({_MARK}|dit_scale \d\S*)")
"""A comment at the head of a file that this program wrote, in which every setting stands; or there its version."""


def load_config(
    schema: type[T], path: str | Path | None, overrides: list[str] | None = None, *, is_stored: bool = False
) -> T:
    """Return ``schema`` filled from a YAML file and ``key.sub=value`` overrides, later ones winning.

    ``is_stored`` says that this program wrote the file, in which what has no effect may stand, as in a run folder's own
    config.yaml: an older version may have taken it. Raises InputError for a missing file, an unknown key (naming the
    nearest), a value of the wrong type or out of range, a key that has no effect with the others, or a mandatory key
    that nobody gave.
    """
    parts: list[Any] = []
    given: dict[str, int] = {}
    if path is not None:
        text, part = _read_file(Path(path), schema)
        parts.append(part)
        if not (is_stored or (_is_resolved(text) and _lies_in_a_run(Path(path)))):
            given = dict.fromkeys(changed(_filled(schema, parts)) if _is_resolved(text) else _keys(_plain(part)), _FILE)
    for override in overrides or []:
        if not is_override(override):
            raise InputError(f"override '{override}' is not of the form key.sub=value; write e.g. train.steps=1000")
        parts.append(_read_override(override, schema))
        given |= dict.fromkeys(_keys(_plain(parts[-1])), _COMMAND_LINE)
    filled = _filled(schema, parts)
    check_values(filled)
    config = check_used(filled, given)
    check_together(config)
    return config


def load_options(
    schema: type[T], given: dict[str, str | list[str] | dict[str, str]], spell: Spell, *, are_all: bool = False
) -> T:
    """Return a section filled from options of a command, by its fields' names; ``spell`` says what they are called.

    ``are_all`` says that nothing else is chosen elsewhere; then what has no effect with the others is refused, too.
    """
    config = _filled(schema, [read_options(given, schema, spell)])
    check_values(config, spell)
    if are_all:
        config = check_used(config, dict.fromkeys(given, _COMMAND_LINE), spell=spell)
    check_together(config, spell)
    return config


def config_from(schema: type[T], values: dict[str, Any]) -> T:
    """Return ``schema`` filled from plain dictionaries, such as ``resolved`` makes; what was right once is taken."""
    return OmegaConf.to_object(OmegaConf.merge(_structured(schema), _of_today(schema, values)))  # type: ignore


def _of_today(schema: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored values, with the choices that have taken the place of retired ones."""
    renewed = dict(values)
    for entry in fields(schema):
        value = values.get(entry.name)
        if is_dataclass(entry.type) and isinstance(value, Mapping):
            renewed[entry.name] = _of_today(entry.type, value)  # type: ignore[arg-type]
        elif isinstance(value, str):
            renewed[entry.name] = entry.metadata.get("retired", {}).get(value, value)
    return renewed


def resolved(config: Any) -> dict[str, Any]:
    """Return a configuration as plain dictionaries, lists and numbers."""
    return asdict(config)


def to_yaml(config: Any, head: Iterable[str] = (_MARK,)) -> str:
    """Return a configuration as YAML that ``load_config`` reads back to an equal one.

    A comment of the head must begin with ``dit_scale``, which tells that what has no effect may stand at its default.
    """
    return "".join(f"# {line}\n" for line in head) + safe_dump(
        OmegaConf.to_container(OmegaConf.structured(config)), sort_keys=False
    )


def get(config: Any, dotted_key: str) -> Any:
    """Return the value at ``a.b.c``."""
    for name in dotted_key.split("."):
        config = getattr(config, name)
    return config


@cache
def _structured(schema: type) -> Any:
    """Return the schema as OmegaConf's; merging copies it."""
    return OmegaConf.structured(schema)


def _filled(schema: type[T], parts: list[Any]) -> T:
    """Return ``schema`` with the parts merged into it, later ones winning."""
    try:
        return OmegaConf.to_object(OmegaConf.merge(_structured(schema), *parts))  # type: ignore
    except MissingMandatoryValue as error:
        raise InputError(
            f"'{error.full_key}' has no value and no default; set it in the config or give {error.full_key}=…"
        ) from error
    except ConfigKeyError as error:
        raise InputError(f"unknown key '{error.full_key}'{_nearest_key(schema, str(error.full_key))}") from error
    except OmegaConfBaseException as error:
        where = f"'{error.full_key}': " if error.full_key else ""
        said = str(error).splitlines()[0]
        fix = f"; {_NO_INTERPOLATION}" if isinstance(error, _INTERPOLATION) else ""
        raise InputError(f"{where}{said}{fix}") from error


def _is_resolved(text: str) -> bool:
    """Return whether a file begins with this program's mark among its comments."""
    head = takewhile(lambda line: line.startswith("#"), text.splitlines())
    return any(map(_MARKS.fullmatch, head))


def _lies_in_a_run(path: Path) -> bool:
    return path.name == "config.yaml" and path.with_name("checkpoints").is_dir()


def _read_file(path: Path, schema: type) -> tuple[str, Any]:
    """Return a file's text, and what it says as OmegaConf's."""
    path = _find(path)
    try:
        text = path.read_text(encoding="utf-8")
        return text, read_yaml(text, schema)
    except InputError as error:
        raise InputError(f"config '{path}': {error}") from error
    except GrammarParseError as error:
        raise InputError(f"config '{path}' holds ${{…}} that cannot be read; {_NO_INTERPOLATION}") from error
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError, RecursionError) as error:
        raise InputError(
            f"config '{path}' is not valid YAML ({problem(error)}); write it as key: value lines"
        ) from error


def _read_override(override: str, schema: type) -> Any:
    try:
        return read_override(override, schema)
    except GrammarParseError as error:
        raise InputError(f"override '{override}' holds ${{…}} that cannot be read; {_NO_INTERPOLATION}") from error
    except (YAMLError, OmegaConfBaseException) as error:
        raise InputError(
            f"override '{override}' cannot be read ({problem(error)}); write it like key.sub=value, a list like "
            f"key=[1, 2], folders like data.path={{a: 1, b: 2}}"
        ) from error


def _plain(part: Any) -> dict[str, Any]:
    return OmegaConf.to_container(part)  # type: ignore[return-value]


def _find(path: Path) -> Path:
    """Return a YAML file by its path, or by its name among the recipes that come with the package."""
    package = Path(__file__).parent.parent
    recipes = [package / "configs", package.parent / "configs"]
    for candidate in (path, *(folder / f"{path.name.removesuffix('.yaml')}.yaml" for folder in recipes)):
        if candidate.is_file():
            return candidate
    known = sorted(file.stem for folder in recipes for file in folder.glob("*.yaml"))
    raise InputError(
        f"config '{path}' is not a file, nor a recipe that comes with dit_scale{nearest(path.name, known)}"
    )


def _nearest_key(schema: type, full_key: str) -> str:
    """Name the known key closest to an unknown one, over the whole tree when its own section has none."""
    known = list(_keys(OmegaConf.to_container(_structured(schema))))
    section, _, name = full_key.rpartition(".")
    siblings = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == section}
    elsewhere = [key for key in known if key.rpartition(".")[2] == name]
    hint = nearest(name, siblings) if siblings else nearest(full_key, known)
    return f"; did you mean '{elsewhere[0]}'?" if elsewhere and "did you mean" not in hint else hint


def _keys(tree: Any, prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{name}.")
