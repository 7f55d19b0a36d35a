"""An iterator run ahead by a thread: order, errors, time-outs, and a thread that always ends."""

import gc
import threading
from collections.abc import Iterator

import pytest

from dit_scale.prefetch import Prefetch


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "tried"]


def test_items_come_in_order_and_end() -> None:
    ahead = Prefetch(range(50), 4, "tried")
    assert list(ahead) == list(range(50))
    assert list(ahead) == []
    ahead.close()
    assert not threads()


def test_what_fails_in_making_fails_here_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("broken")

    ahead = Prefetch(items(), 4, "tried")
    assert next(ahead) == 1
    with pytest.raises(KeyError, match="broken"):
        next(ahead)
    assert list(ahead) == []


def test_no_more_than_depth_is_made_ahead_and_an_item_may_be_late() -> None:
    made, may_go_on = [], threading.Event()

    def items() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            if number == 1:
                may_go_on.wait()
            yield number

    ahead = Prefetch(items(), 2, "tried")
    assert next(ahead) == 0
    with pytest.raises(TimeoutError):
        ahead.next_within(0.01)
    may_go_on.set()
    assert ahead.next_within(60.0) == 1
    ahead.close()
    assert len(made) <= 5  # two asked for, two ready, one in hand
    assert not threads()


def test_dropping_it_ends_its_thread() -> None:
    ahead = Prefetch(iter(int, 1), 2, "tried")
    next(ahead)
    del ahead
    gc.collect()
    assert not threads()
