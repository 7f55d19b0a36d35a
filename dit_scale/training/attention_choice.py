"""Which attention kernel a run computes with: the fastest of its GPU's, the same on every rank and after a restart."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

import torch
import torch.distributed as dist

from dit_scale.distributed.devices import memory_of
from dit_scale.distributed.runtime import World
from dit_scale.documents import Misfit, parsed
from dit_scale.files import write_json
from dit_scale.models import DiT
from dit_scale.models.attention import BACKENDS
from dit_scale.models.kernel_timing import AttentionShape, fastest, seconds_of_backends
from dit_scale.supervision.conveniences import Conveniences

ATTENTION = "attention.json"
"""In a run folder: what each kernel took, and which was chosen; read again where the device and the shape are these."""

log = logging.getLogger(__name__)


class _Chosen(TypedDict):
    setting: dict[str, Any]
    chosen: str


def settle_attention(
    model: DiT,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    run_dir: Path,
    world: World,
    conveniences: Conveniences,
) -> None:
    """Set ``model.attention`` to the fastest kernel where ``auto`` leaves it open and there are several (collective).

    Rank zero measures, once for a run: another kernel would change the last bits of all that follows.
    """
    if model.attention != "auto" or device.type != "cuda" or not model.has_kernels:  # a rule decides: choose_backend
        return
    shape = AttentionShape.of(model, batch_size)
    chosen = [_choice(run_dir / ATTENTION, shape, device, dtype, conveniences) if world.is_rank_zero else ""]
    dist.broadcast_object_list(chosen, src=0)
    model.attention = chosen[0]


def _choice(
    path: Path, shape: AttentionShape, device: torch.device, dtype: torch.dtype, conveniences: Conveniences
) -> str:
    """Return the kernel that the run chose before on such a device, or measure and write it down."""
    setting = {
        "device": memory_of(str(device)).name,
        "torch": torch.__version__,
        "dtype": str(dtype).removeprefix("torch."),
        "shape": asdict(shape),
    }
    before = _read(path)
    if before is not None and before["setting"] == setting and before["chosen"] in BACKENDS:
        return before["chosen"]
    found = seconds_of_backends(shape, device, dtype)
    chosen = fastest(found)
    with conveniences.attempt(f"writing {ATTENTION}"):
        write_json(path, {"setting": setting, "seconds": found, "chosen": chosen})
    times = ", ".join(f"{name} {1000 * value:.3f} ms" for name, value in found.items() if isinstance(value, float))
    log.info("attention: %s, the fastest of %s (forward and backward of a block)", chosen, times)
    for name, why in found.items():
        if isinstance(why, str):
            log.info("attention: %s does not run here: %s", name, why)
    return chosen


def _read(path: Path) -> _Chosen | None:
    try:
        return parsed(path.read_bytes(), _Chosen)
    except FileNotFoundError:
        return None
    except (OSError, Misfit) as error:
        log.warning("'%s' cannot be read (%s): the kernels are timed again", path, error)
        return None
