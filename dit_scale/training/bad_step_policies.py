"""What follows a bad step, as ``train.on_bad_step`` says; its update is left out in any case."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dit_scale.checkpoint import Checkpoint, find_last_good
from dit_scale.distributed.runtime import World
from dit_scale.errors import NonFinite
from dit_scale.training.run_folder import BAD_STEPS, CHECKPOINTS
from dit_scale.training.saving import Saving

log = logging.getLogger(__name__)


class BadStepPolicy(Protocol):
    """What is done about a bad step."""

    @property
    def told(self) -> str:
        """What the log says of it."""

    def act(self, step: int, what: str) -> None:
        """Do it (collective); raises where the run does not simply take the next step."""


class Skip:
    """Take the next step."""

    told = "its update is left out"

    def act(self, step: int, what: str) -> None:
        """Do nothing more."""


@dataclass(frozen=True)
class Stop:
    """End the run."""

    run_dir: Path
    told = "stop"

    def act(self, step: int, what: str) -> None:
        """Raise NonFinite."""
        raise NonFinite(
            f"{what}; started again the run goes on without that batch; where its data were fixed, delete "
            f"'{self.run_dir / BAD_STEPS}' first"
        )


@dataclass(frozen=True)
class RollBack:
    """Go back to the last good checkpoint, and skip the step when it comes again."""

    run_dir: Path
    saving: Saving
    world: World
    told = "roll back"

    def act(self, step: int, what: str) -> None:
        """Raise RolledBack where there is a checkpoint to go back to."""
        self.saving.finish()
        found = find_last_good(self.run_dir / CHECKPOINTS, self.world)
        if found is not None:
            raise RolledBack(step, found)
        log.warning("no checkpoint to go back to from step %d: only its update is left out", step)


class RolledBack(Exception):
    """A bad step after which the run goes back to its last checkpoint; raised on every rank alike."""

    def __init__(self, step: int, checkpoint: Checkpoint):
        super().__init__(step)
        self.step, self.checkpoint = step, checkpoint


def policy_of(name: str, run_dir: Path, saving: Saving, world: World) -> BadStepPolicy:
    """Return the policy of a name that ``train.on_bad_step`` may have."""
    policies: dict[str, BadStepPolicy] = {
        "skip": Skip(),
        "stop": Stop(run_dir),
        "roll_back": RollBack(run_dir, saving, world),
    }
    return policies[name]
