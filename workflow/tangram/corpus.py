"""Text sources to tokenised sequences of one length, each with the documents that it holds.

No two splits share a document, by construction and without any split knowing of the others: a document belongs to the
split that its own hash points to, whatever source it comes from. Text that the parent writes is divided the same way by
its first token.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tangram.config import SPLITS, HubText, LocalText, PackageText, ParentSamples, Split, TextSource
from tangram.errors import TangramError
from tangram.framing import document, opening, render, text_tokens
from tangram.packages import fetch_archive, read_members
from tangram.tables import CORPUS, read_arrow

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_LOADERS = {".txt": "text", ".jsonl": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class Sequence:
    """A sequence of tokens and, for each document in it, its SHA-256 and the position of its first token here."""

    input_ids: list[int]
    documents: list[str]
    document_starts: list[int]


def document_hash(text: str) -> str:
    """Return the SHA-256 of a document's text."""
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


def split_of(key: str) -> str:
    """Return the one split that may use the document (or first token) with this SHA-256."""
    return SPLITS[int(key, 16) % len(SPLITS)]


def source_name(source: TextSource) -> str:
    """Return how tables and messages call a source."""
    detail = getattr(source, "repo", None) or getattr(source, "package", None)
    return f"{source.type}:{detail}" if detail else source.type


def _seed(seed: int, split: str, index: int) -> int:
    """Return a seed of its own for each source of each split."""
    return int(hashlib.sha256(f"{seed}/{split}/{index}".encode()).hexdigest()[:12], 16)


# --- documents ------------------------------------------------------------------------------------------------------


def _quoref_passages(data: bytes, name: str) -> list[str]:
    """Return the distinct passages of a BIG-bench `natural_instructions` Quoref task, without questions."""
    try:
        inputs = [example["input"] for example in json.loads(data)["examples"]]
    except (ValueError, KeyError, TypeError) as error:
        raise TangramError(f"{name} is not a BIG-bench task of Quoref ({error!r}); correct corpus' members") from error
    return [text.removeprefix("Passage:").partition("\nQuestion:")[0].strip() for text in inputs]


def _package_documents(source: PackageText) -> Iterator[str]:
    for name, data in read_members(fetch_archive(source), source.members):
        if source.reader == "bigbench-quoref":
            yield from _quoref_passages(data, name)
        else:
            yield data.decode("utf-8", errors="replace")


_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # errors that reading text never ends in
_TEXT = ("string", "large_string", "binary", "large_binary", "null")


def _cache_fault(error: BaseException) -> TangramError | None:
    """Return what to say when not the text is at fault, but the folder where `datasets` keeps its copy of it."""
    from datasets import config
    from huggingface_hub import constants

    folders = [Path(folder).absolute() for folder in (config.HF_DATASETS_CACHE, config.HF_CACHE_HOME)]
    folders.append(Path(constants.HF_HUB_CACHE).absolute())
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            path = Path(str(cause.filename)).absolute() if cause.filename else None
            inside = path and any(path.is_relative_to(one) or one.is_relative_to(path) for one in folders)
            if inside or cause.errno in _WRITING or "Not enough disk space" in str(cause):
                return TangramError(
                    f"corpus: Hugging Face's cache {path or folders[0]} cannot be written "
                    f"({cause.strerror or str(cause).strip()}); set HF_HOME or HF_DATASETS_CACHE to a folder that can, "
                    "with space in it"
                )
        cause = cause.__cause__ or cause.__context__
    return None


@contextmanager
def _reading(fault: str) -> Iterator[None]:
    """Turn what `datasets`, its readers and the hub raise, which has no base class, into one line.

    Args:
        fault: the line, with ``{name}`` and ``{reason}`` of the exception to fill in.
    """
    try:
        yield
    except TangramError:
        raise
    except Exception as error:
        if cache := _cache_fault(error):
            raise cache from error
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise TangramError(fault.replace("{name}", type(error).__name__).replace("{reason}", reason)) from error


def _local_dataset(source: LocalText) -> Any:
    from datasets import Value, concatenate_datasets, load_dataset

    files: dict[str, list[str]] = {}
    for pattern in source.paths:
        matching = sorted(glob.glob(pattern, recursive=True))
        if not matching:
            raise TangramError(f"corpus: no file matches '{pattern}'")
        for file in matching:
            if (loader := _LOADERS.get(Path(file).suffix)) is None:
                raise TangramError(f"corpus: {file} is not one of {', '.join(_LOADERS)}")
            if Path(file).stat().st_size:  # the readers of datasets refuse empty files
                files.setdefault(loader, []).append(file)
    if not files:
        raise TangramError(f"corpus: {', '.join(source.paths)}: all files are empty")
    parts = []
    for loader, paths in files.items():
        where = f"{paths[0]} and {len(paths) - 1} more" if len(paths) > 1 else paths[0]
        column, options = (source.text_column, {}) if loader != "text" else ("text", {"sample_by": "document"})
        with _reading(f"corpus: {where} cannot be read as {loader}: {{reason}}"):
            part = load_dataset(loader, data_files=paths, split="train", **options)
            _check_column(part.column_names, column, where)
            part = part.select_columns([column]).rename_columns({column: "text"} if column != "text" else {})
            if getattr(part.features["text"], "dtype", None) in _TEXT:
                part = part.cast_column("text", Value("string"))
        parts.append(part)
    with _reading(f"corpus: {', '.join(source.paths)} do not go together: {{reason}}; make each a source of its own"):
        return concatenate_datasets(parts)


def _hub_dataset(source: HubText) -> Any:
    from datasets import load_dataset

    # Streamed: a corpus takes a sliver of most datasets.
    dataset = load_dataset(source.repo, source.name, revision=source.revision, split=source.split, streaming=True)
    if dataset.column_names is None:  # not known before the first row
        return dataset.map(lambda row: _checked(row, source))
    _check_column(dataset.column_names, source.text_column, source.repo)
    if source.text_column != "text":
        dataset = dataset.select_columns([source.text_column]).rename_column(source.text_column, "text")
    return dataset


def _checked(row: dict[str, Any], source: HubText) -> dict[str, Any]:
    _check_column(list(row), source.text_column, source.repo)
    return {"text": row[source.text_column]}


def _check_column(columns: list[str], wanted: str, where: str) -> None:
    if wanted not in columns:
        raise TangramError(f"corpus: {where} has no column '{wanted}'; it has {', '.join(columns)}: set text_column")


def _rows(source: TextSource, seed: int) -> Iterator[Any]:
    """Yield what the source's text column holds, row by row, in an order that follows from ``seed``."""
    from datasets import Dataset

    if isinstance(source, HubText):
        fault = (
            f"corpus: cannot read dataset {source.repo} from the hub ({{name}}: {{reason}}); "
            "check its name and the network, or use local files"
        )
    else:
        fault = f"corpus: source {source_name(source)} cannot be read ({{name}}: {{reason}})"
    with _reading(fault):
        if isinstance(source, HubText):
            dataset = _hub_dataset(source)
        elif isinstance(source, LocalText):
            dataset = _local_dataset(source)
        elif isinstance(source, PackageText):
            dataset = Dataset.from_dict({"text": list(_package_documents(source))})
        else:
            from pydoc_data.topics import topics

            dataset = Dataset.from_dict({"text": [text for _, text in sorted(topics.items())]})
        for row in dataset.shuffle(seed=seed):
            yield row["text"]


def documents(
    source: TextSource, split: str, seed: int, tokenizer: PreTrainedTokenizerBase | None = None
) -> Iterator[str]:
    """Yield a source's documents that belong to ``split``, each once, in an order that follows from ``seed``.

    A document is a row of a dataset, a whole text file, or what a package's reader yields; blank ones are left out. A
    row that holds a conversation is a document as the parent's chat template renders it; one with a turn without text
    (a call of a tool) is left out.

    Args:
        source: where they come from.
        split: one of `config.SPLITS`.
        seed: of their order.
        tokenizer: the parent's, with its chat template; only conversations need it.

    Raises:
        TangramError: the source cannot be read, or its column holds no text.
    """
    column = getattr(source, "text_column", "text")
    seen = set()
    for value in _rows(source, seed):
        try:
            text = value if value is None or isinstance(value, str) else render(value, tokenizer)
        except TangramError as error:
            where = getattr(source, "repo", None) or ", ".join(getattr(source, "paths", ()))
            raise TangramError(
                f"corpus: {where}: column '{column}' {error}; set text_column to one of text, or take another source"
            ) from error
        if text and text.strip() and (key := document_hash(text)) not in seen and split_of(key) == split:
            seen.add(key)
            yield text


def pack(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, sequence_length: int, cross_documents: bool
) -> Iterator[Sequence]:
    """Tokenise documents and cut them into sequences of exactly ``sequence_length`` tokens, without padding.

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


# --- the parent's own text ------------------------------------------------------------------------------------------


@torch.inference_mode()
def sample(
    model: PreTrainedModel,
    prefix: torch.Tensor,
    uniforms: torch.Tensor,
    allowed: torch.Tensor,
    temperature: float = 1.0,
    progress: Any = None,
) -> torch.Tensor:
    """Continue each row of ``prefix`` by tokens drawn from the model's own distribution.

    Drawing inverts the cumulative distribution at numbers given beforehand, so that the text does not depend on the
    batch that a row is in.

    Args:
        model: the parent.
        prefix: ``(batch, given)`` tokens.
        uniforms: ``(batch, new)`` float64 in [0, 1), one per token to draw.
        allowed: ``(vocabulary,)`` bool; tokens that may be drawn.
        temperature: divides the logits.
        progress: a tqdm bar to advance by the tokens drawn.

    Returns:
        ``(batch, given + new)`` tokens.

    Raises:
        TangramError: the logits are not finite.
    """
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    tokens, last = prefix, prefix
    for step in range(uniforms.shape[1]):
        logits = model(last, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].float()
        logits = logits.div_(temperature).masked_fill_(~allowed, -torch.inf)
        cumulative = torch.softmax(logits, dim=-1).cumsum(dim=-1, dtype=torch.float64)
        if not torch.isfinite(cumulative[:, -1]).all():
            raise TangramError("the parent's logits are not finite while it writes the corpus; try dtype float32")
        # The sum is 1 but for rounding: scaled by it, no draw falls beyond the last allowed token.
        draws = uniforms[:, step : step + 1] * cumulative[:, -1:]
        last = torch.searchsorted(cumulative, draws, right=True)
        tokens = torch.cat([tokens, last], dim=1)
        if progress is not None:
            progress.update(len(last))
    return tokens


def parent_samples(
    source: ParentSamples,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    split: str,
    count: int,
    sequence_length: int,
    seed: int,
) -> Iterator[Sequence]:
    """Yield ``count`` sequences that the parent writes: a random first token, then sampling.

    Special tokens are never drawn, so a document never ends and each fills its sequence exactly. Whatever the
    tokenizer puts before a text (a BOS token, for some families) comes first; what it puts after one never comes. No
    first token is used twice before all of the split's have been used once.
    """
    from tqdm import tqdm

    text = text_tokens(tokenizer)
    allowed = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=model.device)
    allowed[text] = True
    pool = [token for token in text if split_of(document_hash(str(token))) == split]
    if not pool:
        raise TangramError(f"corpus.{split}: the tokenizer has too few tokens ({len(text)}) to start documents with")
    random.Random(seed).shuffle(pool)
    first = opening(tokenizer)
    prefix = torch.tensor([[*first, pool[i % len(pool)]] for i in range(count)])
    generator = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(count, sequence_length - prefix.shape[1], generator=generator, dtype=torch.float64)
    label = f"build_corpus {split}: parent writes"
    with tqdm(total=uniforms.numel(), desc=label, unit="token", mininterval=5) as progress:
        for start in range(0, count, source.batch_size):
            rows = slice(start, start + source.batch_size)
            given, drawn = prefix[rows].to(model.device), uniforms[rows].to(model.device)
            for row in sample(model, given, drawn, allowed, source.temperature, progress).tolist():
                yield Sequence(row, [document_hash(str(tokenizer.decode(row[len(first) :])))], [0])


# --- the split ------------------------------------------------------------------------------------------------------


def shares(total: int, weights: list[float]) -> list[int]:
    """Divide ``total`` sequences by weight; remainders go to the largest fractions, so that the sum is exact."""
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [math.floor(value) for value in exact]
    by_fraction = sorted(range(len(weights)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_fraction[: total - sum(counts)]:
        counts[i] += 1
    return counts


def build(
    name: str,
    split: Split,
    sequence_length: int,
    cross_documents: bool,
    parent: str | Path,
    seed: int,
    dtype: str = "float32",
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Return the rows (`tables.CORPUS`) of one split, its sources mixed by weight and shuffled.

    Args:
        name: the split's name, one of `config.SPLITS`.
        split: tokens wanted and sources.
        sequence_length: tokens per sequence.
        cross_documents: whether a packed sequence may span documents.
        parent: checkpoint folder; its tokenizer is used, and its model where it writes the text.
        seed: every choice follows from it.
        dtype: of the parent while it writes.
        device: where the parent writes.

    Raises:
        TangramError: a source cannot be read or holds too little text.
    """
    from tangram.checkpoint import load_model, load_tokenizer

    if name not in SPLITS:
        raise TangramError(f"'{name}' is not a split; valid: {', '.join(SPLITS)}")
    tokenizer = load_tokenizer(parent)
    counts = shares(math.ceil(split.tokens / sequence_length), [source.weight for source in split.sources])
    parts: dict[int, list[dict[str, Any]]] = {}
    # Text that is there already comes first: what is wrong with it shows before the parent writes for long.
    for index in sorted(range(len(counts)), key=lambda i: isinstance(split.sources[i], ParentSamples)):
        source, count, source_seed = split.sources[index], counts[index], _seed(seed, name, index)
        sequences: Iterable[Sequence]
        if isinstance(source, ParentSamples):
            model = load_model(parent, dtype, device)
            sequences = parent_samples(source, model, tokenizer, name, count, sequence_length, source_seed)
        else:
            texts = documents(source, name, source_seed, tokenizer)
            sequences = pack(texts, tokenizer, sequence_length, cross_documents)
        taken = [sequence for _, sequence in zip(range(count), sequences, strict=False)]
        if len(taken) < count:
            raise TangramError(
                f"corpus.{name}: source {source_name(source)} gives only {len(taken) * sequence_length} tokens in "
                f"sequences of {sequence_length}, {count * sequence_length} wanted (each split takes only its own "
                f"{len(SPLITS)}th of the documents); add text, lower corpus.{name}.tokens or corpus.sequence_length"
            )
        parts[index] = [{"source": source_name(source), **vars(sequence)} for sequence in taken]
    rows = [row for index in sorted(parts) for row in parts[index]]
    random.Random(_seed(seed, name, -1)).shuffle(rows)
    return [{"sequence_id": i, **row} for i, row in enumerate(rows)]


def read_tokens(path: str | Path) -> torch.Tensor:
    """Return a split's tokens, ``(sequences, length)`` int64.

    Raises:
        TangramError: the table is missing or damaged.
    """
    return torch.tensor(read_arrow(path, CORPUS)["input_ids"].to_pylist(), dtype=torch.int64)
