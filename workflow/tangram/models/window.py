"""Attention of each token to the last tokens of a window, and to the first tokens of the text.

This file is copied into every child checkpoint that has the model's code, so it imports nothing but torch and
transformers.

The first tokens are attention sinks, without which attention of trained models breaks down (StreamingLLM, arXiv
2309.17453). The window is a property of the call: any attention module runs here, and any KV cache that stores all
tokens. Time grows with the window and not with the text; the cache does not shrink.
"""

from typing import Any

import torch
from transformers import Cache, DynamicCache

SINKS = 4  # first tokens that are always seen
SMALLEST_CHUNK = 64  # tokens whose attention is computed at a time


def window_mask(mask: torch.Tensor, window: int) -> torch.Tensor:
    """Return an attention mask that leaves each token the first `SINKS` and the last ``window`` tokens that it sees.

    Args:
        mask: ``(batch, 1, tokens, keys)``, of booleans (True: seen) or of numbers to add (0: seen).
        window: number of tokens.
    """
    seen = mask if mask.dtype == torch.bool else mask == 0
    first, last = seen.cumsum(-1), seen.flip(-1).cumsum(-1).flip(-1)
    remaining = seen & ((first <= SINKS) | (last <= window))
    return remaining if mask.dtype == torch.bool else mask.masked_fill(~remaining, torch.finfo(mask.dtype).min)


class RecentKeys:
    """A KV cache that returns the keys and values of the first `SINKS` tokens and of those in a range.

    Args:
        cache: stores all keys and values, perhaps in longer buffers.
        first: the first token of the range.
        end: the end of the range.
    """

    def __init__(self, cache: Cache, first: int, end: int):
        self._cache, self._first, self._end = cache, first, end

    def update(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        """Append keys and values, ``(batch, KV heads, tokens, head size)``, and return those of the tokens above."""
        states = self._cache.update(*args, **kwargs)
        if self._first <= SINKS:
            return tuple(x[:, :, : self._end] for x in states)
        return tuple(torch.cat([x[:, :, :SINKS], x[:, :, self._first : self._end]], dim=2) for x in states)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def _attend_to_recent(attention: Any, window: int, hidden_states: torch.Tensor, cache: Cache, kwargs: Any) -> Any:
    """Return the outputs of tokens that follow those in a cache; no token is padding."""
    tokens, past = hidden_states.shape[1], int(cache.get_seq_length(attention.layer_idx))
    end, first, mask = past + tokens, past + 1 - window, None
    if tokens > 1 and (past or end > window):
        columns, rows = (torch.arange(start, end, device=hidden_states.device) for start in (0, past))
        columns = torch.cat([columns[:SINKS], columns[first:]]) if first > SINKS else columns
        distances = rows[:, None] - columns
        mask = ((distances >= 0) & ((columns < SINKS) | (distances < window)))[None, None]
        if attention.config._attn_implementation == "eager":
            added = hidden_states.new_zeros(mask.shape)
            mask = added.masked_fill(~mask, torch.finfo(added.dtype).min)
    recent = RecentKeys(cache, first, end)
    return attention(hidden_states=hidden_states, attention_mask=mask, past_key_values=recent, **kwargs)[0]


def attend_to_window(
    attention: Any,
    window: int,
    hidden_states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    attention_mask: torch.Tensor | None = None,
    past_key_values: Cache | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Return the outputs of attention to the first `SINKS` and the last ``window`` tokens, the token itself included.

    Without a mask, which padding or several texts in one sequence need, only the keys that are seen are read.

    Args:
        attention: attention of transformers, or a packed one.
        window: number of tokens.
        hidden_states: ``(batch, tokens, hidden)``.
        position_embeddings: cosines and sines, ``(batch, tokens, head size)``.
        attention_mask: see `window_mask`.
        past_key_values: the cache of all keys and values.
        kwargs: further arguments of ``attention``.

    Raises:
        ValueError: the attention implementation takes no such masks.
    """
    if attention.config._attn_implementation not in ("eager", "sdpa"):
        raise ValueError(f"a window needs sdpa or eager attention, not {attention.config._attn_implementation}")
    if attention_mask is not None:
        outputs: torch.Tensor = attention(
            hidden_states=hidden_states,
            position_embeddings=position_embeddings,
            attention_mask=window_mask(attention_mask, window),
            past_key_values=past_key_values,
            **kwargs,
        )[0]
        return outputs
    cache = DynamicCache() if past_key_values is None else past_key_values
    chunk = max(window, SMALLEST_CHUNK)
    parts = []
    for start in range(0, hidden_states.shape[1], chunk):
        part = slice(start, start + chunk)
        arguments = {**kwargs, "position_embeddings": tuple(table[:, part] for table in position_embeddings)}
        parts.append(_attend_to_recent(attention, window, hidden_states[:, part], cache, arguments))
    return torch.cat(parts, dim=1)
