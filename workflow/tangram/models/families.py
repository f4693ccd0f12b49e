"""Access to the layers, subblocks and sizes of a model, for all supported families.

The families share transformers' decoder structure (`model.layers[i].self_attn`, `.mlp`), so the same functions serve
all of them. Their differences are read from the config or from the modules: biases, q/k norms, tied heads, `head_dim`,
the places of the norms (`layouts`), the types of attention and multipliers (`forward`).
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

    from tangram.models.layouts import Place

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3", "granite", "olmo2", "smollm3", "gemma2", "gemma3_text")
NORMS_BEHIND = ("olmo2", "gemma2", "gemma3_text")  # families with norms behind their subblocks (`layouts`)
CONVERTED = ("phi3",)  # families of sources, which `parent.unfused` turns into supported ones, exactly
# Attributes of configs with experts, and families whose names do not contain "moe".
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
OF_EXPERTS = ("mixtral", "gpt_oss", "deepseek_v2", "deepseek_v3", "dbrx", "jamba", "llama4", "llama4_text")
FULL, SLIDING = "full_attention", "sliding_attention"  # transformers' names of attention without and with a window
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
            TangramError: the family or a layer's type of attention is unknown.
        """
        family = config.model_type.removeprefix(CHILD_PREFIX)
        check_supported(family)
        config = copy.copy(config)
        config.per_layer_config = None  # else reading an attribute that differs per layer raises an error
        if unknown := set(attention_types(config)) - {FULL, SLIDING}:
            raise TangramError(
                f"the parent has {', '.join(sorted(unknown))}; only full and sliding attention are supported"
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


def check_compensable(model_type: str) -> None:
    """Raise a `TangramError` if the subblocks of a family have no last matrix, which compensation fits."""
    if model_type in NORMS_BEHIND:
        raise TangramError(
            f"config.assembly.compensate: {model_type} has norms behind its subblocks, so that no matrix is their "
            "last; set it to false"
        )


def check_supported(model_type: str) -> None:
    """Raise a `TangramError` that names the supported families unless ``model_type`` is one of them."""
    if "moe" in model_type or model_type in OF_EXPERTS:
        raise _of_experts(model_type)
    if model_type not in (*SUPPORTED, *CONVERTED):
        raise TangramError(
            f"model family '{model_type}' is not supported; supported: {', '.join((*SUPPORTED, *CONVERTED))} "
            "(docs/adding-a-family.md shows how to add one)"
        )


def _of_experts(model_type: str) -> TangramError:
    return TangramError(
        f"model family '{model_type}' has experts (MoE), which are not supported; take a dense parent: "
        f"{', '.join((*SUPPORTED, *CONVERTED))}"
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
        if any(isinstance(raw.get(name), int) and raw[name] > 1 for name in EXPERTS):
            raise _of_experts(model_type)
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


def attention_types(config: PreTrainedConfig) -> list[str]:
    """Return the type of every layer's attention, `FULL` or `SLIDING`.

    If a config has both `layer_types` and a window, `layer_types` decides.
    """
    types = getattr(config, "layer_types", None)
    if types is None:
        window = getattr(config, "sliding_window", None)
        types = [FULL if window is None else SLIDING] * config.num_hidden_layers
    return list(types)


def window_of(config: PreTrainedConfig) -> int | None:
    """Return the sliding window in tokens, the current token included; None if no layer's attention has one."""
    return config.sliding_window if SLIDING in attention_types(config) else None


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder layers, in order."""
    return model.model.layers


def place_of(layer: Any, kind: str) -> Place:
    """Return the names of the modules of a layer's ``'attention'`` or ``'ffn'``."""
    from tangram.models.layouts import layout_of

    place: Place = getattr(layout_of(layer), kind)
    return place


def subblock(layer: Any, kind: str) -> nn.Module:
    """Return a layer's ``'attention'`` or ``'ffn'`` module."""
    return layer.self_attn if kind == "attention" else layer.mlp


SUBBLOCK_NAMES = {"attention": "self_attn", "ffn": "mlp"}
