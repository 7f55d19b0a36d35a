"""The versions that a result depends on."""

import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("dit_scale", "torch", "deepspeed", "xformers", "numpy")


@cache
def versions(packages: tuple[str, ...] = _PACKAGES) -> dict[str, str]:
    """Return the versions that a result depends on, and the git commit of the code where there is one."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    commit = _git_commit()
    return found | ({"git_commit": commit} if commit else {})


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
