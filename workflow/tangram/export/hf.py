"""transformers' own schema of heterogeneous models: a stock model type with `per_layer_config`, without code.

The schema names a layer's heads, its FFN width, and the subblocks that it skips. It has no linear maps, no constants
and no operators of several factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tangram.blocks.base import CONFIG_NAME
from tangram.errors import TangramError
from tangram.export.folder import base_config, check_values, outer_tensors, write_folder
from tangram.export.parts import LINEAR, VECTOR, Checkpoint
from tangram.library.pieces import tensor_name
from tangram.models.layouts import PRE_NORM

MODELS = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def write_hf(child: Checkpoint, output: str | Path, provenance: Mapping[str, str]) -> None:
    """Write a child in transformers' own schema.

    Raises:
        TangramError: the schema cannot express a subblock.
    """
    check_values(child, "hf")
    shape = child.shape
    layers: dict[int, dict[str, object]] = {layer: {} for layer in range(shape.num_layers)}
    present = set()
    tensors = outer_tensors(child)
    for part in child.parts:
        if part.form in (LINEAR, VECTOR):
            raise TangramError(
                f"hf: {part.origin} is a {'linear map' if part.form == LINEAR else 'vector'}, which transformers' "
                "schema cannot express; leave hf out of targets.*.export"
            )
        present.add((part.layer, part.form))
        tensors |= {tensor_name(part.layer, part.form, name): tensor for name, tensor in part.tensors.items()}
        tensors[f"model.layers.{part.layer}.{getattr(PRE_NORM, part.form).before}.weight"] = part.norm
        if part.form == "ffn" and part.channels != shape.intermediate:
            layers[part.layer]["intermediate_size"] = part.channels
        if part.form == "attention" and child.heads(part) != shape.heads:
            layers[part.layer]["num_attention_heads"] = child.heads(part)
        if part.form == "attention" and child.kv_heads(part) != shape.kv_heads:
            layers[part.layer]["num_key_value_heads"] = child.kv_heads(part)
    for layer, entries in layers.items():
        if skipped := [name for kind, name in CONFIG_NAME.items() if (layer, kind) not in present]:
            entries["skip"] = skipped
    config = base_config(child) | {"model_type": shape.model_type, "architectures": [MODELS[shape.model_type]]}
    if any("num_attention_heads" in entries for entries in layers.values()):
        config["head_dim"] = shape.head_dim  # some configs derive it from the number of heads
    if differing := {f"{layer:02d}": entries for layer, entries in layers.items() if entries}:
        config["per_layer_config"] = differing
    write_folder(child, output, config, tensors.items(), provenance)
