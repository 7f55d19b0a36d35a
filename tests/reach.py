"""Which code can run for which command, by reading: references between functions, methods and constants of packages.

A method counts as called where its class is reached and its name is asked of any object. So more is reached than
really runs, and nothing less, but for names that are made at run time.
"""

import ast
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

Unit = tuple[str, str]
"""A module and a name that it defines at its top, or CLASS.METHOD."""

_Function = ast.FunctionDef | ast.AsyncFunctionDef


class Module:
    """One file: what it defines and what it imports."""

    def __init__(self, name: str, path: Path):
        self.name, self.tree = name, ast.parse(path.read_text())
        self.units: dict[str, list[ast.AST]] = {}
        for statement in self.tree.body:
            for defined in _defined(statement):
                self.units.setdefault(defined, []).append(statement)
            if isinstance(statement, ast.ClassDef):
                self._take_apart(statement)

    def methods(self, name: str) -> Iterator[str]:
        """Yield the methods of a class."""
        yield from (unit.partition(".")[2] for unit in self.units if unit.startswith(f"{name}."))

    @cached_property
    def imports(self) -> dict[str, tuple[str, str | None]]:
        """Each imported name: its module, and what of it (None for the module itself)."""
        found: dict[str, tuple[str, str | None]] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
            elif isinstance(node, ast.Import):
                found |= {alias.asname: (alias.name, None) for alias in node.names if alias.asname}
        return found

    def _take_apart(self, statement: ast.ClassDef) -> None:
        methods = [part for part in statement.body if isinstance(part, _Function)]
        others = [part for part in statement.body if not isinstance(part, _Function)]
        self.units[statement.name] = [*statement.bases, *statement.decorator_list, *others]
        for method in methods:
            self.units.setdefault(f"{statement.name}.{method.name}", []).append(method)


class Code:
    """All modules of some packages."""

    def __init__(self, root: Path, packages: Iterable[str]):
        self.modules: dict[str, Module] = {}
        for path in (path for package in packages for path in sorted((root / package).rglob("*.py"))):
            name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            self.modules[name] = Module(name, path)

    def reached_from(self, roots: Iterable[Unit]) -> set[Unit]:
        """Return all that these may run."""
        reached: set[Unit] = set()
        asked: set[str] = set()
        left = set(roots)
        while left:
            reached |= left
            asked |= {node.attr for unit in left for node in self._nodes(unit) if isinstance(node, ast.Attribute)}
            left = {found for unit in left for found in self._referenced(unit)}
            left |= {unit for known in reached for unit in self._called(known, asked)}
            left -= reached
        return reached

    def _called(self, unit: Unit, asked: set[str]) -> Iterator[Unit]:
        for method in self.modules[unit[0]].methods(unit[1]):
            if method in asked or method.startswith("__"):
                yield unit[0], f"{unit[1]}.{method}"

    def _nodes(self, unit: Unit) -> Iterator[ast.AST]:
        for statement in self.modules[unit[0]].units[unit[1]]:
            yield from ast.walk(statement)

    def _referenced(self, unit: Unit) -> Iterator[Unit]:
        module = self.modules[unit[0]]
        for node in self._nodes(unit):
            if isinstance(node, ast.Name) and (found := self._resolve(module.name, node.id)):
                yield found
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                origin, what = module.imports.get(node.value.id, ("", None))
                if found := self._resolve(origin if what is None else f"{origin}.{what}", node.attr):
                    yield found

    def _resolve(self, module: str, name: str) -> Unit | None:
        """Return where a name in a module is defined, through packages that hand it on; None for others' names."""
        if module not in self.modules:
            return None
        if name in self.modules[module].units:
            return module, name
        origin, what = self.modules[module].imports.get(name, ("", None))
        return None if what is None or (origin, what) == (module, name) else self._resolve(origin, what)


def _defined(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.ClassDef | _Function):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return [node.id for target in targets if target for node in ast.walk(target) if isinstance(node, ast.Name)]
