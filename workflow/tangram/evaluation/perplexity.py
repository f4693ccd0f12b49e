"""Perplexity of texts by the field's two conventions, with the loss of every window or page.

- Level `token` is that of transformers' documentation ("Perplexity of fixed-length models"): the whole text is one
  sequence, read in windows that move by a stride. A window predicts the tokens that the one before it did not read;
  without overlap, nothing predicts a window's first token. The mean is over predicted tokens.
- Levels `word` and `byte` are that of lm-eval's task `wikitext`: the text is split into pages, each page is detokenized
  and predicted from its first token on in disjoint windows, and the loss is divided by the words or bytes of the
  original page.

All models of one run read the same text, so their losses are paired by window or page.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from tangram.config import HubText, LocalText, Perplexity
from tangram.corpus.documents import texts_of
from tangram.corpus.framing import opened, opening
from tangram.errors import TangramError
from tangram.models.forward import logits_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

UNITS = {"token": "tokens", "word": "words", "byte": "bytes"}
HEAD_TOKENS = 512  # tokens whose logits are in memory at a time


@dataclass(frozen=True)
class Losses:
    """A model's loss on the parts of a text: windows at level `token`, else pages.

    Attributes:
        nats: summed loss of each part, ``(parts,)``.
        counts: tokens, words or bytes of each part, ``(parts,)``.
    """

    nats: torch.Tensor
    counts: torch.Tensor


def read_text(name: str, source: HubText | LocalText) -> list[str]:
    """Return the rows or files of a text in their order.

    Raises:
        TangramError: the source cannot be read, or it is empty.
    """
    where = f"config.evaluation.perplexity: '{name}'"
    try:
        texts = list(texts_of(source))
    except TangramError as error:
        raise TangramError(f"{where}: {str(error).removeprefix('corpus: ')}") from error
    if not any(text.strip() for text in texts):
        raise TangramError(f"{where} is empty; correct its source")
    return texts


def pages(text: str) -> list[str]:
    """Return the pages of a text in WikiText's form, which begin with a heading of the first level, `= Title =`."""
    parts: list[list[str]] = [[]]
    for line in text.split("\n"):
        heading = line.replace("= = =", "===").replace("= =", "==").strip()
        if heading.startswith("= ") and heading.endswith(" ="):
            parts.append([])
        parts[-1].append(line)
    joined = ["\n".join(part) for part in parts]
    return [page for page in joined if page.strip()]


def windows(tokens: int, length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield start and end of each window, and the first position that it predicts."""
    done = 0
    for start in range(0, tokens, stride):
        end = min(start + length, tokens)
        first = max(done, start + 1)  # a window's first token has nothing before it
        if first < end:
            yield start, end, first
        done = end
        if end == tokens:
            return


@torch.inference_mode()
def by_token(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, length: int, stride: int, label: str
) -> Losses:
    """Return the loss of every window of a text.

    Args:
        model: parent or child.
        tokenizer: its tokenizer.
        text: the text.
        length: tokens per window.
        stride: tokens by which windows move.
        label: label of the progress bar and of errors.

    Raises:
        TangramError: the text has less than two tokens, or the model's outputs are not finite.
    """
    ids = torch.tensor(opened(text, tokenizer, opening(tokenizer)), device=model.device)
    nats, counts = [], []
    for start, end, first in tqdm(list(windows(len(ids), length, stride)), desc=label, mininterval=5):
        hidden = model.model(input_ids=ids[None, start:end], use_cache=False).last_hidden_state[0]
        predicting = hidden[first - 1 - start : end - 1 - start].split(HEAD_TOKENS)
        losses = [
            torch.nn.functional.cross_entropy(logits_of(model, part).float(), targets, reduction="none").double()
            for part, targets in zip(predicting, ids[first:end].split(HEAD_TOKENS), strict=True)
        ]
        nats.append(torch.cat(losses).sum().cpu())
        counts.append(end - first)
    if not counts:
        raise TangramError(f"{label}: the text has less than two tokens; correct its source")
    return _checked(Losses(torch.stack(nats), torch.tensor(counts, dtype=torch.float64)), label)


def by_page(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    level: str,
    length: int | None,
    label: str,
) -> Losses:
    """Return the loss of every page by lm-eval's convention; arguments as for `by_token`.

    Args:
        model: parent or child.
        tokenizer: its tokenizer.
        texts: the pages.
        level: ``'word'`` or ``'byte'``.
        length: tokens per window; the model's context by default.
        label: label of errors.

    Raises:
        TangramError: the model's outputs are not finite.
    """
    from lm_eval.api.instance import Instance
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    from tangram.evaluation.shared_prefix import SharedPrefixLM

    requests = [
        Instance("loglikelihood_rolling", {}, (wikitext_detokenizer({"page": text}),), i)
        for i, text in enumerate(texts)
    ]
    scores = SharedPrefixLM(model, tokenizer, label, length).loglikelihood_rolling(requests, disable_tqdm=True)
    counts = [len(re.split(r"\s+", text)) if level == "word" else len(text.encode()) for text in texts]
    nats = torch.tensor([-score for score in scores], dtype=torch.float64)
    return _checked(Losses(nats, torch.tensor(counts, dtype=torch.float64)), label)


def losses_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: Perplexity, texts: Sequence[str], label: str
) -> Losses:
    """Return a model's loss on the parts of a text by the convention of its section.

    Args:
        model: parent or child.
        tokenizer: its tokenizer.
        text: the config's section.
        texts: the rows or files of its source.
        label: label of the progress bar and of errors.

    Raises:
        TangramError: the windows exceed the model's context, or its outputs are not finite.
    """
    from tangram.config.limits import positions

    context = positions(model.config.to_dict())
    where = f"config.evaluation.perplexity: '{text.name}'"
    if context and text.max_length and text.max_length > context:
        raise TangramError(f"{where}: max_length {text.max_length} exceeds the model's {context} positions; lower it")
    if text.level != "token":
        local = isinstance(text.source, LocalText)  # rows of a dataset are pages
        parts = [page for row in texts for page in (pages(row) if local else [row])]
        return by_page(model, tokenizer, parts, text.level, text.max_length, label)
    length = text.max_length or context
    if length is None:
        raise TangramError(f"{where}: the model does not name its context; set max_length")
    if text.stride and text.stride > length:
        raise TangramError(f"{where}: stride {text.stride} exceeds the windows of {length} tokens; lower it")
    return by_token(model, tokenizer, "\n\n".join(texts), length, text.stride or length, label)


def _checked(losses: Losses, label: str) -> Losses:
    if not losses.nats.isfinite().all():
        raise TangramError(f"{label}: the model's outputs are not finite; its weights are broken, rebuild it")
    return losses


def perplexity_of(losses: Losses) -> float:
    """Return the perplexity per token, word or byte."""
    return math.exp(losses.nats.sum().item() / losses.counts.sum().item())


def loss_rows(model: str, text: Perplexity, losses: Losses) -> list[dict[str, Any]]:
    """Return the rows of `tables.SAMPLES` for one model: `nats`, and `tokens`, `words` or `bytes`, of every part."""
    values = {"nats": losses.nats, UNITS[text.level]: losses.counts}
    return [
        {"model": model, "task": text.name, "sample": sample, "metric": metric, "value": value}
        for metric, of_parts in values.items()
        for sample, value in enumerate(of_parts.tolist())
    ]
