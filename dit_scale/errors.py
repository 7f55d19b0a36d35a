"""Errors that are told in one sentence: what the user can fix, and what went wrong around the program."""

import difflib
from collections.abc import Iterable

_LONGEST_LIST = 160
"""Characters."""


class InputError(ValueError):
    """Bad configuration or input: one sentence with the value, the rule and the fix.

    The command line prints it without a traceback and exits with status 2.
    """


class Failure(RuntimeError):
    """Storage that stalls, a full disk, a process that was killed: one sentence with what happened and the fix.

    The command line prints it without a traceback and exits with status 1.
    """


class NonFinite(Failure):
    """A loss or a gradient that is no number, or far beyond what is usual, and a policy that ends the run for it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the closest known name, or the list of them where none is close."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; choose one of {few(known)}"


def few(names: Iterable[str]) -> str:
    """Return names parted by commas; of many, the first ones and how many there are, since a message is a sentence."""
    names = list(names)
    total = 0
    for count, name in enumerate(names):
        total += len(name) + 2
        if count and total > _LONGEST_LIST:
            return f"{', '.join(names[:count])}, … ({len(names)} in all)"
    return ", ".join(names)
