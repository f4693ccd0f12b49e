"""Pack documents into sequences of equal length, which record their documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tangram.config import Packing
from tangram.corpus.documents import document_hash
from tangram.corpus.framing import document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOO_SHORT = "too short"  # reason for leaving out a document


@dataclass(frozen=True)
class Sequence:
    """A sequence of tokens, and the SHA-256 and the first position of each document in it."""

    input_ids: list[int]
    documents: list[str]
    document_starts: list[int]


def pack(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    packing: Packing,
    dropped: Counter[str] | None = None,
) -> Iterator[Sequence]:
    """Tokenize documents and cut them into sequences of exactly `sequence_length` tokens, without padding.

    By default, each sequence holds one document; the tokens after a document's last full sequence are dropped, and the
    tokenizer determines whether it ends in EOS. With `cross_documents`, documents are concatenated with one EOS
    between them, and nothing is dropped.

    Documents of fewer than `min_document_tokens` are left out, and counted in ``dropped``.
    """
    sequence_length = packing.sequence_length
    ids: list[int] = []
    spans: list[tuple[str, int]] = []  # documents in `ids`, and the start of each
    closed = False  # whether the previous document ended in EOS
    for text in texts:
        document_ids = document(text, tokenizer, separate=packing.cross_documents)
        if len(document_ids) < packing.min_document_tokens:
            if dropped is not None:
                dropped[TOO_SHORT] += 1
            continue
        if not packing.cross_documents:
            ids, spans = [], []
        elif closed and document_ids[:1] == [tokenizer.eos_token_id]:
            document_ids = document_ids[1:]  # BOS and EOS are one token, so the previous EOS is also this BOS
        if not document_ids:
            continue
        closed = document_ids[-1] == tokenizer.eos_token_id
        spans.append((document_hash(text), len(ids)))
        ids.extend(document_ids)
        while len(ids) >= sequence_length:
            inside = [(name, start) for name, start in spans if start < sequence_length]
            yield Sequence(ids[:sequence_length], [name for name, _ in inside], [start for _, start in inside])
            ids = ids[sequence_length:]
            # The last document of this sequence continues in the next one, unless it ended here.
            later = [(name, max(0, start - sequence_length)) for name, start in spans]
            spans = [span for i, span in enumerate(later) if i + 1 == len(later) or later[i + 1][1] > 0]
        if not ids:
            spans = []
