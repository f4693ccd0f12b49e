"""The JSON files of solutions, in one shape for solver, baselines and selection.

``{"solutions": [{"solution": "0", "layers": [...], "head": "parent", ...}, ...], ...}``: every entry has a name and an
architecture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tangram.blocks.architecture import Architecture, from_json
from tangram.errors import TangramError
from tangram.files import write_text


def save_solutions(content: Mapping[str, Any], path: str | Path, provenance: Mapping[str, str]) -> None:
    """Write solutions with their provenance."""
    write_text(path, json.dumps({**content, "provenance": dict(provenance)}, indent=2) + "\n")


def load_solutions(path: str | Path) -> dict[str, Architecture]:
    """Read architectures by the name of their solution, in the file's order.

    Raises:
        TangramError: the file is missing or damaged.
    """
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))["solutions"]
        return {entry["solution"]: from_json(entry) for entry in entries}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TangramError(f"{path} holds no solutions ({error!r}); delete it and run again") from error
