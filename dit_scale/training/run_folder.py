"""The run folder: one writer at a time, the resolved configuration, and what may change when a run goes on."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dit_scale.checkpoint import Description
from dit_scale.config import FIXED_FOR_A_RUN, Config, config_from, get, to_yaml
from dit_scale.data.manifest import Manifest
from dit_scale.errors import InputError
from dit_scale.files import atomic_write, exclusive_lock, make_writable_folder

_PACKAGES = ("dit_scale", "torch", "deepspeed", "xformers", "numpy")
_LOCK = ".lock"


@contextmanager
def only_writer(run_dir: Path) -> Iterator[None]:
    """Hold the run folder's lock: one writer at a time."""
    make_writable_folder(run_dir, "run folder")
    refusal = f"run folder '{run_dir}' is being written by {{holder}}; stop that one or choose another run_dir"
    with exclusive_lock(run_dir / _LOCK, refusal):
        yield


def write_config(run_dir: Path, config: Config) -> None:
    """Write config.yaml: the resolved settings, versions and the git commit as comments above them."""
    head = [f"{name} {number}" for name, number in versions().items()]
    with atomic_write(run_dir / "config.yaml", "w") as file:
        file.write("".join(f"# {line}\n" for line in head) + to_yaml(config))


@cache
def versions() -> dict[str, str]:
    """Return the versions that a result depends on, and the git commit of the code where there is one."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    commit = _git_commit()
    return found | ({"git_commit": commit} if commit else {})


def check_resume(saved: Description, config: Config, data: dict[str, Any]) -> None:
    """Refuse to go on with what must stay as it began; raises InputError naming the first such setting."""
    before = config_from(Config, saved.config)
    for key in FIXED_FOR_A_RUN:
        old, new = get(before, key), get(config, key)
        if old != new:
            raise InputError(
                f"{key} is {new!r} but the run began with {old!r}, and it is fixed for a run; "
                f"set it back, or start another run_dir (init_from= takes this run's weights along)"
            )
    if saved.data["fingerprint"] != data["fingerprint"]:
        raise InputError(
            f"data.path '{config.data.path}' holds other latents (fingerprint {data['fingerprint'][:12]}) than the run "
            f"began with ({saved.data['fingerprint'][:12]}); give the same shards, or start another run_dir"
        )
    if config.train.steps < saved.position.step:
        raise InputError(
            f"train.steps={config.train.steps} is less than the {saved.position.step} steps that the run has done; "
            f"give more steps, or start another run_dir"
        )


def check_scale(manifest: Manifest, config: Config) -> None:
    """Refuse latents that are far from unit scale: training on them would go wrong without a word."""
    rms = manifest.normalised_rms
    if config.data.check_scale and not 0.25 <= rms <= 4.0:
        raise InputError(
            f"latents of '{config.data.path}' have a root mean square of {rms:.3g} after scaling, far from 1; encode "
            f"with another autoencoder.scale, or give data.check_scale=false if that is meant"
        )


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
