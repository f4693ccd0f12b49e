"""The config of a DeciLM checkpoint: what vLLM's `DeciLMForCausalLM` reads, and the code that makes objects of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tangram.models.families import Shape

CODE_FILE = "configuration_decilm.py"
CODE = '''"""The config of vLLM's DeciLMForCausalLM: a Llama config whose block_configs are objects."""

from types import SimpleNamespace

from transformers import LlamaConfig


class DeciLMConfig(LlamaConfig):
    """A Llama config with one entry of `block_configs` per layer."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs=None, **kwargs):
        super().__init__(**kwargs)
        self.block_configs = [
            SimpleNamespace(**{part: SimpleNamespace(**settings) for part, settings in block.items()})
            for block in block_configs or []
        ]

    def to_dict(self):
        """Return the config as JSON types."""
        blocks = [{part: vars(settings) for part, settings in vars(block).items()} for block in self.block_configs]
        return {**super().to_dict(), "block_configs": blocks}
'''

TYPES = {"int8": "int", "fp8": "float"}  # of compressed-tensors, by precision
MATRICES = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "ffn": ("gate_proj", "up_proj", "down_proj"),
}


class Subblock(Protocol):
    """A subblock's form, ``'attention'``, ``'ffn'`` or ``'linear'``; its KV heads or channels; and its precision."""

    @property
    def form(self) -> str: ...  # noqa: D102
    @property
    def size(self) -> int: ...  # noqa: D102
    @property
    def precision(self) -> str | None: ...  # noqa: D102


@dataclass(frozen=True)
class Described:
    """A `Subblock`."""

    form: str
    size: int
    precision: str | None = None


def decilm_config(
    base: Mapping[str, Any],
    shape: Shape,
    layers: Sequence[tuple[Subblock | None, Subblock | None]],
    biased: bool,
    head_precision: str | None,
) -> dict[str, Any]:
    """Return the content of `config.json`.

    Args:
        base: the config of the family's own model class.
        shape: the parent's sizes.
        layers: attention and FFN (or linear map) of every layer; the first layer has an attention.
        biased: FFNs have biases.
        head_precision: precision of the LM head.
    """
    config = dict(base) | {
        "model_type": "nemotron-nas",
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": f"{CODE_FILE.removesuffix('.py')}.DeciLMConfig"},
        "num_hidden_layers": len(layers),
        "mlp_bias": biased,
        "block_configs": [_block(shape, *layer) for layer in layers],
    }
    if matrices := _matrices(layers, head_precision):
        config["quantization_config"] = quantization_config(matrices)
    for key in ("num_key_value_heads", "intermediate_size", "layer_types", "sliding_window"):
        config.pop(key, None)
    return config


def _block(shape: Shape, attention: Subblock | None, ffn: Subblock | None) -> dict[str, Any]:
    """Return a layer's entry of `block_configs`."""
    width = None if ffn is None else shape.hidden if ffn.form == "linear" else ffn.size
    return {
        "attention": {
            "no_op": attention is None,
            "replace_with_linear": False,
            "n_heads_in_group": None if attention is None else shape.heads // attention.size,
        },
        "ffn": {"no_op": ffn is None, "replace_with_linear": False, "intermediate_size": width},
    }


def _matrices(
    layers: Sequence[tuple[Subblock | None, Subblock | None]], head_precision: str | None
) -> dict[str, list[str]]:
    """Return the names of the matrices of 8 bits by precision."""
    matrices: dict[str, list[str]] = {}
    for index, layer in enumerate(layers):
        for part, module in zip(layer, ("self_attn", "mlp"), strict=True):
            if part is not None and part.precision in TYPES:
                # The down projection of a linear map is the identity, in floats.
                names = ("gate_proj", "up_proj") if part.form == "linear" else MATRICES[part.form]
                prefix = f"model.layers.{index}.{module}."
                matrices.setdefault(part.precision, []).extend(prefix + name for name in names)
    if head_precision in TYPES:
        matrices.setdefault(head_precision, []).append("lm_head")
    return matrices


def quantization_config(matrices: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return a config's `quantization_config`.

    Args:
        matrices: full names of the matrices of each precision of `TYPES`.
    """
    groups: dict[str, Any] = {}
    for precision, names in matrices.items():
        common = {"num_bits": 8, "type": TYPES[precision], "symmetric": True}
        groups[f"group_{len(groups)}"] = {
            "targets": list(names),
            "weights": {**common, "strategy": "channel", "dynamic": False},
            "input_activations": {**common, "strategy": "token", "dynamic": True},
            "format": f"{TYPES[precision]}-quantized",
        }
    formats = [group["format"] for group in groups.values()]
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": formats[0] if len(formats) == 1 else "mixed-precision",
        "config_groups": groups,
        "ignore": [],
    }
