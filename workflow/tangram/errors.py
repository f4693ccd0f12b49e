"""The exception that reports a user's mistakes."""


class TangramError(Exception):
    """A mistake in config, checkpoint, data or target; the message names cause and remedy in one line.

    Commands print it without a traceback and exit with status 1. Any other uncaught exception is a bug.
    """


def nearest(name: str, valid: list[str] | tuple[str, ...]) -> str:
    """Return ``"; did you mean 'x'?"`` for the valid name closest to ``name``, else the list of valid names."""
    import difflib

    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.4)
    return f"; did you mean '{close[0]}'?" if close else f"; valid: {', '.join(valid)}"
