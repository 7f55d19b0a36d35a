"""The one kind of error that is the user's to mend."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad configuration or input: one sentence with the value, the rule and the way out.

    The command line prints it without a traceback and exits with status 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the closest known name, or the list of all where none is close."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; choose one of {', '.join(known)}"
