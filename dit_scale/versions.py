"""The versions that a result depends on."""

import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

_PACKAGES = ("dit_scale", "torch", "deepspeed", "xformers", "numpy")


@cache
def versions(packages: tuple[str, ...] = _PACKAGES) -> dict[str, str]:
    """Return the versions that a result depends on, and the git commit of the code where there is one."""
    commit = _git_commit()
    return installed(packages) | ({"git_commit": commit} if commit else {})


def installed(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def requirements() -> list[Requirement]:
    """Return the packages that dit_scale requires on this machine, each within the versions that it was tested with."""
    try:
        lines = requires("dit_scale") or []
    except PackageNotFoundError:
        return []
    needed = [Requirement(line) for line in lines]
    return [need for need in needed if need.marker is None or need.marker.evaluate({"extra": ""})]


def untested() -> list[str]:
    """Return what is installed in another version than dit_scale was tested with, or is missing: a phrase each."""
    phrases = []
    for need in requirements():
        try:
            found = version(need.name)
        except PackageNotFoundError:
            phrases.append(f"{need.name} is not installed")
            continue
        if not need.specifier.contains(found, prereleases=True):
            phrases.append(f"{need.name} {found} is installed, tested is {need.specifier}")
    return phrases


def _git_commit() -> str | None:
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
