"""Checkpoints that others keep as folders, whose own tools turn them into a file that can be read.

They are pickles that only run as code, so nothing of them is read here; a sentence tells the command.
"""

import re
import shlex
from pathlib import Path

from dit_scale.errors import InputError, few

_FILES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
_ZERO_PART = re.compile(r"(\w+_)?zero_pp_rank_\d+_mp_rank_\d+_(model|optim)_states\.pt")
"""Of DeepSpeed: a rank's part of the optimizer's state, and with ZeRO-3 of the weights."""
_IF_TRUSTED = "if you trust those who wrote it (its code runs), convert it with"


def refuse_folder(folder: Path) -> None:
    """Raise InputError, with what to do, where a folder is DeepSpeed's, torch.distributed's or one of weight files."""
    deepspeed = _deepspeed(folder)
    if deepspeed is not None:
        raise InputError(f"'{folder}' is a checkpoint of DeepSpeed; {deepspeed}")
    if (folder / ".metadata").is_file() and any(folder.glob("*.distcp")):
        out = folder.with_name(f"{folder.name}.pt")
        command = _command("torch.distributed.checkpoint.format_utils", "dcp_to_torch", folder, out)
        raise InputError(
            f"'{folder}' is a checkpoint of torch.distributed.checkpoint; {_IF_TRUSTED} {command} and give '{out}'"
        )
    files = sorted(path.name for path in folder.glob("*") if path.suffix in _FILES)
    if files and not (folder / "model_index.json").is_file():
        raise InputError(f"'{folder}' is no DiTPipeline's folder, but one of files; give one of them: {few(files)}")


def refuse_part(path: Path) -> None:
    """Raise InputError, with what to do, for a file that is one part of such a folder."""
    if path.parent.name.startswith("step-") and (path.parent / "manifest.json").is_file():
        raise InputError(f"'{path}' is a part of a checkpoint of dit-scale's own; give its folder, '{path.parent}'")
    if path.suffix == ".distcp" or _ZERO_PART.fullmatch(path.name):
        refuse_folder(path.parent)


def is_rounded_copy(path: Path) -> bool:
    """Whether a file is DeepSpeed's copy of weights to compute with, whose masters lie in parts beside it."""
    return path.name.endswith("_model_states.pt") and any(path.parent.glob("*_optim_states.pt"))


def _deepspeed(folder: Path) -> str | None:
    """Return what to do with a checkpoint of DeepSpeed, or with one of its global_step… folders; None for others."""
    if any(folder.glob("*_model_states.pt")):
        root, step = folder.resolve().parent, folder.resolve()
    else:
        root, steps = folder, sorted({path.parent for path in folder.glob("*/*_model_states.pt")})
        if not steps:
            return None
        latest = folder / "latest"
        named = folder / latest.read_text().strip() if latest.is_file() else steps[-1]
        step = named if named in steps else steps[-1]
    if not any(step.glob("*_optim_states.pt")):
        return f"give its file of weights, '{sorted(step.glob('*_model_states.pt'))[0]}'"
    out = root.with_name(f"{root.name}-fp32")
    command = _command("deepspeed.utils.zero_to_fp32", root, out, "-t", step.name)
    return f"{_IF_TRUSTED} {command} and give '{out / 'pytorch_model.bin'}'"


def _command(module: str, *words: object) -> str:
    return shlex.join(["python", "-m", module, *map(str, words)])
