"""`dit-scale submit`: a chain of Slurm jobs, each beginning when the one before has succeeded."""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from dit_scale.config import Config, EncodeConfig, SampleConfig, add_options, load_config, read_options_of
from dit_scale.errors import Failure, InputError

_SLURM_SECONDS = 120.0


@dataclass(frozen=True)
class Stage:
    """One job of the chain; both lines are what one would type."""

    command: str = MISSING
    """What follows the batch script: CONFIG key=value …, for sampling RUN --num-samples …"""
    sbatch: str = ""
    """sbatch's options: --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 --time=24:00:00 …"""


@dataclass(frozen=True)
class Chain:
    """Jobs that follow each other; a stage that is left out, or null, is not submitted."""

    name: str = "dit"
    """The jobs are called NAME-encode, NAME-train and so on."""
    paths: dict[str, str] = field(default_factory=dict)
    """Names for paths and the like, for use as ${paths.latents} below."""
    site: str | None = None
    """The site's settings; null takes slurm/site.sh of the folder submitted from, where there is one."""
    logs: str = "logs"
    """Folder of the jobs' logs."""
    sbatch: str = ""
    """sbatch's options for every stage; a stage's own win."""
    encode: Stage | None = None
    """Images -> shards; an array with --array=0-15 among its options."""
    train: Stage | None = None
    """Shards -> a run; saved and requeued as often as it takes."""
    sample: Stage | None = None
    """A run -> images."""
    evaluate: Stage | None = None
    """Images -> metrics; one task."""


STAGES = ("encode", "train", "sample", "evaluate")
"""In this order; each has its batch script. One more is a field above, a script, and a check below."""


def submit(path: str, overrides: list[str], dry_run: bool = False) -> None:
    """Ask Slurm whether it would take each job, then submit them all, or none."""
    chain = load_config(Chain, path, overrides)
    stages = {name: stage for name in STAGES if (stage := getattr(chain, name)) is not None}
    if not stages:
        raise InputError(f"chain '{path}' has no stage; give it at least one of {', '.join(STAGES)}")
    for name, stage in stages.items():
        _CHECKS[name](_words(stage.command, f"{name}.command"))
    if shutil.which("sbatch") is None:
        raise InputError("sbatch is not found; run this on a machine from which Slurm jobs are submitted")
    site = _site(chain)
    commands = {name: _command(chain, name, stage, site) for name, stage in stages.items()}
    environment = os.environ | _site_environment(site)
    Path(chain.logs).mkdir(parents=True, exist_ok=True)
    for name, words in commands.items():
        print(f"{name:9}{_ask(name, words, environment)}", flush=True)
    if not dry_run:
        _submit_all(chain, commands, environment)


def _submit_all(chain: Chain, commands: dict[str, list[str]], environment: dict[str, str]) -> None:
    """Submit one after the other; where one is refused, cancel those before it."""
    numbers: list[str] = []
    for name, words in commands.items():
        after = [f"--dependency=afterok:{numbers[-1]}", "--kill-on-invalid-dep=yes"] if numbers else []
        try:
            number = _run([words[0], "--parsable", *after, *words[1:]], environment, f"{name} was not taken")
        except Failure:
            if numbers:
                subprocess.run(["scancel", *numbers], check=False, timeout=_SLURM_SECONDS)
                print(f"cancelled: {' '.join(numbers)}", file=sys.stderr, flush=True)
            raise
        numbers.append(number.strip().split(";")[0])  # a federation adds its cluster
        waits = f", after {numbers[-2]}" if after else ""
        print(f"{name:9}job {numbers[-1]}{waits}; log {chain.logs}/{chain.name}-{name}-{numbers[-1]}*.log", flush=True)


def _command(chain: Chain, name: str, stage: Stage, site: Path | None) -> list[str]:
    """Return sbatch's command line without the dependency."""
    own = _words(chain.sbatch, "sbatch") + _words(stage.sbatch, f"{name}.sbatch")
    is_array = any(word.startswith(("--array", "-a")) for word in own)
    passed = {
        "DIT_SCALE_SLURM": str(_scripts()),
        "DIT_SCALE_PYTHON": os.environ.get("DIT_SCALE_PYTHON", sys.executable),
    }
    if site is not None:
        passed["DIT_SCALE_SITE"] = str(site)
    defaults = [
        f"--job-name={chain.name}-{name}",
        f"--output={chain.logs}/%x-{'%A_%a' if is_array else '%j'}.log",
        "--export=" + ",".join(["ALL", *(f"{key}={value}" for key, value in passed.items())]),
    ]
    script = _scripts() / f"{name}.sbatch"
    return ["sbatch", *defaults, *own, str(script), *_words(stage.command, f"{name}.command")]


def _ask(name: str, words: list[str], environment: dict[str, str]) -> str:
    """Have Slurm check a job without submitting it; return what it says about when and where."""
    return _run([words[0], "--test-only", *words[1:]], environment, f"Slurm would not take {name}").strip()


def _run(words: list[str], environment: dict[str, str], complaint: str) -> str:
    """Run sbatch and return what it printed; what it says of an error becomes one sentence."""
    result = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=_SLURM_SECONDS)
    said = " ".join((result.stdout + result.stderr).replace("sbatch: ", "").split())
    if result.returncode != 0:
        raise Failure(f"{complaint}: {said.replace('error: ', '')}")
    return said


def _site(chain: Chain) -> Path | None:
    path = Path(chain.site) if chain.site is not None else Path("slurm/site.sh")
    if path.is_file():
        return path.resolve()
    if chain.site is not None:
        raise InputError(f"site={chain.site} is not a file; copy slurm/site.sh.example and keep what applies")
    return None


def _site_environment(site: Path | None) -> dict[str, str]:
    """Return the SBATCH_… variables that a site's settings export: sbatch reads them before any job exists."""
    if site is None:
        return {}
    result = subprocess.run(
        ["bash", "-c", '. "$1" >&2 && env -0', "bash", str(site)],
        capture_output=True,
        text=True,
        timeout=_SLURM_SECONDS,
    )
    if result.returncode != 0:
        said = " ".join(result.stderr.split())
        raise InputError(f"site={site} ends with status {result.returncode} ({said}); fix it")
    pairs = (entry.split("=", 1) for entry in result.stdout.split("\0") if "=" in entry)
    return {name: value for name, value in pairs if name.startswith("SBATCH_")}


def _scripts() -> Path:
    """Return the folder of batch scripts, in a checkout or in the installed package."""
    package = Path(__file__).parent.parent
    found = next((f for f in (package / "slurm", package.parent / "slurm") if (f / "common.sh").is_file()), None)
    if found is None:
        raise Failure(f"the batch scripts are missing beside '{package}'; install dit_scale again")
    return found


def _words(text: str, key: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InputError(f"{key}='{text}' cannot be split into words ({error}); close the quotes") from error


# ------------------------------------------------------------ mistakes that need no queue to be found


def _check_encode(words: list[str]) -> None:
    _need(words, "encode.command", "CONFIG source.path=… output=…", "output=")
    load_config(EncodeConfig, words[0], words[1:])


def _check_train(words: list[str]) -> None:
    _need(words, "train.command", "CONFIG run_dir=… data.path=…", "run_dir=")
    load_config(Config, words[0], words[1:])


def _check_sample(words: list[str]) -> None:
    _need(words, "sample.command", "RUN --num-samples N --out DIR", "--out")
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_options(parser, SampleConfig)
    try:
        options, _ = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise InputError(f"sample.command='{' '.join(words)}': {error}; see dit-scale sample --help") from error
    read_options_of(SampleConfig, options, are_all="--grid-over" not in words)


def _check_evaluate(words: list[str]) -> None:
    if len(words) < 2 or any(word.startswith("-") for word in words[:2]):
        raise InputError(
            f"evaluate.command='{' '.join(words)}' does not begin with two paths; write it as SAMPLES REFERENCE …"
        )


def _need(words: list[str], key: str, form: str, needed: str) -> None:
    if not any(word.startswith(needed) for word in words[1:]):
        raise InputError(f"{key}='{' '.join(words)}' lacks {needed}; write it as {form}")


_CHECKS: dict[str, Callable[[list[str]], None]] = {
    "encode": _check_encode,
    "train": _check_train,
    "sample": _check_sample,
    "evaluate": _check_evaluate,
}
