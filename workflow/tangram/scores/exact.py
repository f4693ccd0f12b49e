"""Exact scores of pieces, kept in a file: a later job repeats none whose piece and text are the same."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from tangram.blocks.registry import get_block
from tangram.files import write_text
from tangram.library.checksums import checksum_of
from tangram.library.pieces import Library
from tangram.models.families import Shape
from tangram.provenance import code_hash, fingerprint
from tangram.scores.replace_one import ReplaceOne, Row

SAVED = 20  # pieces between two writes of the file


def identity_of(facts: Iterable[object], modules: Iterable[str], files: Iterable[str | Path]) -> str:
    """Return a checksum of all that exact scores depend on besides the pieces.

    Args:
        facts: the settings and the runtime.
        modules: those of the variants.
        files: the parent's weights and the text.
    """
    return fingerprint([*map(str, facts), code_hash("tangram.scores.exact", *modules)], files)


class ExactScores:
    """Scores pieces with `ReplaceOne`, or takes their scores from the file.

    Args:
        scorer: the scorer.
        library: source of the pieces.
        shape: the parent's sizes.
        path: the file; one of another identity, or a damaged one, is replaced.
        identity: see `identity_of`.
    """

    def __init__(self, scorer: ReplaceOne, library: Library, shape: Shape, path: Path, identity: str):
        self._scorer, self._library, self._shape = scorer, library, shape
        self._path, self._identity = path, identity
        self._known: dict[str, list[Row]] = {}
        try:
            content = json.loads(path.read_text())
            if content["identity"] == identity:
                self._known = content["scores"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # it is only a cache

    def __call__(self, pieces: Sequence[tuple[int, str, str]]) -> list[Row]:
        """Return the rows of `tables.SCORES` of pieces (layer, kind and variant)."""
        rows = []
        for number, (layer, kind, variant) in enumerate(tqdm(pieces, desc="exact scores", mininterval=5), start=1):
            tensors = self._library(kind, variant, layer)
            key = f"{layer} {kind} {variant} {checksum_of(tensors)}"
            if key not in self._known:
                self._known[key] = self._scorer.score_piece(layer, get_block(kind, variant, self._shape), tensors)
            rows += self._known[key]
            if number % SAVED == 0 or number == len(pieces):
                write_text(self._path, json.dumps({"identity": self._identity, "scores": self._known}))
        return rows
