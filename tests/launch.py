"""Start real processes as a user would: one, or several under torchrun with gloo."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def command(arguments: list[object], ranks: int = 1, module: str = "dit_scale") -> list[str]:
    """Return the command line of `python -m module …`, under torchrun where there are several ranks."""
    words = [str(word) for word in arguments]
    if ranks == 1:
        return [sys.executable, "-m", module, *words]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [*launcher, "-m", module, *words]


def environment() -> dict[str, str]:
    """Return an environment without another launcher's variables, quiet and with one thread a process."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "WANDB_")) and k not in _RANK_VARIABLES}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


_RANK_VARIABLES = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK"}


def run(
    arguments: list[object], ranks: int = 1, module: str = "dit_scale", timeout: float = 300.0, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run to the end and return what it printed; with ``check``, a failure shows its output."""
    result = subprocess.run(
        command(arguments, ranks, module), env=environment(), capture_output=True, text=True, timeout=timeout, cwd=ROOT
    )
    if check and result.returncode != 0:
        raise AssertionError(f"exit status {result.returncode}\n{result.stdout[-4000:]}\n{result.stderr[-6000:]}")
    return result
