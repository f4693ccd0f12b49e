"""Attention for fast inference: one rotation of queries and keys, a cache that grows in place, and short decode steps.

This file is copied into every child checkpoint that has the model's code, so it imports nothing but torch and
transformers. Results equal those of transformers up to rounding.
"""

from typing import Any

import torch
from torch import nn
from transformers import Cache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

SLACK = 56  # tokens for which a cache layer has room when it grows; not a power of two, which would collide in caches


class GrowingLayer(DynamicLayer):
    """A layer of a KV cache that writes new tokens into buffers with room, instead of copying all tokens at each step.

    Shallow copies share the buffers. One of them, the owner, appends to them; others get new buffers when they grow.

    Attributes:
        keys: ``(batch, KV heads, tokens, head size)``, a view of a buffer; `values` likewise.
    """

    keys: Any
    values: Any

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Start without tokens."""
        super().lazy_initialization(key_states, value_states)
        batch, heads, _, size = key_states.shape
        self.keys, self.values = (key_states.new_empty(batch, heads, 0, size) for _ in range(2))
        self._buffers: tuple[torch.Tensor, ...] = ()
        self._shared: list[int] = []  # by shallow copies: the owner, and the number of tokens that a copy may hold

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append tokens, ``(batch, KV heads, tokens, head size)``, and return all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        past = self.keys.shape[-2]
        end = past + key_states.shape[-2]
        if not self._has_room(past, end):
            self._buffers = tuple(self._grown(old, end) for old in (self.keys, self.values))
            self._shared = [id(self), 0]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, past:end] = new
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        return self.keys, self.values

    def __copy__(self) -> "GrowingLayer":
        """Return a layer that shares the buffers; the tokens until here are not overwritten any more."""
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__)
        if self.is_initialized:
            self._shared[1] = max(self._shared[1], self.keys.shape[-2])
        return copied

    def take_over(self) -> None:
        """Become the owner of the buffers."""
        if self.is_initialized:
            self._shared[0] = id(self)

    def _has_room(self, past: int, end: int) -> bool:
        """Return whether tokens may be written into the buffers; other methods replace `keys` and `values`."""
        if (
            not self._buffers
            or end > self._buffers[0].shape[2]
            or self._shared[0] != id(self)
            or past < self._shared[1]
        ):
            return False
        return all(
            state.data_ptr() == buffer.data_ptr() and state.stride() == buffer.stride()
            for state, buffer in zip((self.keys, self.values), self._buffers, strict=True)
        )

    @staticmethod
    def _grown(old: torch.Tensor, end: int) -> torch.Tensor:
        batch, heads, past, size = old.shape
        buffer = old.new_empty(batch, heads, end + max(SLACK, end // 8), size)
        buffer[:, :, :past] = old
        return buffer


class Rotation:
    """The rotary angles of a forward pass as complex numbers, computed once for all layers."""

    def __init__(self) -> None:
        self._cosines: torch.Tensor | None = None
        self._angles: torch.Tensor

    def __call__(self, x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        """Rotate heads whose paired features are neighbors.

        Args:
            x: ``(batch, tokens, heads, head size)``, float32.
            cosines: ``(batch, tokens, head size)``, the same for both features of a pair; `sines` likewise.
        """
        if self._cosines is not cosines:
            half = cosines.shape[-1] // 2
            self._angles = torch.complex(cosines[..., None, :half].float(), sines[..., None, :half].float())
            self._cosines = cosines
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * self._angles).flatten(-2)


def neighbors(heads: int, head_dim: int) -> torch.Tensor:
    """Return the order of the rows of a projection in which features i and i + head_dim / 2 of a head are neighbors."""
    pairs = torch.arange(heads * head_dim).view(heads, 2, head_dim // 2)
    return pairs.transpose(1, 2).flatten()


class PackedAttention(nn.Module):
    """Attention of Llama, Mistral or Qwen2 with one product for queries, keys and values.

    Args:
        attention: the attention of transformers.
        projection: maps the input to queries, keys and values; the queries and keys are in the order of `neighbors`.
        output: maps the heads' outputs to the residual stream.
        rotation: shared by all layers of a model.
    """

    def __init__(self, attention: Any, projection: nn.Module, output: nn.Module, rotation: Rotation):
        super().__init__()
        self.config, self.layer_idx, self.head_dim = attention.config, attention.layer_idx, attention.head_dim
        self.scaling, self.is_causal = attention.scaling, attention.is_causal
        self.num_key_value_groups = attention.num_key_value_groups
        self.sliding_window = getattr(attention, "sliding_window", None)
        self.key_value_heads = attention.k_proj.out_features // self.head_dim
        self.heads = attention.q_proj.out_features // self.head_dim
        self.qkv_proj, self.o_proj, self._rotation = projection, output, rotation

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """Map ``(batch, tokens, hidden)`` to the same shape; there are no attention weights."""
        states = self.qkv_proj(hidden_states).unflatten(-1, (-1, self.head_dim))
        rotated = self._rotation(states[..., : self.heads + self.key_value_heads, :], *position_embeddings)
        queries = rotated[..., : self.heads, :].transpose(1, 2)
        keys = rotated[..., self.heads :, :].transpose(1, 2)
        values = states[..., self.heads + self.key_value_heads :, :].transpose(1, 2)
        if past_key_values is not None:
            keys, values = self._extend(past_key_values, keys, values)
        if queries.shape[2] == 1 and attention_mask is None and queries.device.type == "cpu":
            heads = self._attend_to_all(queries, keys, values)
        else:
            implementation = self.config._attn_implementation
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
            window = {} if self.sliding_window is None else {"sliding_window": self.sliding_window}
            heads, _ = attend(self, queries, keys, values, attention_mask, scaling=self.scaling, **window, **kwargs)
        return self.o_proj(heads.reshape(*hidden_states.shape[:-1], -1)), None

    def _extend(self, cache: Cache, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append to a cache, whose layer grows in place if nothing is in it yet."""
        if cache.layer_class_to_replicate is DynamicLayer:
            cache.layer_class_to_replicate = GrowingLayer
        if self.layer_idx < len(cache.layers):
            layer = cache.layers[self.layer_idx]
            if type(layer) is DynamicLayer and not layer.is_initialized:
                cache.layers[self.layer_idx] = GrowingLayer()
        extended: tuple[torch.Tensor, torch.Tensor] = cache.update(keys, values, self.layer_idx)
        return extended

    def _attend_to_all(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Return the outputs of one token's heads: two products that read keys and values once per KV head."""
        batch, heads, _, size = queries.shape
        grouped = queries.reshape(batch * self.key_value_heads, -1, size)
        scores = torch.bmm(grouped, keys.flatten(0, 1).transpose(1, 2)).mul_(self.scaling)
        return torch.bmm(scores.softmax(dim=-1), values.flatten(0, 1)).view(batch, 1, heads, size)
