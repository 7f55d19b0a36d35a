"""YAML and ``key=value`` read by what their fields take: text stays as it was typed, and a wrong kind gets a sentence.

YAML gives a bare word a type by its looks: ``2026_11_27`` is a number to it, ``on`` is true and ``12:30`` is 750. Here
the field decides. What is not text to the field and looks right is left to OmegaConf.
"""

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from omegaconf import OmegaConf
from yaml import MappingNode, Node, ScalarNode, SequenceNode

from dit_scale.config.fields import Range, Spell, element, is_choice, noun_of, unwrap
from dit_scale.errors import InputError, nearest

_TEXT, _WHOLE, _NULL, _MAPPING, _SEQUENCE, _MERGE = (
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "null", "map", "seq", "merge")
)
_PLAIN = {
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "timestamp", "merge", "value")
}
"""What a word without a tag of its own may seem to be."""
_NULLS = ("", "~", "null", "Null", "NULL")
_TRUTHS = ("true", "false", "yes", "no", "on", "off", "y", "n", "1", "0")
_KEY_VALUE = re.compile(r"(?<!\\)=")
_READERS: dict[Any, Callable[[str], Any]] = {
    int: int,
    float: float,
    bool: lambda text: _TRUTHS.index(text.lower()),
}


def read_yaml(text: str, schema: type) -> Any:
    """Return a YAML document as OmegaConf's; raises InputError, or YAMLError where it is none."""
    node = yaml.compose(text, Loader=yaml.SafeLoader) or MappingNode(_MAPPING, [])
    if not isinstance(node, MappingNode):
        raise InputError("it is not a mapping of keys to values; write it as key: value lines")
    return _loaded(_typed(node, schema, "", str))


def read_override(override: str, schema: type) -> Any:
    """Return what ``key.sub=value`` says as OmegaConf's; the value is as typed where the key's field takes text."""
    written, value = _KEY_VALUE.split(override, maxsplit=1)
    key = OmegaConf.to_container(OmegaConf.from_dotlist([f"{written}=0"]))
    names: list[str] = []
    while isinstance(key, dict):
        ((name, key),) = key.items()
        names.append(str(name))
    return _loaded(_typed(_nested(names, _value_node(value, _field_of(schema, names))), schema, "", str))


def read_options(given: dict[str, str | list[str] | dict[str, str]], schema: type, spell: Spell) -> Any:
    """Return options of a command line, by the names of a section's fields."""
    pairs = [(_text(name), _option_node(value, _field_of(schema, [name]))) for name, value in given.items()]
    return _loaded(_typed(MappingNode(_MAPPING, pairs), schema, "", spell))


def is_override(text: str) -> bool:
    """Return whether a word is of the form ``key=value``."""
    return not text.startswith("-") and len(_KEY_VALUE.split(text, maxsplit=1)) == 2


def problem(error: Exception) -> str:
    """Return what is wrong with YAML, and in which line, in a few words."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} in line {error.problem_mark.line + 1}"
    return " ".join(str(error).split())


def refusal(key: str, value: str, kind: Any, metadata: Any) -> InputError:
    """Return the sentence for a value that is not of its field's kind."""
    inner, is_optional = unwrap(kind)
    if is_choice(inner):
        return InputError(f"{key}={value} is not known{nearest(value, map(str, get_args(inner)))}")
    if is_dataclass(inner):
        return InputError(f"{key}={value} is not a section; give a key of it, such as {key}.{fields(inner)[0].name}=…")
    limits: Range | None = metadata.get("range")
    noun = advice = noun_of(inner)
    if inner in (int, float) and limits is not None:
        advice = limits.advice(noun)
    elif get_origin(inner) is tuple:
        advice = "a list such as " + {int: "[1, 2]", str: "[a, b]"}.get(element(inner), "[0.1, 0.2]")
    elif inner is bool:
        advice = "one of them"
    return InputError(f"{key}={value} is not {noun}; give {advice}{', or null' if is_optional else ''}")


# ---------------------------------------------------------------- nodes


def _text(value: str) -> ScalarNode:
    return ScalarNode(_TEXT, value, style='"')


def _from_home(text: str) -> str:
    """Return text that begins with ``~/`` with the home folder for it: a shell sees to this in few places."""
    return str(Path(text).expanduser()) if text.startswith("~/") else text


def _nested(names: list[str], node: Node) -> Node:
    for name in reversed(names):
        node = MappingNode(_MAPPING, [(_text(name), node)])
    return node


def _field_of(schema: Any, names: list[str]) -> Any:
    """Return the type of what lies at a dotted key, None where nothing is known of it."""
    kind = schema
    for name in names:
        kind, _ = unwrap(kind)
        if is_dataclass(kind):
            kind = next((entry.type for entry in fields(kind) if entry.name == name), None)
        else:
            kind = element(kind) if get_origin(kind) is dict else None
    return kind


def _value_node(value: str, kind: Any) -> Node:
    """Return the node of a value on the command line."""
    inner, is_optional = unwrap(kind)
    if value in _NULLS and (is_optional or inner is not str):
        return ScalarNode(_NULL, value)
    if inner in (str, int, float, bool) or is_choice(inner) or (inner is Any and not value.lstrip().startswith("{")):
        return _text(value)
    return yaml.compose(value, Loader=yaml.SafeLoader) or ScalarNode(_NULL, "")


def _option_node(value: str | list[str] | dict[str, str], kind: Any) -> Node:
    if isinstance(value, dict):
        pairs = [(_text(name), _text(part)) for name, part in value.items()]
        return MappingNode(_MAPPING, pairs)
    if isinstance(value, list):
        return SequenceNode(_SEQUENCE, [_text(part) for part in value])
    return _value_node(value, kind)


def _loaded(node: Node) -> Any:
    """Return a node as OmegaConf reads it."""
    return OmegaConf.create(yaml.serialize(node, Dumper=yaml.SafeDumper, allow_unicode=True))


def _typed(node: Node, kind: Any, key: str, spell: Spell, metadata: Any = None) -> Node:
    """Return a node in which text is marked as such; raises InputError where a value is of another kind."""
    inner, is_optional = unwrap(kind)
    origin = get_origin(inner)
    if isinstance(node, ScalarNode) and node.tag != _NULL and origin is tuple and metadata and metadata.get("or_one"):
        return SequenceNode(_SEQUENCE, [_typed(node, element(inner), key, spell, metadata)])
    if isinstance(node, ScalarNode):
        return _typed_scalar(node, inner, is_optional, kind, spell(key), metadata or {})
    if isinstance(node, MappingNode) and (is_dataclass(inner) or origin is dict or inner in (Any, None)):
        return _typed_mapping(node, inner, key, spell, metadata or {})
    if isinstance(node, SequenceNode) and (origin is tuple or inner in (Any, None)):
        return _typed_sequence(node, inner, kind, key, spell, metadata or {})
    raise refusal(spell(key), _source(node), kind, metadata or {})


def _typed_mapping(node: MappingNode, kind: Any, key: str, spell: Spell, metadata: Any) -> Node:
    known = {entry.name: entry for entry in fields(kind)} if is_dataclass(kind) else {}
    pairs, names = [], set()
    for name_node, value in node.value:
        if name_node.tag == _MERGE:
            merged = value.value if isinstance(value, SequenceNode) else [value]
            parts = [_typed(part, kind, key, spell, metadata) for part in merged]
            pairs.append((name_node, SequenceNode(_SEQUENCE, parts)))
            continue
        name = name_node.value
        where = f"{key}.{name}" if key else str(name)
        if not isinstance(name_node, ScalarNode):
            raise InputError(f"{_source(name_node)} is not the name of a setting; write it as key: value")
        if _lacks_blank(node, name_node, value):
            raise InputError(
                f"{spell(key)}={_source(node)} lacks a blank after the colon of '{name}'; write {{name: value, …}}"
            )
        if name in names:
            raise InputError(f"{spell(where)} is given twice; write each key once")
        names.add(name)
        if known:
            of = known[name].type if name in known else None
            value = _typed(value, of, where, spell, known[name].metadata if name in known else None)
        elif kind not in (Any, None):
            value = _typed(value, element(kind), where, spell, metadata)
        pairs.append((_text(name if known else _from_home(name)), value))
    return MappingNode(node.tag, pairs)


def _lacks_blank(node: MappingNode, name: ScalarNode, value: Node) -> bool:
    """Return whether ``{a:1}`` was written, which is one name without a value to YAML."""
    left, _, right = name.value.rpartition(":")
    is_empty = isinstance(value, ScalarNode) and value.value == "" and value.style is None
    return (
        bool(node.flow_style)
        and name.style is None
        and is_empty
        and bool(left and right)
        and not right.startswith("//")
    )


def _typed_sequence(node: SequenceNode, inner: Any, kind: Any, key: str, spell: Spell, metadata: Any) -> Node:
    if inner in (Any, None):
        return node
    parts = get_args(inner)
    if Ellipsis not in parts and len(node.value) != len(parts):
        raise refusal(spell(key), _source(node), kind, metadata)
    values = [
        _typed(value, element(inner, place), f"{key}[{place}]", spell, metadata)
        for place, value in enumerate(node.value)
    ]
    return SequenceNode(node.tag, values, flow_style=node.flow_style)


def _typed_scalar(node: ScalarNode, inner: Any, is_optional: bool, kind: Any, key: str, metadata: Any) -> Node:
    text = node.value
    if node.tag not in _PLAIN:
        return node  # OmegaConf refuses it
    if inner is None or (is_optional and node.tag == _NULL) or text == "???":
        return node
    if "${" in text:
        return _text(text)
    if node.tag == _NULL:
        raise refusal(key, text, kind, metadata)
    if inner is str or inner is Any:
        return _text(_from_home(text))
    if is_choice(inner):
        text = metadata.get("retired", {}).get(text, text)
        if text not in map(str, get_args(inner)):
            raise refusal(key, text, kind, metadata)
        return _text(text) if isinstance(get_args(inner)[0], str) else ScalarNode(_WHOLE, text)
    try:
        _READERS[inner](text)
    except (KeyError, ValueError):
        raise refusal(key, text, kind, metadata) from None
    return _text(text)


def _source(node: Node) -> str:
    """Return a node as one writes it, in one line."""
    if isinstance(node, SequenceNode):
        return f"[{', '.join(map(_source, node.value))}]"
    if isinstance(node, MappingNode):
        return (
            "{" + ", ".join(f"{_source(name)}: {_source(value)}".removesuffix(": ") for name, value in node.value) + "}"
        )
    return str(node.value)
