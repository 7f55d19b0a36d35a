"""Checkpoints that know parameters, not ranks: written behind the step loop, verified, read in any part.

A checkpoint is a folder ``step-00000100`` with one safetensors file a rank and a ``manifest.json``. Each tensor
is a 1-D fp32 fragment, keyed ``KIND/PARAMETER/OFFSET`` with KIND one of master, ema, or what the optimizer
keeps of that parameter (AdamW: exp_avg and exp_avg_sq), so any number of ranks and any ZeRO stage can read what any
other wrote. The folder is written under a temporary name and renamed once all is on disk; ``latest`` is moved last.
"""

from dit_scale.checkpoint.content import State, content_digests
from dit_scale.checkpoint.layout import Description, Position, folder_name
from dit_scale.checkpoint.post_hoc import weights_of
from dit_scale.checkpoint.reading import Checkpoint, find_last_good, open_whole, resolve
from dit_scale.checkpoint.retention import Retention, prune
from dit_scale.checkpoint.saving import Outcome, Saver

__all__ = [
    "Checkpoint",
    "Description",
    "Outcome",
    "Position",
    "Retention",
    "Saver",
    "State",
    "content_digests",
    "find_last_good",
    "folder_name",
    "open_whole",
    "prune",
    "resolve",
    "weights_of",
]
