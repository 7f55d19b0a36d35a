"""How far a long extraction is, on stderr."""

import sys
import time
from collections.abc import Iterator

import numpy as np

_EVERY_SECONDS = 5.0


def shown(batches: Iterator[np.ndarray], count: int, what: str) -> Iterator[np.ndarray]:
    """Pass batches on; say every few seconds how many images are done, how fast, and how long the rest takes."""
    started = said = time.monotonic()
    done = 0
    for batch in batches:
        yield batch
        done += len(batch)
        now = time.monotonic()
        if now - said > _EVERY_SECONDS or (done == count and said > started):
            rate, said = done / (now - started), now
            print(
                f"{what} {done}/{count}  {rate:.1f} images/s  left {(count - done) / rate:.0f} s",
                file=sys.stderr,
                flush=True,
            )
