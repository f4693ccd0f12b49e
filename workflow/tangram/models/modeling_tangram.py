"""A heterogeneous decoder in plain transformers: layers differ in heads, FFN width, or replacements of subblocks.

This file and those that it imports are copied into every child checkpoint that needs them (`auto_map`), so they import
nothing but torch and transformers. The architecture is transformers' `per_layer_config` in `config.json`. Besides the
stock attributes (`num_attention_heads`, `num_key_value_heads`, `head_dim`, `intermediate_size`,
`skip: ["attention", "mlp"]`), a layer's entry may have:

- `linear`, the list of its subblocks that are one linear map (without bias if `"mlp=unbiased"` is in the list, too;
  without matrix and norm if `"mlp=constant"` is);
- `structured`, the list of its subblocks whose matrices are structured operators, such as `["mlp=lowrank-64"]`;
- `precision`, the list of its subblocks with matrices in another precision, such as `["attention=int8"]`;
- `attention_window`, the number of last tokens that its attention reads, besides the first ones.

The model's attribute `head_precision` is the precision of the LM head.
"""

import copy
from typing import Any

import torch
from torch import nn
from transformers import (
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    GraniteForCausalLM,
    LlamaForCausalLM,
    MistralForCausalLM,
    Olmo2ForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
    SmolLM3ForCausalLM,
)
from transformers.models.gemma2.modeling_gemma2 import Gemma2DecoderLayer
from transformers.models.gemma3.modeling_gemma3 import Gemma3DecoderLayer
from transformers.models.granite.modeling_granite import GraniteDecoderLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.olmo2.modeling_olmo2 import Olmo2DecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer
from transformers.models.smollm3.modeling_smollm3 import SmolLM3DecoderLayer

from .configuration_tangram import (
    TangramGemma2Config,
    TangramGemma3TextConfig,
    TangramGraniteConfig,
    TangramLlamaConfig,
    TangramMistralConfig,
    TangramOlmo2Config,
    TangramQwen2Config,
    TangramQwen3Config,
    TangramSmolLM3Config,
)
from .layouts import contribution_of, layout_of
from .operators import replace_projections, separate_factors
from .packed import pack
from .quantized import set_precision, with_precision


class LinearAttention(nn.Module):
    """A linear map instead of attention: each token attends to itself only (Puzzle, section 2)."""

    def __init__(self, hidden_size: int, bias: bool):
        super().__init__()
        self.linear_attn = nn.Linear(hidden_size, hidden_size, bias)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None]:
        """Map ``(batch, sequence, hidden)`` to the same shape; there are no attention weights."""
        return self.linear_attn(hidden_states), None


class LinearMLP(nn.Module):
    """A linear map instead of the feed-forward network."""

    def __init__(self, hidden_size: int, bias: bool):
        super().__init__()
        self.linear_mlp = nn.Linear(hidden_size, hidden_size, bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, sequence, hidden)`` to the same shape."""
        return self.linear_mlp(hidden_states)


class Constant(nn.Module):
    """A vector instead of a subblock and its norm, equal for all tokens."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(hidden_size))


class ConstantAttention(Constant):
    """A vector instead of attention."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None]:
        """Return the vector, ``(hidden,)``, for any input; there are no attention weights."""
        return self.vector, None


class ConstantMLP(Constant):
    """A vector instead of the feed-forward network."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the vector, ``(hidden,)``, for any input."""
        return self.vector


def heterogeneous(layer_class: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass of a stock decoder layer whose subblocks may be narrower, linear, constant, or absent.

    As a subclass, it supports transformers' recording of hidden states and gradient checkpointing.
    """

    class HeterogeneousDecoderLayer(layer_class):  # type: ignore[misc, valid-type]
        self_attn: Any
        mlp: Any

        def __init__(self, config: PreTrainedConfig, layer_idx: int):
            super().__init__(config, layer_idx)
            skip, linear = getattr(config, "skip", []), getattr(config, "linear", [])
            self.window = getattr(config, "attention_window", None)
            if "attention" in linear:
                self.self_attn = LinearAttention(config.hidden_size, "attention=unbiased" not in linear)
            if "mlp" in linear:
                self.mlp = LinearMLP(config.hidden_size, "mlp=unbiased" not in linear)
            if "attention=constant" in linear:
                self.self_attn = ConstantAttention(config.hidden_size)
            if "mlp=constant" in linear:
                self.mlp = ConstantMLP(config.hidden_size)
            for entry in getattr(config, "structured", []):
                kind, _, variant = entry.partition("=")
                replace_projections(self.self_attn if kind == "attention" else self.mlp, variant)
            for entry in getattr(config, "precision", []):
                kind, _, precision = entry.partition("=")
                subblock = self.self_attn if kind == "attention" else self.mlp
                separate_factors(subblock)
                set_precision(subblock, precision)
            for name, place in zip(("attention", "mlp"), layout_of(self), strict=True):
                # A linear map has no norm after it, as it is fitted to the normed output; a vector has no norms.
                for norm in place.norms if name in linear else ():
                    if norm == place.after or f"{name}=constant" in linear:
                        setattr(self, norm, nn.Identity())
                # A skipped subblock has no norms either; the residual stays.
                for module in (place.module, *place.norms) if name in skip else ():
                    setattr(self, module, None)

        def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            if self.window is None and self.self_attn is not None and self.mlp is not None:
                stock: torch.Tensor = super().forward(hidden_states, **kwargs)
                return stock
            for place in layout_of(self):
                if getattr(self, place.module) is not None:
                    hidden_states = hidden_states + contribution_of(self, place, hidden_states, **kwargs)
            return hidden_states

    HeterogeneousDecoderLayer.__name__ = HeterogeneousDecoderLayer.__qualname__ = f"Tangram{layer_class.__name__}"
    return HeterogeneousDecoderLayer


class HeterogeneousMixin(PreTrainedModel):
    """Builds each decoder layer of a stock model from the config of that layer."""

    layer_class: type[nn.Module]

    def __init__(self, config: PreTrainedConfig):
        # The stock constructor cannot read a per-layer attribute such as the KV heads, so it gets a homogeneous config
        # without layers; the layers are added afterwards.
        stock = copy.copy(config)
        stock.per_layer_config = None
        stock.num_hidden_layers = 0
        super().__init__(stock)
        config._attn_implementation_internal = stock._attn_implementation_internal
        for module in self.modules():
            if getattr(module, "config", None) is stock:
                module.config = config  # type: ignore[assignment]
        layer_class = heterogeneous(self.layer_class)
        self._no_split_modules = [layer_class.__name__]
        self.model.layers.extend(
            layer_class(config.per_layer_config[index], index) for index in range(config.num_hidden_layers)
        )
        for layer in self.model.layers:
            # The attributes that attention reads while it runs are equal in all layers. With the model's config,
            # attention follows later changes of that config.
            if hasattr(layer.self_attn, "layer_idx"):
                layer.self_attn.config = config
        if precision := getattr(config, "head_precision", None):
            self.lm_head = with_precision(self.lm_head, precision)
        self.post_init()

    def pack(self) -> "HeterogeneousMixin":
        """Prepare the loaded model for fast inference, in place; see `packed.pack`."""
        return pack(self)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # transformers derives a wrong answer from this file's text


class TangramLlamaForCausalLM(HeterogeneousMixin, LlamaForCausalLM):
    """A heterogeneous Llama."""

    config_class = TangramLlamaConfig
    layer_class = LlamaDecoderLayer


class TangramMistralForCausalLM(HeterogeneousMixin, MistralForCausalLM):
    """A heterogeneous Mistral."""

    config_class = TangramMistralConfig
    layer_class = MistralDecoderLayer


class TangramQwen2ForCausalLM(HeterogeneousMixin, Qwen2ForCausalLM):
    """A heterogeneous Qwen2."""

    config_class = TangramQwen2Config
    layer_class = Qwen2DecoderLayer


class TangramQwen3ForCausalLM(HeterogeneousMixin, Qwen3ForCausalLM):
    """A heterogeneous Qwen3."""

    config_class = TangramQwen3Config
    layer_class = Qwen3DecoderLayer


class TangramGraniteForCausalLM(HeterogeneousMixin, GraniteForCausalLM):
    """A heterogeneous Granite."""

    config_class = TangramGraniteConfig
    layer_class = GraniteDecoderLayer


class TangramOlmo2ForCausalLM(HeterogeneousMixin, Olmo2ForCausalLM):
    """A heterogeneous OLMo 2."""

    config_class = TangramOlmo2Config
    layer_class = Olmo2DecoderLayer


class TangramSmolLM3ForCausalLM(HeterogeneousMixin, SmolLM3ForCausalLM):
    """A heterogeneous SmolLM3."""

    config_class = TangramSmolLM3Config
    layer_class = SmolLM3DecoderLayer


class TangramGemma2ForCausalLM(HeterogeneousMixin, Gemma2ForCausalLM):
    """A heterogeneous Gemma 2."""

    config_class = TangramGemma2Config
    layer_class = Gemma2DecoderLayer


class TangramGemma3ForCausalLM(HeterogeneousMixin, Gemma3ForCausalLM):
    """A heterogeneous Gemma 3 for text."""

    config_class = TangramGemma3TextConfig
    layer_class = Gemma3DecoderLayer


MODEL_CLASSES = {
    model.config_class.model_type: model
    for model in (
        TangramLlamaForCausalLM,
        TangramMistralForCausalLM,
        TangramQwen2ForCausalLM,
        TangramQwen3ForCausalLM,
        TangramGraniteForCausalLM,
        TangramOlmo2ForCausalLM,
        TangramSmolLM3ForCausalLM,
        TangramGemma2ForCausalLM,
        TangramGemma3ForCausalLM,
    )
}
