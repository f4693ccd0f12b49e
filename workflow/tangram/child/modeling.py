"""A heterogeneous decoder in plain transformers: layers differ in KV heads, FFN width, or what stands in for a subblock.

This file travels with every child checkpoint (`auto_map`), so it imports nothing but torch and transformers. The
architecture is transformers' own `per_layer_config` in `config.json`; on top of the stock attributes
(`num_key_value_heads`, `intermediate_size`, `skip: ["attention", "mlp"]`) it reads `linear`, the list of a layer's
subblocks that are one linear map.
"""

import torch
from torch import nn
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM


class LinearAttention(nn.Module):
    """A linear map in place of attention: each token attends to itself only (Puzzle, section 2)."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear_attn = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> tuple[torch.Tensor, None]:
        """Map ``(batch, sequence, hidden)`` to the same shape; there are no attention weights."""
        return self.linear_attn(hidden_states), None


class LinearMLP(nn.Module):
    """A linear map in place of the feed-forward network."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear_mlp = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, sequence, hidden)`` to the same shape."""
        return self.linear_mlp(hidden_states)


def heterogeneous(layer_class: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass of a stock decoder layer whose subblocks may be narrower, linear, or absent."""

    class HeterogeneousDecoderLayer(layer_class):  # type: ignore[misc, valid-type]
        def __init__(self, config, layer_idx: int):
            super().__init__(config, layer_idx)
            skip, linear = getattr(config, "skip", []), getattr(config, "linear", None) or []
            if "attention" in linear:
                self.self_attn = LinearAttention(config.hidden_size)
            if "mlp" in linear:
                self.mlp = LinearMLP(config.hidden_size)
            # A skipped subblock takes its norm along; the residual stays.
            if "attention" in skip:
                self.input_layernorm = self.self_attn = None
            if "mlp" in skip:
                self.post_attention_layernorm = self.mlp = None

        def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
            if self.self_attn is not None:
                attention, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
                hidden_states = hidden_states + attention
            if self.mlp is not None:
                hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
            return hidden_states

    HeterogeneousDecoderLayer.__name__ = HeterogeneousDecoderLayer.__qualname__ = f"Tangram{layer_class.__name__}"
    return HeterogeneousDecoderLayer


class HeterogeneousMixin:
    """Rebuilds the stock model's layers from their own configs."""

    def __init__(self, config):
        # Transformers refuses to read a per-layer attribute from the global config; the stock constructor does.
        config.allow_global_per_layer_attribute_access = True
        super().__init__(config)
        layers = self.model.layers
        layer_class = heterogeneous(type(layers[0]))
        for index in range(len(layers)):
            layers[index] = layer_class(config.per_layer_config[index], index)
        # The KV cache counts tokens in its first entry: number the layers that have a cache without gaps.
        cached = [layer.self_attn for layer in layers if hasattr(layer.self_attn, "layer_idx")]
        for cache_index, attention in enumerate(cached):
            attention.layer_idx = cache_index
        self.post_init()


class TangramLlamaForCausalLM(HeterogeneousMixin, LlamaForCausalLM):
    """A heterogeneous Llama."""


class TangramMistralForCausalLM(HeterogeneousMixin, MistralForCausalLM):
    """A heterogeneous Mistral."""


class TangramQwen2ForCausalLM(HeterogeneousMixin, Qwen2ForCausalLM):
    """A heterogeneous Qwen2."""


class TangramQwen3ForCausalLM(HeterogeneousMixin, Qwen3ForCausalLM):
    """A heterogeneous Qwen3."""
