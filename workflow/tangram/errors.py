"""The one exception a user sees: what was wrong, where, and what would be right."""


class TangramError(Exception):
    """A mistake in config, checkpoint, data or target, told in one line with its remedy.

    Commands print it without a traceback and exit with status 1; anything else that escapes is a bug.
    """


def nearest(name: str, valid: list[str] | tuple[str, ...]) -> str:
    """Return ``"; did you mean 'x'?"`` for the valid name closest to ``name``, else the list of valid names."""
    import difflib

    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.4)
    return f"; did you mean '{close[0]}'?" if close else f"; valid: {', '.join(valid)}"
