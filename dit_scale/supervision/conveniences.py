"""What a run can do without, such as pictures and dashboards: what fails there is told, and training goes on."""

import logging
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dit_scale.distributed.runtime import World
from dit_scale.distributed.sharing import gather_everywhere
from dit_scale.errors import Failure, InputError
from dit_scale.supervision.history import write_trouble

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trouble:
    """An error in words, so that ranks can tell it to each other."""

    sentence: str
    """What the error says, on one line; before it the kind of one that nobody foresaw."""
    stack: str

    @classmethod
    def of(cls, error: BaseException) -> "Trouble":
        """Put an error into words; keeps nothing of it alive."""
        return cls(_said(error), "".join(traceback.format_exception(error)))


def _said(error: BaseException) -> str:
    said = str(error)
    if isinstance(error, OSError) and error.strerror:
        said = error.strerror + (f": '{error.filename}'" if error.filename is not None else "")
    said = " ".join(said.split())[:300]
    is_plain = isinstance(error, InputError | Failure | OSError) or type(error).__module__.startswith("wandb.")
    return said if said and is_plain else f"{type(error).__name__}: {said or 'no reason given'}"


class Conveniences:
    """Where all that must not end a run is done; a kind of failure is told the first, 10th, 100th … time."""

    def __init__(self, run_dir: Path, world: World):
        self._run_dir, self._world = run_dir, world
        self._counts: Counter[str] = Counter()

    @contextmanager
    def attempt(self, what: str, step: int | None = None) -> Iterator[None]:
        """Tell what fails in the body, and go on after it. The body must hold nothing that is collective."""
        try:
            yield
        except Exception as error:
            self.tell(what, Trouble.of(error), step)

    def together(self, what: str, work: Callable[[], T], step: int | None = None) -> T | None:
        """Return what ``work`` gives, or None on all ranks where it fails on any (collective, ``work`` itself not)."""
        result, trouble = None, None
        try:
            result = work()
        except Exception as error:
            trouble = Trouble.of(error)
        troubles = gather_everywhere(trouble, self._world)
        failed = [(rank, found) for rank, found in enumerate(troubles) if found is not None]
        if not failed:
            return result
        if self._world.is_rank_zero:
            rank, first = failed[0]
            self.tell(what, first, step, rank)
        return None

    def tell(self, what: str, trouble: Trouble, step: int | None = None, rank: int | None = None) -> None:
        """Say in one line what failed, and write down the first of its kind with its stack."""
        self._counts[what] += 1
        count = self._counts[what]
        if str(count).strip("0") != "1":
            return
        rank = self._world.rank if rank is None else rank
        where = (f" at step {step}" if step is not None else "") + (f" on rank {rank}" if rank else "")
        again = f" for the {count}th time" if count > 1 else ""
        log.error("%s failed%s%s (%s); training goes on", what, where, again, trouble.sentence)
        if count == 1:
            write_trouble(self._run_dir, what, step, rank, trouble.sentence, trouble.stack)
