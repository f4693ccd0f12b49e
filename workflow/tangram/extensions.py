"""What other packages add: policies, losses and readouts, registered by entry points and named in the config.

A package registers an object in its metadata, for instance
`[project.entry-points."tangram.policies"] rucb = "tangram_studies.bandits.dueling:RUCB"`. Nothing of it is imported
before the config asks for it. Standard library only: every parse of the Snakefile imports this module.
"""

import functools
from importlib import metadata
from typing import Any

from tangram.errors import TangramError, nearest

GROUPS = ("tangram.policies", "tangram.losses", "tangram.readouts")


@functools.cache
def registered(group: str) -> dict[str, metadata.EntryPoint]:
    """Return what installed packages have registered in one of `GROUPS`, by name, sorted."""
    return {entry.name: entry for entry in sorted(metadata.entry_points(group=group), key=lambda entry: entry.name)}


def load(group: str, name: str) -> Any:
    """Import and return a registered object.

    Raises:
        TangramError: no installed package has registered the name.
    """
    entries = registered(group)
    if name not in entries:
        raise TangramError(f"no installed package registers '{name}' in {group}{nearest(name, list(entries))}")
    return entries[name].load()
