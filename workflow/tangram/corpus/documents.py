"""Read the documents of one split from a text source.

No two splits share a document: its hash assigns a document to one split, whatever source it comes from.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangram.archives import fetch_archive, read_members
from tangram.config import SPLITS, HubText, LocalText, PackageText, TextSource
from tangram.corpus.framing import render
from tangram.errors import TangramError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LOADERS = {".txt": "text", ".jsonl": "json", ".parquet": "parquet"}
_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # errors of writing, which mean a fault of the cache
_TEXT = ("string", "large_string", "binary", "large_binary", "null")


def document_hash(text: str) -> str:
    """Return the SHA-256 of a document's text."""
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


def document_key(text: str, duplicates: str = "exact") -> str:
    """Return the SHA-256 by which documents are compared: of the text, or of its words joined by single spaces.

    Args:
        text: the document.
        duplicates: the config's `corpus.duplicates`.
    """
    return document_hash(" ".join(text.split()) if duplicates == "whitespace" else text)


def split_of(key: str) -> str:
    """Return the one split that may use the document (or first token) with this SHA-256."""
    return SPLITS[int(key, 16) % len(SPLITS)]


def source_name(source: TextSource) -> str:
    """Return a source's name in tables and messages."""
    detail = getattr(source, "repo", None) or getattr(source, "package", None)
    return f"{source.type}:{detail}" if detail else source.type


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


def _cache_fault(error: BaseException) -> TangramError | None:
    """Return the error to raise if the cache folder of `datasets` or the hub is at fault, else None."""
    from datasets import config
    from huggingface_hub import constants

    folders = [Path(folder).absolute() for folder in (config.HF_DATASETS_CACHE, config.HF_CACHE_HOME)]
    folders.append(Path(constants.HF_HUB_CACHE).absolute())
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            path = Path(str(cause.filename)).absolute() if cause.filename else None
            inside = path and any(path.is_relative_to(other) or other.is_relative_to(path) for other in folders)
            if inside or cause.errno in _WRITING or "Not enough disk space" in str(cause):
                return TangramError(
                    f"corpus: Hugging Face's cache {path or folders[0]} cannot be written "
                    f"({cause.strerror or str(cause).strip()}); set HF_HOME or HF_DATASETS_CACHE to a writable folder "
                    "with free space"
                )
        cause = cause.__cause__ or cause.__context__
    return None


@contextmanager
def _reading(fault: str) -> Iterator[None]:
    """Convert the exceptions of `datasets`, its readers and the hub, which have no common base class.

    Args:
        fault: the message of the `TangramError`, with ``{name}`` and ``{reason}`` of the exception to fill in.
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
            if Path(file).stat().st_size:  # `datasets` refuses empty files
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
    with _reading(f"corpus: {', '.join(source.paths)} do not fit together: {{reason}}; make each a source of its own"):
        return concatenate_datasets(parts)


def _hub_dataset(source: HubText) -> Any:
    from datasets import load_dataset

    # Streamed, because a corpus takes a small part of most datasets.
    dataset = load_dataset(source.repo, source.name, revision=source.revision, split=source.split, streaming=True)
    if dataset.column_names is None:  # unknown before the first row
        return dataset.map(lambda row: _checked(row, source))
    _check_column(dataset.column_names, source.text_column, source.repo)
    if source.text_column != "text":
        dataset = dataset.select_columns([source.text_column]).rename_column(source.text_column, "text")
    return dataset


def _checked(row: dict[str, Any], source: HubText) -> dict[str, Any]:
    _check_column(list(row), source.text_column, source.repo)
    return {"text": row[source.text_column]}


def _check_column(columns: list[str], column: str, where: str) -> None:
    if column not in columns:
        raise TangramError(f"corpus: {where} has no column '{column}'; it has {', '.join(columns)}: set text_column")


def _rows(source: TextSource, seed: int | None) -> Iterator[Any]:
    """Yield the values of the source's text column, shuffled by ``seed``; in their order without one."""
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
        for row in dataset if seed is None else dataset.shuffle(seed=seed):
            yield row["text"]


def documents(
    source: TextSource,
    split: str,
    seed: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
    duplicates: str = "exact",
    seen: set[str] | None = None,
    dropped: Counter[str] | None = None,
) -> Iterator[str]:
    """Yield the distinct documents of a source that belong to ``split``, shuffled by ``seed``.

    A document is a row of a dataset, a whole text file, or a text from a package's reader. The parent's chat template
    renders a row that holds a conversation. Blank documents are left out, and conversations with a turn without text
    (such as a tool call).

    Args:
        source: the text source.
        split: one of `config.SPLITS`.
        seed: seed of the order.
        tokenizer: the parent's tokenizer with its chat template; only conversations need it.
        duplicates: the config's `corpus.duplicates`.
        seen: keys of the split's documents from other sources, which are left out here; yielded documents are added.
        dropped: counts the rows that were read and left out, by reason.

    Raises:
        TangramError: the source cannot be read, or its column holds no text.
    """
    column = getattr(source, "text_column", "text")
    seen = set() if seen is None else seen
    dropped = Counter() if dropped is None else dropped
    for value in _rows(source, seed):
        try:
            text = value if value is None or isinstance(value, str) else render(value, tokenizer)
        except TangramError as error:
            where = getattr(source, "repo", None) or ", ".join(getattr(source, "paths", ()))
            raise TangramError(
                f"corpus: {where}: column '{column}' {error}; set text_column to a text column, or use another source"
            ) from error
        if text is None or not text.strip():
            dropped["without text"] += 1
        elif split_of(key := document_key(text, duplicates)) == split:
            if key in seen:
                dropped["duplicates"] += 1
                continue
            seen.add(key)
            yield text


def texts_of(source: TextSource) -> Iterator[str]:
    """Yield all rows or files of a source in their order, blank ones and repetitions, too.

    Raises:
        TangramError: the source cannot be read, or its column holds no text.
    """
    for value in _rows(source, None):
        if not isinstance(value, str):
            where = getattr(source, "repo", None) or ", ".join(getattr(source, "paths", ()))
            raise TangramError(f"corpus: {where}: column '{getattr(source, 'text_column', 'text')}' holds no text")
        yield value
