"""Access to the layers, subblocks and sizes of a model, for all supported families.

The families share transformers' decoder structure (`model.layers[i].self_attn`, `.mlp`, two norms), so the same
functions serve all of them. Their differences (biases, q/k norms, tied heads, `head_dim`) are read from the config or
from the modules.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangram.errors import TangramError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")
CHILD_PREFIX = "tangram_"  # prefix of the model type of a child that stock code cannot run


@dataclass(frozen=True)
class Shape:
    """The sizes of a parent model; `head_dim` can differ from hidden / heads."""

    model_type: str
    num_layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied_head: bool

    @classmethod
    def of(cls, config: PreTrainedConfig) -> Shape:
        """Read the sizes from a transformers config; a child's config gives its parent's sizes.

        Raises:
            TangramError: the family is unknown, or mixes attention types over its layers.
        """
        family = config.model_type.removeprefix(CHILD_PREFIX)
        check_supported(family)
        config = copy.copy(config)
        config.per_layer_config = None  # else reading an attribute that differs per layer raises an error
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if len(kinds) > 1:
            raise TangramError(
                f"the parent mixes attention types over its layers ({', '.join(sorted(kinds))}); "
                "only models with one type of attention are supported"
            )
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            model_type=family,
            num_layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=head_dim,
            intermediate=config.intermediate_size,
            vocabulary=config.vocab_size,
            tied_head=bool(config.tie_word_embeddings),
        )

    def parameters(self, kind: str) -> int:
        """Return the number of weights in the matrices of an ``'attention'`` or ``'ffn'``, without biases and norms."""
        if kind == "attention":
            return 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return 3 * self.hidden * self.intermediate


def check_supported(model_type: str) -> None:
    """Raise a `TangramError` that names the supported families unless ``model_type`` is one of them."""
    if model_type not in SUPPORTED:
        raise TangramError(
            f"model family '{model_type}' is not supported; supported: {', '.join(SUPPORTED)} "
            "(add a family in workflow/tangram/models/families.py and workflow/tangram/models/modeling_tangram.py)"
        )


def shape_of(folder: str | Path) -> Shape:
    """Read the sizes of a checkpoint folder; see `read_config` and `Shape.of` for errors."""
    return Shape.of(read_config(folder))


def read_config(folder: str | Path) -> PreTrainedConfig:
    """Read the config of a parent's or a child's checkpoint folder; no code of the folder runs.

    Raises:
        TangramError: there is no config that can be read, its family is unknown, or its weights are quantized.
    """
    from transformers import AutoConfig

    path = Path(folder) / "config.json"
    try:
        raw = dict(json.loads(path.read_text()))
        model_type = str(raw.get("model_type"))
        check_supported(model_type.removeprefix(CHILD_PREFIX))
        if quantization := raw.get("quantization_config") or raw.get("compression_config"):
            method = dict(quantization).get("quant_method", "unknown method")
            raise TangramError(f"{folder} is quantized ({method}); dequantize it first: weights are read as they are")
        if model_type.startswith(CHILD_PREFIX):
            from tangram.models.configuration_tangram import CONFIG_CLASSES

            return CONFIG_CLASSES[model_type].from_pretrained(folder)
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except TangramError:
        raise
    except Exception as error:  # transformers raises a different exception for every field that it checks
        reason = " ".join(str(error).split())
        raise TangramError(f"{path} is not a readable model config ({reason}); replace the checkpoint") from error


def window_of(config: PreTrainedConfig) -> int | None:
    """Return the sliding window of a model's attention in tokens, the current token included; None for full attention.

    If a config has both `layer_types` and a window, `layer_types` decides.
    """
    types = getattr(config, "layer_types", None)
    if types is not None and types[0] != "sliding_attention":
        return None
    return getattr(config, "sliding_window", None)


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder layers, in order."""
    return model.model.layers


def subblock(layer: Any, kind: str) -> nn.Module:
    """Return a layer's ``'attention'`` or ``'ffn'`` module."""
    return layer.self_attn if kind == "attention" else layer.mlp


def norm_before(layer: Any, kind: str) -> nn.Module:
    """Return the norm that feeds a layer's subblock."""
    return layer.input_layernorm if kind == "attention" else layer.post_attention_layernorm


SUBBLOCK_NAMES = {
    "attention": ("self_attn", "input_layernorm"),
    "ffn": ("mlp", "post_attention_layernorm"),
}
