"""Where ranks leave their signs of life for each other: a connection of its own to the launcher's store, no disk."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from torch.distributed import Store

from dit_scale.supervision.hangs import Heartbeat

_VERDICT = "watchdog/verdict"


class Heartbeats:
    """Keys of a store. Any call may block for ever where the store's process is frozen."""

    def __init__(self, store: Store, world_size: int):
        self._store = store.clone()  # another connection: a get that the main thread waits in cannot hold this up
        self._missing = set(range(world_size))
        self._world_size = world_size

    def publish(self, heartbeat: Heartbeat, stack: Sequence[str]) -> None:
        """Leave a sign of life."""
        self._store.set(_heartbeat_key(heartbeat.rank), heartbeat.to_json())
        self._store.set(_stack_key(heartbeat.rank), json.dumps(list(stack)))

    def heartbeats(self) -> list[Heartbeat]:
        """Return the last heartbeat of every rank that has given one."""
        self._missing = {rank for rank in self._missing if not self._store.check([_heartbeat_key(rank)])}
        keys = [_heartbeat_key(rank) for rank in range(self._world_size) if rank not in self._missing]
        return [Heartbeat.from_json(content) for content in self._store.multi_get(keys)] if keys else []

    def stacks(self, ranks: Iterable[int]) -> dict[int, list[str]]:
        """Return the stacks that ranks last reported."""
        there = [rank for rank in ranks if self._store.check([_stack_key(rank)])]
        return {rank: json.loads(self._store.get(_stack_key(rank))) for rank in there}

    def post_verdict(self, verdict: dict[str, Any]) -> bool:
        """Tell all ranks to end; return False where another one was first."""
        text = json.dumps(verdict)
        return bool(self._store.compare_set(_VERDICT, "", text) == text.encode())

    def verdict(self) -> dict[str, Any] | None:
        """Return what a rank has told all to end with."""
        return json.loads(self._store.get(_VERDICT)) if self._store.check([_VERDICT]) else None


def _heartbeat_key(rank: int) -> str:
    return f"watchdog/heartbeat/{rank}"


def _stack_key(rank: int) -> str:
    return f"watchdog/stack/{rank}"
