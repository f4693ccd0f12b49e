"""Build one split of the corpus: mix sources by weight into tokenized sequences of equal length."""

from __future__ import annotations

import hashlib
import math
import random
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tangram.config import SPLITS, Packing, ParentSamples, Split
from tangram.corpus.documents import documents, source_name
from tangram.corpus.packing import Sequence, pack
from tangram.corpus.sampling import parent_samples
from tangram.errors import TangramError

SEED_NAMES = {"distill": "distil"}  # seeds use a split's first name, so that renaming it changes no text


def _seed(seed: int, split: str, index: int) -> int:
    """Return a different seed for each source of each split."""
    split = SEED_NAMES.get(split, split)
    return int(hashlib.sha256(f"{seed}/{split}/{index}".encode()).hexdigest()[:12], 16)


def shares(total: int, weights: list[float]) -> list[int]:
    """Divide ``total`` sequences by weight, with the largest-remainder method."""
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [math.floor(value) for value in exact]
    by_fraction = sorted(range(len(weights)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_fraction[: total - sum(counts)]:
        counts[i] += 1
    return counts


def build_split(
    name: str,
    split: Split,
    packing: Packing,
    parent: str | Path,
    seed: int,
    dtype: str = "float32",
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Return the rows (`tables.CORPUS`) of one split, its sources mixed by weight and shuffled.

    Weights are shares of the tokens, exact to one sequence. A document of several sources is taken once. The numbers of
    documents that were left out are printed.

    Args:
        name: the split's name, one of `config.SPLITS`.
        split: number of tokens, and sources.
        packing: length of sequences, and which documents they hold.
        parent: checkpoint folder; its tokenizer is used, and its model for sources of type `parent-samples`.
        seed: seed of all random choices.
        dtype: dtype of the parent's model.
        device: device of the parent's model.

    Raises:
        TangramError: a source cannot be read or holds too little text.
    """
    from tangram.models.loading import load_model, load_tokenizer
    from tangram.models.packed import pack as with_fast_kernels

    if name not in SPLITS:
        raise TangramError(f"'{name}' is not a split; valid: {', '.join(SPLITS)}")
    tokenizer, sequence_length = load_tokenizer(parent), packing.sequence_length
    counts = shares(math.ceil(split.tokens / sequence_length), [source.weight for source in split.sources])
    parts: dict[int, list[dict[str, Any]]] = {}
    seen: set[str] = set()
    # Existing text comes first, so that its errors are raised before the parent generates text for a long time.
    for index in sorted(range(len(counts)), key=lambda i: isinstance(split.sources[i], ParentSamples)):
        source, count, source_seed = split.sources[index], counts[index], _seed(seed, name, index)
        sequences: Iterable[Sequence]
        dropped: Counter[str] = Counter()
        if isinstance(source, ParentSamples):
            model = with_fast_kernels(load_model(parent, dtype, device))
            sequences = parent_samples(source, model, tokenizer, name, count, sequence_length, source_seed)
        else:
            texts = documents(source, name, source_seed, tokenizer, packing.duplicates, seen, dropped)
            sequences = pack(texts, tokenizer, packing, dropped)
        taken = [sequence for _, sequence in zip(range(count), sequences, strict=False)]
        if dropped:
            reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(dropped.items()))
            print(f"build_corpus {name}: {source_name(source)}: documents left out: {reasons}", file=sys.stderr)
        if len(taken) < count:
            raise TangramError(
                f"corpus.{name}: source {source_name(source)} gives only {len(taken) * sequence_length} tokens in "
                f"sequences of {sequence_length}, but {count * sequence_length} are needed (each split takes only its "
                f"{len(SPLITS)}th of the documents); add text, lower corpus.{name}.tokens or corpus.sequence_length"
            )
        parts[index] = [{"source": source_name(source), **vars(sequence)} for sequence in taken]
    rows = [row for index in sorted(parts) for row in parts[index]]
    random.Random(_seed(seed, name, -1)).shuffle(rows)
    return [{"sequence_id": i, **row} for i, row in enumerate(rows)]
