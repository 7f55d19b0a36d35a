"""Steps whose update must not happen: explained, written down and, when they come again, skipped."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from dit_scale.config import TrainSection
from dit_scale.data.loader import Batch
from dit_scale.distributed.runtime import World
from dit_scale.documents import parsed_or_none
from dit_scale.errors import NonFinite
from dit_scale.supervision.history import Step
from dit_scale.training.bad_step_policies import BadStepPolicy
from dit_scale.training.metrics import Lines
from dit_scale.training.pending import PendingMetrics
from dit_scale.training.run_folder import BAD_STEPS

_WINDOW_STEPS = 1000

log = logging.getLogger(__name__)


class BadSteps:
    """Which steps of a run are bad, the same on every rank; what is wrong with a new one, and what follows."""

    def __init__(
        self,
        run_dir: Path,
        settings: TrainSection,
        world: World,
        policy: BadStepPolicy,
        offender_in: Callable[[Batch], str | None],
    ):
        """Collective; ``offender_in`` computes a step again and names the module where it goes wrong."""
        self._path, self._settings, self._world = run_dir / BAD_STEPS, settings, world
        self._policy, self._offender_in = policy, offender_in
        self._lines: Lines | None = None
        steps = [_steps_in(self._path) if world.is_rank_zero else []]
        dist.broadcast_object_list(steps, src=0)
        self._known = set(steps[0])

    def is_known(self, step: int) -> bool:
        """Whether a step was found to be bad before."""
        return step in self._known

    def judge(self, pending: PendingMetrics) -> None:
        """Find out what is wrong with a step whose update was discarded, and do as the policy says (collective).

        By now the step after it may have been taken, from the same weights. Raises NonFinite where the run ends.
        """
        step, keys = pending.position.step, pending.batch.keys
        suspects = [key for key, loss in zip(keys, pending.losses.tolist(), strict=True) if not math.isfinite(loss)]
        offender = self._offender_in(pending.batch)
        what = self._record(step, float(pending.limit), pending.verdict.norm, offender, suspects)
        if self._world.is_rank_zero:
            log.warning("%s: %s", what, self._policy.told)
        self._policy.act(step, what)

    def close(self) -> None:
        """Close the file of bad steps."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def _record(self, step: int, limit: float, grad_norm: float, offender: str | None, suspects: list[str]) -> str:
        """Write down a bad step and return what is wrong with it, from this rank's findings and others' (collective).

        Raises NonFinite where there are too many such steps.
        """
        findings: list[Any] = [None] * self._world.world_size
        dist.all_gather_object(findings, (offender, suspects))
        reason = (
            f"the gradient norm {grad_norm:.3g} is above {limit:.3g}, {self._settings.spike_factor:g} times the median"
            if math.isfinite(grad_norm)
            else "the loss or the gradient is not finite"
        )
        offenders = {f"rank {rank}": found for rank, (found, _) in enumerate(findings) if found is not None}
        keys = [key for _, keys in findings for key in keys]
        if self._world.is_rank_zero:
            entry = {"step": step, "reason": reason, "grad_norm": grad_norm if math.isfinite(grad_norm) else None}
            self._lines = self._lines or Lines(self._path)
            self._lines.write(entry | {"modules": offenders, "keys": keys})
            self._lines.sync()
        self._known.add(step)
        recent = sum(step - _WINDOW_STEPS < known <= step for known in self._known)
        where = next(iter(offenders.values()), "no single module")
        sentence = f"step {step}: {reason}; first in {where}; records {_shortened(keys)} ({self._path.name} has all)"
        if recent > self._settings.max_bad_steps:
            raise NonFinite(
                f"{sentence}; that makes {recent} bad steps among the last {_WINDOW_STEPS}, where "
                f"train.max_bad_steps={self._settings.max_bad_steps}; look at the data and the learning rate, then go "
                f"on from the last checkpoint"
            )
        return sentence


def _steps_in(path: Path) -> list[int]:
    if not path.is_file():
        return []
    lines = (parsed_or_none(line, Step) for line in path.read_bytes().splitlines())
    return [line["step"] for line in lines if line is not None]  # one torn by a kill: the step comes again


def _shortened(keys: list[str]) -> str:
    return ", ".join(keys[:8]) + (", …" if len(keys) > 8 else "")
