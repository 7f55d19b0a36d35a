"""Every field of every schema, so that a new one is found by the tests that walk over them."""

from collections.abc import Iterator
from dataclasses import Field, dataclass, fields, is_dataclass
from typing import Any, get_args

import pytest

from dit_scale.config import Config, EncodeConfig, SampleConfig
from dit_scale.config.fields import shown, unwrap
from dit_scale.jobs.submit import Chain

SCHEMAS: dict[type, list[str]] = {
    Config: ["run_dir=r", "data.path=d"],
    EncodeConfig: ["source.path=s", "output=o"],
    Chain: ["encode.command=c", "train.command=c", "sample.command=c", "evaluate.command=c"],
    SampleConfig: [],
}
"""With what each must be given."""


@dataclass(frozen=True)
class Place:
    """A field and where it is."""

    schema: type
    key: str
    entry: Field[Any]
    section: type

    @property
    def needed(self) -> list[str]:
        """Overrides with which the field may be given."""
        prefix = self.key.removesuffix(self.entry.name)
        needed = [word for word in SCHEMAS[self.schema] if not word.startswith(f"{self.key}=")]
        entry, own = self.entry, {entry.name: entry for entry in fields(self.section)}
        conditions = [entry.metadata.get("only_if"), getattr(self.section, "only_if", None)]
        while conditions:
            condition = conditions.pop()
            if condition is None or condition.name == entry.name:
                continue
            controller = own[condition.name]
            if controller.default not in condition.values and not (
                condition.but and controller.default not in condition.but
            ):
                values = ["s3://b/f"] if condition.test else [*condition.values, _another_than_default(controller)]
                needed.append(f"{prefix}{condition.name}={shown(values[0])}")
            conditions.append(controller.metadata.get("only_if"))
        return needed


def _another_than_default(entry: Field[Any]) -> Any:
    if entry.default == ():
        return ["e"]
    limits = entry.metadata.get("range")
    return 2 if limits is None or limits.holds(2) else 0.5


def places() -> Iterator[Place]:
    """Yield every field that is no section."""
    for schema in SCHEMAS:
        yield from _places(schema, schema, "")


def parametrized(chosen: Iterator[Place]) -> Any:
    """Return a parametrization over places."""
    return pytest.mark.parametrize("place", [pytest.param(p, id=f"{p.schema.__name__}:{p.key}") for p in chosen])


def parts(kind: Any) -> set[Any]:
    """Return a type and all those in it."""
    return {kind}.union(*(parts(part) for part in get_args(kind))) if get_args(kind) else {kind}


def _places(schema: type, section: type, prefix: str) -> Iterator[Place]:
    for entry in fields(section):
        kind, _ = unwrap(entry.type)
        if is_dataclass(kind):
            yield from _places(schema, kind, f"{prefix}{entry.name}.")  # type: ignore[arg-type]
        else:
            yield Place(schema, f"{prefix}{entry.name}", entry, section)
