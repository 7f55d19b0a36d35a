"""The run folder: one writer at a time, the resolved configuration, and what may change when a run goes on."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from dit_scale.checkpoint import Checkpoint
from dit_scale.config import FIXED_FOR_A_RUN, Config, config_from, get, used
from dit_scale.config.fields import shown
from dit_scale.errors import InputError
from dit_scale.files import exclusive_lock, make_writable_folder
from dit_scale.recipe import with_preset
from dit_scale.supervision.history import LOCK

CHECKPOINTS, BAD_STEPS = "checkpoints", "bad-steps.jsonl"


@contextmanager
def only_writer(run_dir: Path) -> Iterator[None]:
    """Hold the run folder's lock: one writer at a time."""
    make_writable_folder(run_dir, "run folder")
    refusal = f"run folder '{run_dir}' is being written by {{holder}}; stop that one or choose another run_dir"
    with exclusive_lock(run_dir / LOCK, refusal):
        yield


def _single_keys(config: Config) -> Iterator[str]:
    """Yield what is fixed for a run, each setting of a section by itself."""
    for key in FIXED_FOR_A_RUN:
        value = get(config, key)
        yield from [f"{key}.{entry.name}" for entry in fields(value)] if is_dataclass(value) else [key]


def check_resume(checkpoint: Checkpoint, config: Config, data: dict[str, Any]) -> None:
    """Refuse to go on with what must stay as it began; raises InputError naming the first such setting."""
    if "master" not in checkpoint.kinds:
        raise InputError(
            f"'{config.run_dir}' holds imported weights and no run to go on with; give another run_dir, and "
            f"init_from={config.run_dir}"
        )
    saved = checkpoint.description
    before = with_preset(used(config_from(Config, saved.config)))  # an older version took settings without effect
    now = with_preset(config)
    for key in _single_keys(config):
        old, new = get(before, key), get(now, key)
        if old != new:
            raise InputError(
                f"{key} is {_told(new)} but the run began with {_told(old)}, and it is fixed for a run; "
                f"set it back, or start another run_dir (init_from= takes this run's weights along)"
            )
    if config.data.check_fingerprint and saved.data["fingerprint"] != data["fingerprint"]:
        raise InputError(
            f"data.path '{config.data.path}' holds other records (fingerprint {data['fingerprint'][:12]}) than the run "
            f"began with ({saved.data['fingerprint'][:12]}); give the same shards, start another run_dir, or, where "
            f"shards were repaired with another version or device, give data.check_fingerprint=false"
        )
    if config.train.steps < saved.position.step:
        raise InputError(
            f"train.steps={config.train.steps} is less than the {saved.position.step} steps that the run has done; "
            f"give more steps, or start another run_dir"
        )


def _told(value: Any) -> str:
    """Return a value as a configuration has it, words in quotes."""
    return repr(value) if isinstance(value, str) else shown(value)
