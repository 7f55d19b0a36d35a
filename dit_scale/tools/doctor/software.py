"""Versions against those that are tested together, and whether wandb can work as it is set."""

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.version import Version

import dit_scale
from dit_scale import memory_efficient
from dit_scale.config import WandbConfig
from dit_scale.tools.doctor.finding import Finding, Status
from dit_scale.training.metrics import wandb_mode
from dit_scale.versions import requirements, untested

_SHOWN = ("torch", "deepspeed", "xformers")


def versions() -> Finding:
    """Compare installed versions with what the package requires and, in a checkout, with constraints.txt."""
    installed = _installed()
    broken = untested()
    others = _other_than_tested(installed)
    figure = ", ".join(
        [f"python {platform.python_version()}", *(f"{name} {installed.get(name, 'none')}" for name in _SHOWN)]
    )
    details = {"python": platform.python_version(), **installed}
    if broken:
        way_out = "uv pip install -c constraints.txt -e ."
        return Finding("versions", Status.FAIL, f"{figure}; {', '.join(broken)}", way_out, details)
    if unloaded := memory_efficient.obstacle():
        return Finding("versions", Status.WARN, f"{figure}; {unloaded.reason}", unloaded.fix, details)
    if others:
        way_out = "install the set that is tested together: uv pip install -c constraints.txt -e ."
        return Finding("versions", Status.WARN, f"{figure}; {', '.join(others)}", way_out, details)
    return Finding("versions", Status.PASS, figure, "", details)


def wandb(settings: WandbConfig) -> Finding:
    """Say how wandb will log, and whether it can."""
    mode = wandb_mode(settings)
    if mode == "disabled":
        return Finding("wandb", Status.PASS, "disabled")
    try:
        figure = f"{mode} (wandb {version('wandb')}, wandb.mode={settings.mode})"
    except PackageNotFoundError:
        return Finding(
            "wandb", Status.FAIL, f"{mode}, but it is not installed", "pip install wandb, or wandb.mode=disabled"
        )
    has_key = wandb_mode(WandbConfig()) == "online"
    if mode == "online" and not has_key:
        return Finding("wandb", Status.FAIL, f"{figure} without an API key", "wandb login, or wandb.mode=offline")
    if settings.mode == "auto" and mode == "offline":
        return Finding("wandb", Status.PASS, f"{figure}: no API key is found; 'wandb sync' sends the run later")
    return Finding("wandb", Status.PASS, figure)


def _installed() -> dict[str, str]:
    """Return the version of each package that dit_scale requires here and that is installed."""
    found = {}
    for need in requirements():
        with suppress(PackageNotFoundError):
            found[need.name] = version(need.name)
    return found


def _other_than_tested(installed: dict[str, str]) -> list[str]:
    constraints = Path(dit_scale.__file__).parent.parent / "constraints.txt"
    if not constraints.is_file():  # an installed wheel has none
        return []
    pinned = dict(line.split("==") for line in constraints.read_text().splitlines() if "==" in line and line[0] != "#")
    return [
        f"{name} {found} where {pinned[name]} is tested"
        for name, found in installed.items()
        if name in pinned and Version(found).public != Version(pinned[name]).public
    ]
