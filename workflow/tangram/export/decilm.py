"""DeciLM (model type `nemotron-nas`): a child as a checkpoint that vLLM's own model class loads.

A layer is an attention or nothing, and then an FFN or nothing (`block_configs`). The child's subblocks are packed into
such layers, exactly:

- A linear map is an FFN with a constant gate: the gate's weights are 0 and its bias is c with silu(c) = 1; `up_proj` is
  the map and `down_proj` the identity with the map's bias. It takes three square matrices instead of one. All FFNs then
  have biases, as the class knows one `mlp_bias`.
- Layer 0 must have an attention, as the class has no residual before it; it gets one of zeros if it has none.

vLLM reads the entries of `block_configs` as objects: `configuration_decilm.py` makes objects of them, so the folder
needs `--trust-remote-code` for its config. The widths are in `intermediate_size`, which vLLM reads; SGLang and
TensorRT-LLM read `ffn_mult` alone, whose widths are multiples of 256.

Matrices of 8 bits are stored as `compressed_tensors` says. A linear map's gate then has 8 bits, too, as vLLM computes
gate and up projection as one product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tangram.engines import DECILM, family_refusal
from tangram.errors import TangramError
from tangram.export.compressed_tensors import absorb_smoothing, stored
from tangram.export.folder import base_config, check_values, outer_tensors, write_folder
from tangram.export.parts import LINEAR, VECTOR, Checkpoint, Part
from tangram.models.decilm_config import CODE, CODE_FILE, MATRICES, TYPES, Described, decilm_config
from tangram.models.families import window_of

if TYPE_CHECKING:
    import torch

CONSTANT_GATE = 1.2784645427610738  # silu of it is 1
Layer = tuple[Part | None, Part | None]


def pack(parts: tuple[Part, ...]) -> list[Layer]:
    """Pack subblocks into as few layers of an attention and an FFN as can hold them; a linear map counts as an FFN."""
    layers: list[Layer] = []
    attention: Part | None = None
    for part in parts:
        if part.form != "attention":
            layers.append((attention, part))
            attention = None
            continue
        if attention is not None:
            layers.append((attention, None))
        attention = part
    return layers if attention is None else [*layers, (attention, None)]


def write_decilm(child: Checkpoint, output: str | Path, provenance: Mapping[str, str]) -> None:
    """Write a child as a DeciLM checkpoint.

    Raises:
        TangramError: the model class cannot compute what the child computes.
    """
    check_values(child, "decilm", ("bf16", *TYPES))
    family, window = child.shape.model_type, window_of(child.config)
    if family_refusal(family, [DECILM]) or (window is not None and window < child.config.max_position_embeddings):
        what = f"family {family}" if family_refusal(family, [DECILM]) else f"an attention window of {window} tokens"
        raise TangramError(f"decilm: {what} cannot be expressed; leave decilm out of targets.*.export")
    if vectors := [part.origin for part in child.parts if part.form == VECTOR]:
        raise TangramError(f"decilm: {vectors[0]} is a vector, which cannot be expressed; leave decilm out of export")
    for part in child.parts:
        if part.form == "attention" and child.heads(part) != child.shape.heads:
            raise TangramError(
                f"decilm: {part.origin} has {child.heads(part)} query heads, and the format the parent's "
                f"{child.shape.heads} in every layer; leave decilm out of targets.*.export"
            )
    child = _without_smoothing(child)
    layers = pack(child.parts)
    biased = any(part.form == LINEAR or "up_proj.bias" in part.tensors for part in child.parts)
    described = [(_described(child, attention), _described(child, ffn)) for attention, ffn in layers]
    if described and described[0][0] is None:
        described[0] = (Described("attention", 1), described[0][1])
    config = decilm_config(base_config(child), child.shape, described, biased, child.head_precision)
    write_folder(child, output, config, _tensors(child, layers, biased), provenance, {CODE_FILE: CODE})


def _without_smoothing(child: Checkpoint) -> Checkpoint:
    """Return a child whose smoothing factors are part of norms and other matrices."""
    parts = [absorb_smoothing(p, child.shape.head_dim) if p.precision in TYPES else p for p in child.parts]
    child = replace(child, parts=tuple(parts))
    if child.head is None or child.head_precision not in TYPES:
        return child
    return replace(child, norm=child.norm * child.head["smooth"], head=stored(child.head))


def _described(child: Checkpoint, part: Part | None) -> Described | None:
    """Return what the config tells of a subblock."""
    if part is None or part.form == LINEAR:
        return None if part is None else Described(LINEAR, 0, part.precision)
    size = child.kv_heads(part) if part.form == "attention" else part.channels
    return Described(part.form, size, part.precision)


def _tensors(child: Checkpoint, layers: list[Layer], biased: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield all tensors by transformers' names."""
    import torch

    yield from outer_tensors(child).items()
    for index, (attention, ffn) in enumerate(layers):
        prefix = f"model.layers.{index}."
        if attention is not None or index == 0:
            norm = torch.ones(child.shape.hidden) if attention is None else attention.norm
            tensors = _zero_attention(child) if attention is None else attention.tensors
            yield f"{prefix}input_layernorm.weight", norm
            yield from ((f"{prefix}self_attn.{name}", tensor) for name, tensor in tensors.items())
        if ffn is not None:
            tensors = _constant_gate(ffn) if ffn.form == LINEAR else ffn.tensors
            yield f"{prefix}post_attention_layernorm.weight", ffn.norm
            if biased:
                tensors = {f"{n}.bias": torch.zeros(len(tensors[f"{n}.weight"])) for n in MATRICES["ffn"]} | tensors
            yield from ((f"{prefix}mlp.{name}", tensor) for name, tensor in tensors.items())


def _zero_attention(child: Checkpoint) -> dict[str, torch.Tensor]:
    """Return an attention of one KV head whose outputs are 0."""
    import torch

    shape = child.shape
    inner, width = shape.heads * shape.head_dim, shape.head_dim
    rows = {"q_proj": (inner, shape.hidden), "k_proj": (width, shape.hidden), "v_proj": (width, shape.hidden)}
    sizes = {**rows, "o_proj": (shape.hidden, inner)}
    tensors = {f"{name}.weight": torch.zeros(size) for name, size in sizes.items()}
    if getattr(child.config, "attention_bias", False):
        tensors |= {f"{name}.bias": torch.zeros(size[0]) for name, size in sizes.items()}
    return tensors


def _constant_gate(part: Part) -> dict[str, torch.Tensor]:
    """Return the tensors of an FFN that computes a linear map."""
    import torch

    weight = part.tensors["weight"]
    hidden = len(weight)
    scales = {}
    if (scale := part.tensors.get("weight_scale")) is not None:
        scales = {"gate_proj.weight_scale": torch.ones_like(scale), "up_proj.weight_scale": scale}
    return {
        **scales,
        "gate_proj.weight": torch.zeros_like(weight),
        "gate_proj.bias": torch.full((hidden,), CONSTANT_GATE),
        "up_proj.weight": weight,
        "down_proj.weight": torch.eye(hidden),
        "down_proj.bias": part.tensors.get("bias", torch.zeros(hidden)),
    }
