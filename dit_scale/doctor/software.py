"""Versions against those that are tested together, and whether wandb can work as it is set."""

import os
import platform
import socket
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from packaging.version import Version

import dit_scale
from dit_scale import memory_efficient
from dit_scale.config import WandbConfig
from dit_scale.distributed.runtime import World
from dit_scale.doctor.finding import Finding, Status
from dit_scale.supervision.conveniences import Trouble
from dit_scale.training.dashboard import has_key, server, unknown_mode, wandb_mode, wrong_variable
from dit_scale.versions import requirements, untested

_SHOWN = ("torch", "deepspeed", "xformers")
_ANSWER_SECONDS = 5.0


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


def wandb(settings: WandbConfig, world: World) -> Finding:
    """Say how wandb will log, and whether it can; a warning at most, since training goes on without."""
    mode = wandb_mode(settings)
    if mode == "disabled":
        return Finding("wandb", Status.PASS, "disabled")
    try:
        figure = f"{mode} (wandb {version('wandb')}, wandb.mode={settings.mode})"
    except PackageNotFoundError:
        way_out = "pip install wandb, or wandb.mode=disabled"
        return Finding("wandb", Status.WARN, f"{mode}, but it is not installed: the run logs without it", way_out)
    if mode == "offline" and (said := unknown_mode(settings)):
        way_out = "WANDB_MODE=online, offline or disabled, or unset it"
        return Finding("wandb", Status.WARN, f"{figure}: WANDB_MODE={said} is nothing that wandb takes", way_out)
    if mode == "offline":
        return Finding("wandb", Status.PASS, f"{figure}; 'wandb sync' sends the run later")
    if not has_key():
        way_out = "wandb login, or wandb.mode=offline"
        return Finding("wandb", Status.WARN, f"{figure} without an API key: the run logs offline", way_out)
    refusal = _refusal_of_server() if world.is_rank_zero else None  # which alone logs there
    if refusal is not None:
        way_out = f"see that this host reaches {server()} and that the key is right, or wandb.mode=offline"
        return Finding("wandb", Status.WARN, f"{figure}, but the run would log offline: {refusal}", way_out)
    return Finding("wandb", Status.PASS, figure + (f", {server()} takes the key" if world.is_rank_zero else ""))


def _is_silent() -> bool:
    """Whether nothing answers at the server's address; behind a proxy nobody can tell."""
    address = urlsplit(server())
    if getproxies().get(address.scheme):
        return False
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=_ANSWER_SECONDS).close()
    except OSError:
        return True
    return False


def _refusal_of_server() -> str | None:
    """Log in to wandb's server, for 10 seconds at most ($WANDB_HTTP_TIMEOUT); return what went wrong."""
    import wandb

    try:
        wandb.login(verify=True)
    except Exception as error:  # wandb raises of all kinds
        if variable := wrong_variable(error):
            return f"{variable}={os.environ[variable]} is nothing that wandb takes"
        return f"{server()} is not reached" if _is_silent() else Trouble.of(error).sentence
    finally:
        wandb.teardown()
    return None


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
