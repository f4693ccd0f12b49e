"""Read the tokens of a finished split."""

from __future__ import annotations

from pathlib import Path

import torch

from tangram.tables import CORPUS, read_arrow


def read_tokens(path: str | Path) -> torch.Tensor:
    """Return a split's tokens, ``(sequences, length)`` int64.

    Raises:
        TangramError: the table is missing or damaged.
    """
    return torch.tensor(read_arrow(path, CORPUS)["input_ids"].to_pylist(), dtype=torch.int64)
