"""Text sampled from the parent; a text's first token assigns it to a split."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from tangram.config import ParentSamples
from tangram.corpus.documents import document_hash, split_of
from tangram.corpus.framing import opening, text_tokens
from tangram.corpus.packing import Sequence
from tangram.errors import TangramError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.inference_mode()
def sample(
    model: PreTrainedModel,
    prefix: torch.Tensor,
    uniforms: torch.Tensor,
    allowed: torch.Tensor,
    temperature: float = 1.0,
    progress: Any = None,
) -> torch.Tensor:
    """Continue each row of ``prefix`` by tokens sampled from the model's distribution.

    Sampling inverts the cumulative distribution at precomputed uniform numbers, so a row's text does not depend on the
    other rows of its batch.

    Args:
        model: the parent.
        prefix: tokens, ``(batch, prefix)``.
        uniforms: ``(batch, new)`` float64 in [0, 1), one per new token.
        allowed: ``(vocabulary,)`` bool; the tokens that may be sampled.
        temperature: divisor of the logits.
        progress: a tqdm bar to advance by the number of new tokens.

    Returns:
        Tokens, ``(batch, prefix + new)``.

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
        # The sum is 1 up to rounding. Scaled by it, no draw lies beyond the last allowed token.
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
    """Yield ``count`` sequences sampled from the parent after a random first token.

    Special tokens are not sampled, so each document fills its sequence exactly. A sequence begins with the special
    tokens that the tokenizer adds before a text (BOS for some families) and has no closing ones. Every first token of
    the split is used once before any is used again.
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
            prefixes, draws = prefix[rows].to(model.device), uniforms[rows].to(model.device)
            for row in sample(model, prefixes, draws, allowed, source.temperature, progress).tolist():
                yield Sequence(row, [document_hash(str(tokenizer.decode(row[len(first) :])))], [0])
