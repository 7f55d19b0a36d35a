"""Moves a few numbers between host and device without making either wait."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


def send(values: Tensor, device: torch.device) -> Tensor:
    """Return values on the device, whose queue they join; from pinned memory, as it may still be busy."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


class Readback:
    """A device's values on their way to the host: reading waits for them, and for nothing that is queued later."""

    def __init__(self, values: Tensor, work: Any = None):
        """Copy values [n] as soon as they are known; with ``work`` that is when that collective on them is done."""
        self._values, self._work = values, work
        self._event = None
        if values.is_cuda:
            stream = _stream(values.device)
            stream.wait_stream(torch.cuda.current_stream(values.device))
            with torch.cuda.stream(stream):
                if work is not None:
                    work.wait()  # of this stream; the host goes on
                self._copy = values.to("cpu", non_blocking=True)
            self._event = torch.cuda.Event(blocking=True)  # the host sleeps: its cores read shards meanwhile
            self._event.record(stream)

    def read(self) -> list[float]:
        """Return the values."""
        if self._event is not None:
            self._event.synchronize()
            return self._copy.tolist()
        if self._work is not None:
            self._work.wait()
        return self._values.tolist()


@lru_cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
