"""Documents to sequences of one length, each with the documents that it holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tangram.corpus.documents import document_hash
from tangram.corpus.framing import document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sequence:
    """A sequence of tokens and, for each document in it, its SHA-256 and the position of its first token here."""

    input_ids: list[int]
    documents: list[str]
    document_starts: list[int]


def pack(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, sequence_length: int, cross_documents: bool
) -> Iterator[Sequence]:
    """Tokenize documents and cut them into sequences of exactly ``sequence_length`` tokens, without padding.

    Each sequence holds one document, and what is left of a document after its last full sequence is dropped; whether it
    ends in an end-of-sequence token is the tokenizer's to say. With ``cross_documents`` they follow each other, one
    such token between them, and nothing is dropped.
    """
    ids: list[int] = []
    spans: list[tuple[str, int]] = []  # documents in `ids` and where each starts
    closed = False  # whether an end-of-sequence token came before
    for text in texts:
        own = document(text, tokenizer, separate=cross_documents)
        if not cross_documents:
            ids, spans = [], []
        elif closed and own[:1] == [tokenizer.eos_token_id]:
            own = own[1:]  # BOS and EOS are one token: it closes the one before, and opens this one
        if not own:
            continue
        closed = own[-1] == tokenizer.eos_token_id
        spans.append((document_hash(text), len(ids)))
        ids.extend(own)
        while len(ids) >= sequence_length:
            inside = [(name, start) for name, start in spans if start < sequence_length]
            yield Sequence(ids[:sequence_length], [name for name, _ in inside], [start for _, start in inside])
            ids = ids[sequence_length:]
            # The last document of this sequence goes on in the next one, unless it ended here.
            later = [(name, max(0, start - sequence_length)) for name, start in spans]
            spans = [span for i, span in enumerate(later) if i + 1 == len(later) or later[i + 1][1] > 0]
        if not ids:
            spans = []
