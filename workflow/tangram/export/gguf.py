"""GGUF: a child as one file that stock llama.cpp and programs built on it load.

A child whose layers are alike has the architecture of its family (`llama`, `qwen2`, `qwen3`). Any other child of a
family without norms of queries and keys has the architecture `deci`, whose layers differ in heads and FFN width. A
`deci` layer is an attention, a linear map without bias, or nothing, and then an FFN that must exist: with an FFN of
width 0, llama.cpp leaves the attention out, too. The child's subblocks are packed into such layers, exactly:

- A subblock without a partner gets a stub FFN of zeros.
- A linear map's bias is the bias of a stub FFN; the map of an FFN stands in the place of an attention.
- A vector is added to the bias of the subblock before it; as the first subblock it becomes a linear map of zeros.
- Layer 0 must have heads, as llama.cpp reads their width there; it gets a linear map of zeros if it has none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangram.engines import GGUF_PRECISIONS, LLAMA_CPP, RECIPES, head_precision
from tangram.errors import TangramError
from tangram.export.gguf_recipe import tensor_type
from tangram.export.gguf_tokenizer import write_tokenizer
from tangram.export.parts import LINEAR, VECTOR, Checkpoint, Part
from tangram.files import atomic_path
from tangram.gguf_types import block_size, decode, encode
from tangram.models.families import window_of
from tangram.parent.gguf_metadata import llama3_divisors

if TYPE_CHECKING:
    import numpy as np
    import torch
    from gguf import GGUFWriter

DECI = "deci"
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}  # of equal layers
PAIRED = ("llama", DECI)  # architectures that rotate adjacent components, transformers those half a head apart
STUB = 32  # channels of an FFN of zeros: one block of the smallest types
ATTENTION = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
NORMS = {"q_norm": "attn_q_norm", "k_norm": "attn_k_norm"}
FFN = {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
BIASES = {"attention": "o_proj.bias", "ffn": "down_proj.bias", LINEAR: "bias"}  # added to a form's output


@dataclass(frozen=True)
class Layer:
    """A layer of `deci`.

    Attributes:
        first: an attention, a linear map, or None.
        ffn: an FFN; None for a stub of zeros.
    """

    first: Part | None
    ffn: Part | None

    @property
    def stub_bias(self) -> torch.Tensor | None:
        """Bias of the stub, which is that of the linear map."""
        return self.first.tensors.get("bias") if self.ffn is None and self.first and self.first.form == LINEAR else None


@dataclass(frozen=True)
class Tensor:
    """A tensor to write.

    Attributes:
        name: its name in the file.
        values: float, of one or two dimensions.
        type: its type, such as ``'q8_0'``.
        origin: its place in the child, for messages.
        exact: whether the type must hold the values exactly.
    """

    name: str
    values: torch.Tensor
    type: str
    origin: str
    exact: bool = True


def without_vectors(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Return the subblocks with each vector in the bias of the subblock before it."""
    import torch

    folded: list[Part] = []
    for part in parts:
        if part.form != VECTOR:
            folded.append(part)
        elif folded:
            before, bias = folded[-1], part.tensors["bias"].float()
            name = BIASES[before.form]
            folded[-1] = replace(before, tensors=before.tensors | {name: before.tensors.get(name, 0) + bias})
        else:
            zeros = torch.zeros(2 * part.norm.shape, dtype=part.norm.dtype)
            folded.append(replace(part, form=LINEAR, tensors=part.tensors | {"weight": zeros}))
    return tuple(folded)


def pack(parts: tuple[Part, ...]) -> list[Layer]:
    """Pack subblocks into as few layers of `deci` as can hold them in their order."""
    layers: list[Layer] = []
    first: Part | None = None
    for part in parts:
        if part.form == "ffn":
            layers.append(Layer(first, part))
            first = None
            continue
        if first is not None:
            layers.append(Layer(first, None))
        first = part
        if part.form == LINEAR and "bias" in part.tensors:
            layers.append(Layer(part, None))
            first = None
    return layers if first is None else [*layers, Layer(first, None)]


def architecture_of(child: Checkpoint, layers: list[Layer]) -> str:
    """Return the file's architecture.

    Raises:
        TangramError: llama.cpp has none that computes what the child computes.
    """
    family = child.shape.model_type
    attentions = [layer.first for layer in layers if layer.first is not None and layer.first.form == "attention"]
    widths = {layer.ffn.channels for layer in layers if layer.ffn is not None}
    uniform = len({(child.heads(part), child.kv_heads(part)) for part in attentions}) == len(widths) == 1
    uniform &= not any(part.form == VECTOR for part in child.parts)  # qwen2 has no place for their biases
    if len(attentions) == len(layers) and all(layer.ffn for layer in layers) and uniform:
        return ARCHITECTURES[family]
    if family == "qwen3":
        raise TangramError("gguf: llama.cpp has no qwen3 whose layers differ; leave gguf out of targets.*.export")
    if not attentions:
        raise TangramError("gguf: llama.cpp runs no model without any attention; choose a smaller speed-up")
    return DECI


def check_expressible(child: Checkpoint) -> None:
    """Raise a `TangramError` if the child computes something that no GGUF can express."""
    config = child.config
    window = window_of(config)
    if window is not None and window < config.max_position_embeddings:
        raise TangramError(f"gguf: an attention window of {window} tokens cannot be expressed; remove gguf from export")
    if config.hidden_act != "silu":
        raise TangramError(f"gguf: activation {config.hidden_act} cannot be expressed; remove gguf from export")
    precisions = {part.precision: part.origin for part in child.parts} | {child.head_precision: "the head"}
    for precision, origin in precisions.items():
        if precision not in (None, "bf16", *GGUF_PRECISIONS):
            raise TangramError(
                f"gguf: {origin} has precision {precision} of torch's kernels, which llama.cpp lacks; "
                f"choose from bf16, {', '.join(GGUF_PRECISIONS)}"
            )
    biased = [part for part in child.parts if part.form == "attention" and "q_proj.bias" in part.tensors]
    if any(child.heads(part) * child.shape.head_dim != child.shape.hidden for part in biased):
        raise TangramError("gguf: biases of heads whose widths do not add up to the hidden size cannot be expressed")


def tensors_of(child: Checkpoint, layers: list[Layer], architecture: str, floats: str | None) -> Iterator[Tensor]:
    """Yield all tensors of the file."""
    import torch

    ends = floats and head_precision(LLAMA_CPP, floats)
    # Beside a head in a type of its own, the embedding is only looked up, and F16 is what users' files have at most.
    looked_up = "f16" if child.head_precision in GGUF_PRECISIONS else ends
    yield from _matrix("token_embd", child.embedding, None, None, looked_up, "the embedding")
    yield Tensor("output_norm.weight", child.norm, "f32", "the last norm")
    if child.head is not None:
        yield from _matrix("output", child.head["weight"], None, child.head_precision, ends, "the head")
    if (divisors := _rotary_divisors(child)) is not None:
        yield Tensor("rope_freqs.weight", torch.tensor(divisors), "f32", "the rotary frequencies")
    for index, layer in enumerate(layers):
        yield from _tensors_of_layer(child, f"blk.{index}.", layer, architecture, floats)


def _tensors_of_layer(
    child: Checkpoint, prefix: str, layer: Layer, architecture: str, floats: str | None
) -> Iterator[Tensor]:
    import torch

    hidden = child.shape.hidden
    first, ffn = layer.first, layer.ffn
    if first is not None:
        yield Tensor(f"{prefix}attn_norm.weight", first.norm, "f32", first.origin)
        if first.form == LINEAR:
            weight = first.tensors["weight"]
            yield from _matrix(f"{prefix}attn_output", weight, None, first.precision, floats, first.origin)
        else:
            yield from _attention(child, prefix, first, architecture, floats)
    elif prefix == "blk.0." and architecture == DECI:
        yield Tensor(f"{prefix}attn_norm.weight", torch.ones(hidden), "f32", "layer 0")
        yield _zeros(f"{prefix}attn_output.weight", hidden, hidden)
    if ffn is not None:
        yield Tensor(f"{prefix}ffn_norm.weight", ffn.norm, "f32", ffn.origin)
        for name, stem in FFN.items():
            weight, bias = ffn.tensors[f"{name}.weight"], ffn.tensors.get(f"{name}.bias")
            yield from _matrix(f"{prefix}{stem}", weight, bias, ffn.precision, floats, ffn.origin)
        return
    yield Tensor(f"{prefix}ffn_norm.weight", torch.ones(hidden), "f32", "a stub")
    for stem, shape in (("ffn_gate", (STUB, hidden)), ("ffn_up", (STUB, hidden)), ("ffn_down", (hidden, STUB))):
        yield _zeros(f"{prefix}{stem}.weight", *shape)
    if layer.stub_bias is not None:
        yield Tensor(f"{prefix}ffn_down.bias", layer.stub_bias, "f32", "a stub")


def _attention(child: Checkpoint, prefix: str, part: Part, architecture: str, floats: str | None) -> Iterator[Tensor]:
    heads = {"q_proj": child.heads(part), "k_proj": child.kv_heads(part)}
    for name, stem in ATTENTION.items():
        weight, bias = part.tensors[f"{name}.weight"], part.tensors.get(f"{name}.bias")
        if name in heads and architecture in PAIRED:
            weight = paired(weight, heads[name])
            bias = None if bias is None else paired(bias, heads[name])
        yield from _matrix(f"{prefix}{stem}", weight, bias, part.precision, floats, part.origin)
    for name, stem in NORMS.items():
        if f"{name}.weight" in part.tensors:
            yield Tensor(f"{prefix}{stem}.weight", part.tensors[f"{name}.weight"], "f32", part.origin)


def _matrix(
    stem: str, weight: torch.Tensor, bias: torch.Tensor | None, precision: str | None, floats: str | None, origin: str
) -> Iterator[Tensor]:
    """Yield a matrix and its bias.

    Args:
        stem: their name in the file.
        weight: the matrix.
        bias: its bias.
        precision: its piece's precision.
        floats: type of matrices without a precision of their own; None keeps their dtype. As in llama.cpp's own
            quantizer, a matrix whose rows have no whole number of the type's blocks stays F16.
        origin: its place in the child.
    """
    import torch

    kept = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}[weight.dtype]
    if floats and floats not in RECIPES and weight.shape[-1] % block_size(floats):
        floats = "f16"
    yield Tensor(f"{stem}.weight", weight, precision or floats or kept, origin, exact=bool(precision) or not floats)
    if bias is not None:
        yield Tensor(f"{stem}.bias", bias, "f32", origin)


def _zeros(name: str, rows: int, columns: int) -> Tensor:
    """Return a matrix of zeros in the smallest type, as each is exact."""
    import torch

    return Tensor(name, torch.zeros(rows, columns), "f16" if columns % block_size("q4_0") else "q4_0", "a stub")


def paired(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Return rows in the order of llama.cpp's rotary pairs: components half a head apart become adjacent."""
    halves = tensor.unflatten(0, (heads, 2, tensor.shape[0] // heads // 2))
    return halves.transpose(1, 2).flatten(0, 2)


def encoded(tensor: Tensor) -> np.ndarray:
    """Return a tensor's bytes in its type.

    Raises:
        TangramError: see `gguf_types.encode`; or the type would change the values.
    """
    import torch

    data = encode(tensor.values, tensor.type, f"gguf: {tensor.name} ({tensor.origin})")
    if tensor.exact and not torch.equal(decode(data, tensor.type), tensor.values.float()):
        raise TangramError(
            f"gguf: {tensor.name} ({tensor.origin}) would change in type {tensor.type}: its values are not those of "
            "a piece in this precision; delete the child and run again"
        )
    return data


def _rotary_divisors(child: Checkpoint) -> list[float] | None:
    """Return the divisor of each rotary frequency that Llama 3's scaling gives; None without it."""
    rope = child.config.rope_parameters
    if rope["rope_type"] != "llama3":
        return None
    return llama3_divisors(rope["rope_theta"], child.shape.head_dim, rope)


def _write_rope(writer: GGUFWriter, child: Checkpoint) -> None:
    """Write the rotary frequencies.

    Raises:
        TangramError: a GGUF cannot express their scaling.
    """
    import gguf

    rope = child.config.rope_parameters
    writer.add_rope_dimension_count(child.shape.head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    kind, known = rope["rope_type"], {"rope_type", "rope_theta", "factor", "original_max_position_embeddings"}
    if kind == "yarn":
        known |= {"beta_fast", "beta_slow"}
    if kind not in ("default", "linear", "yarn", "llama3") or (kind != "llama3" and rope.keys() - known):
        raise TangramError(f"gguf: rotary scaling {dict(rope)} cannot be expressed; remove gguf from export")
    if kind not in ("linear", "yarn"):
        return
    writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
    writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(rope.get("beta_fast", 32.0))
        writer.add_rope_scaling_yarn_beta_slow(rope.get("beta_slow", 1.0))


def _write_sizes(writer: GGUFWriter, child: Checkpoint, layers: list[Layer], architecture: str) -> None:
    """Write the hyperparameters of the architecture."""
    shape, config = child.shape, child.config
    attentions = [x.first if x.first and x.first.form == "attention" else None for x in layers]
    kv_heads = [child.kv_heads(part) if part else 0 for part in attentions]
    others = [shape.heads if layer.first or index == 0 else 0 for index, layer in enumerate(layers)]
    heads = [child.heads(part) if part else other for part, other in zip(attentions, others, strict=True)]
    widths = [layer.ffn.channels if layer.ffn else STUB for layer in layers]
    of_all = architecture != DECI
    writer.add_block_count(len(layers))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(widths[0] if of_all else widths)
    writer.add_head_count(heads[0] if of_all else heads)
    writer.add_head_count_kv(kv_heads[0] if of_all else kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(shape.vocabulary)


def write_gguf(
    child: Checkpoint, path: str | Path, metadata: Mapping[str, Any] | None = None, floats: str | None = None
) -> None:
    """Write a checkpoint as a GGUF, atomically; equal content gives equal bytes.

    Args:
        child: the checkpoint.
        path: the file.
        metadata: further keys and texts, such as ``general.name``.
        floats: type of matrices without a precision of their own, such as ``'f16'``, or one of `engines.RECIPES`; None
            keeps their dtype.

    Raises:
        TangramError: llama.cpp cannot compute what the child computes, or the tokenizer is of an unknown kind; or
            a recipe needs llama.cpp, and it is not installed.
    """
    import gguf

    check_expressible(child)
    layers = pack(without_vectors(child.parts))
    architecture = architecture_of(child, layers)
    tensors = list(tensors_of(child, layers, architecture, floats))
    if floats in RECIPES:
        tensors = [replace(tensor, type=tensor_type(tensor, tensors, len(layers))) for tensor in tensors]
    bytes_of = Counter[str]()
    with atomic_path(path) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture)
        for key, text in (metadata or {}).items():
            writer.add_string(key, text)
        _write_sizes(writer, child, layers, architecture)
        _write_rope(writer, child)
        write_tokenizer(writer, child.folder, child.shape.vocabulary)
        for tensor in tensors:
            data = encoded(tensor)
            kind = gguf.GGMLQuantizationType[tensor.type.upper()]
            writer.add_tensor(tensor.name, data, raw_dtype=kind)
            bytes_of[tensor.type] += data.nbytes
        largest = (floats if floats in RECIPES else bytes_of.most_common(1)[0][0]).upper()
        writer.add_file_type(gguf.LlamaFileType["ALL_F32" if largest == "F32" else f"MOSTLY_{largest}"])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
