"""Start real processes: as a user would, or several in the time that one import of torch takes."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fork_server import ROOT, ForkServer

__all__ = ["ROOT", "command", "environment", "run"]

_RANK_VARIABLES = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK"}
_server = ForkServer()


def command(arguments: list[object], ranks: int = 1, module: str = "dit_scale") -> list[str]:
    """Return the command line of `python -m module …`, under torchrun where there are several ranks."""
    words = [str(word) for word in arguments]
    if ranks == 1:
        return [sys.executable, "-m", module, *words]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    return [*torchrun, "--nproc-per-node", str(ranks), "-m", module, *words]


def environment() -> dict[str, str]:
    """Return an environment without another launcher's variables, quiet and with one thread a process."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "WANDB_")) and k not in _RANK_VARIABLES}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(
    arguments: list[object],
    ranks: int = 1,
    module: str = "dit_scale",
    timeout: float = 300.0,
    check: bool = True,
    variables: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module …` to the end on so many ranks and return what they printed.

    Real processes, forked from one that has imported torch and DeepSpeed. With ``check``, a failure shows the output.
    ``variables`` are added to their environment.
    """
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        stdout.touch(), stderr.touch()
        words = [str(word) for word in arguments]
        request = {"words": words, "module": module, "ranks": ranks, "environment": environment() | (variables or {})}
        files = {"stdout": str(stdout), "stderr": str(stderr)}
        status = _server.run(request | files, environment(), timeout)
        result = subprocess.CompletedProcess(words, status, stdout.read_text(), stderr.read_text())
    if check and result.returncode != 0:
        raise AssertionError(f"exit status {result.returncode}\n{result.stdout[-4000:]}\n{result.stderr[-6000:]}")
    return result
