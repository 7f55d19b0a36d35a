"""`docs/dependencies.md` lists the private names of other packages, each with the test that would notice a change."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from dit_scale import versions
from dit_scale.cli import main

ROOT = Path(__file__).parent.parent
ROWS = re.findall(r"^\| `([\w.]+)` \| .* \| `([\w/.]+)` \|$", (ROOT / "docs" / "dependencies.md").read_text(), re.M)
OUR_OWN = {"_event", "_time"}
"""Private to a class of ours, which another object of the same class reads."""
OF_PYTHON = {"_exit", "_current_frames", "_replace", "_fields"}


@pytest.mark.parametrize("name", [name for name, _ in ROWS])
def test_a_private_name_is_there(name: str) -> None:
    assert _exists(name), f"{name} is gone: see what took its place, then docs/dependencies.md"


@pytest.mark.parametrize("test", sorted({test for _, test in ROWS}))
def test_the_test_that_would_notice_exists(test: str) -> None:
    assert "def test_" in (ROOT / test).read_text()


def test_every_private_name_in_the_code_is_listed() -> None:
    listed = {part for name, _ in ROWS for part in name.split(".")} | {"_hp_mapping"}  # that link_hp_params sets
    used = {name for folder in ("dit_scale", "preprocessing") for name in _private_names_in(ROOT / folder)}
    assert {"_get_norm_groups", "_cpp_lib", "_functorch"} <= used
    assert used - listed - OUR_OWN - OF_PYTHON == set()


def test_a_package_of_another_version_is_told_at_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert versions.untested() == []
    monkeypatch.setattr(versions, "requirements", lambda: [Requirement("torch<2"), Requirement("no-such-package")])
    with pytest.raises(SystemExit):
        main(["status", str(ROOT / "no-run")])
    said = " ".join(caplog.messages)
    assert re.search(r"torch 2\.\d+\.\d+.* is installed, tested is <2, no-such-package is not installed; results", said)
    assert "uv pip install -c constraints.txt -e ." in said


@pytest.mark.parametrize("package", ["torch", "deepspeed", "xformers", "mosaicml-streaming", "diffusers"])
def test_packages_whose_insides_are_used_are_bounded(package: str) -> None:
    bounds = [bound.operator for need in versions.requirements() if need.name == package for bound in need.specifier]
    assert sorted(bounds) == ["<", ">="]


def _exists(name: str) -> bool:
    """Whether a module, an attribute, or an attribute that a class sets on itself has this name."""
    found: Any = None
    parts = name.split(".")
    for index, part in enumerate(parts):
        if hasattr(found, part):
            found = getattr(found, part)
        elif inspect.isclass(found):
            return re.search(rf"\bself\.{part}\b", inspect.getsource(found)) is not None
        else:
            try:
                found = importlib.import_module(".".join(parts[: index + 1]))
            except ImportError:
                return False
    return True


def _private_names_in(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls"):
                names = [node.attr]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] not in (
                "dit_scale",
                "preprocessing",
            ):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [part for alias in node.names for part in alias.name.split(".")]
            yield from (name for name in names if re.match(r"_[a-z]", name))
