"""Errors that are told in one sentence: what the user can mend, and what went wrong around the program."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad configuration or input: one sentence with the value, the rule and the way out.

    The command line prints it without a traceback and exits with status 2.
    """


class Failure(RuntimeError):
    """Storage that stalls, a full disk, a process that was killed: one sentence with what happened and the way out.

    The command line prints it without a traceback and exits with status 1.
    """


class NonFinite(Failure):
    """A loss or a gradient that is no number, or far beyond what is usual, and a policy that ends the run for it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the closest known name, or the list of all where none is close."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; choose one of {', '.join(known)}"
