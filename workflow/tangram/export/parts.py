"""A checkpoint as the sequence of its subblocks, from which each format builds its own layers.

A subblock adds its output to the residual stream, so a child computes the same whether two subblocks stand in one layer
or in two. Formats with other kinds of layers than Tangram pack the sequence anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangram.blocks.base import CONFIG_NAME, FORMATS, KINDS
from tangram.child.assemble import load_weights
from tangram.engines import FAMILIES, HF
from tangram.errors import TangramError
from tangram.library.pieces import tensor_name
from tangram.models.families import CHILD_PREFIX, Shape
from tangram.models.layouts import PRE_NORM
from tangram.models.loading import check_files, config_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

LINEAR = "linear"  # the form of a subblock that is one linear map; the other forms are the kinds of subblocks
VECTOR = "vector"  # the form of a subblock that is one vector, without a norm
LINEAR_NAMES = {"attention": "linear_attn", "ffn": "linear_mlp"}

Tensors = dict[str, "torch.Tensor"]


@dataclass(frozen=True)
class Part:
    """A subblock.

    Attributes:
        form: ``'attention'``, ``'ffn'``, ``'linear'`` or ``'vector'``.
        norm: weights of the norm before it, ``(hidden,)``; of a vector, which has none, ones.
        tensors: its tensors by their names inside the subblock; of a linear map ``weight`` and perhaps ``bias``, of a
            vector ``bias``.
        precision: the precision of its matrices; None for the child's dtype.
        kind: ``'attention'`` or ``'ffn'``.
        layer: its layer in the child.
    """

    form: str
    norm: torch.Tensor
    tensors: Tensors
    precision: str | None
    kind: str
    layer: int

    @property
    def origin(self) -> str:
        """Its place in the child, for messages."""
        return f"{self.kind} of layer {self.layer}"

    @property
    def channels(self) -> int:
        """Intermediate channels of an FFN."""
        return len(self.tensors["up_proj.weight"])


@dataclass(frozen=True)
class Checkpoint:
    """A parent or child, ready to be written in another format.

    Attributes:
        folder: its folder, which holds the tokenizer.
        config: its config.
        shape: the parent's sizes.
        parts: its subblocks in order, without those that are no-ops.
        embedding: ``(vocabulary, hidden)``.
        norm: weights of the last norm, ``(hidden,)``.
        head: the LM head's tensors, such as ``weight``; None if it is the embedding.
        head_precision: precision of the head's matrix; None for the child's dtype.
    """

    folder: Path
    config: PreTrainedConfig
    shape: Shape
    parts: tuple[Part, ...]
    embedding: torch.Tensor
    norm: torch.Tensor
    head: Tensors | None
    head_precision: str | None

    def heads(self, part: Part) -> int:
        """Return the query heads of an attention."""
        return len(part.tensors["q_proj.weight"]) // self.shape.head_dim

    def kv_heads(self, part: Part) -> int:
        """Return the key-value heads of an attention."""
        return len(part.tensors["k_proj.weight"]) // self.shape.head_dim


def read_checkpoint(folder: str | Path) -> Checkpoint:
    """Read a checkpoint that Tangram wrote.

    Raises:
        TangramError: it is missing or damaged, no format can express its family, or a subblock consists of factors
            instead of matrices.
    """
    folder = Path(folder)
    config = config_of(folder)
    if (family := config.model_type.removeprefix(CHILD_PREFIX)) not in FAMILIES[HF]:
        raise TangramError(
            f"{folder} is of family {family}, which none of the formats {', '.join(FORMATS)} can express; "
            "run it in torch, and leave targets.*.export out"
        )
    check_files(folder)
    state = load_weights(folder)
    shape = Shape.of(config)
    layers = getattr(config, "per_layer_config", None)
    parts: list[Part] = []
    for layer in range(shape.num_layers):
        parts += _parts_of(layer, layers[layer] if layers else None, state)
    return Checkpoint(
        folder,
        config,
        shape,
        tuple(parts),
        embedding=state["model.embed_tokens.weight"],
        norm=state["model.norm.weight"],
        head=None if config.tie_word_embeddings else _inside("lm_head.", state),
        head_precision=getattr(config, "head_precision", None),
    )


def _parts_of(layer: int, config: Any, state: Tensors) -> Iterator[Part]:
    """Yield the subblocks of a layer that exist."""
    import torch

    precisions = dict(entry.split("=") for entry in getattr(config, "precision", []))
    if (window := getattr(config, "attention_window", None)) is not None:
        raise TangramError(
            f"attention of layer {layer} reads a window of {window} tokens and the first ones, which no format can "
            "express; leave such variants out of the target's library"
        )
    for kind in KINDS:
        name = CONFIG_NAME[kind]
        if name in getattr(config, "skip", []):
            continue
        for entry in getattr(config, "structured", []):
            if entry.startswith(f"{name}="):
                raise TangramError(
                    f"{kind} of layer {layer} is '{entry.partition('=')[2]}', whose factors no format can express; "
                    "leave such variants out of the target's library"
                )
        form, tensors = str(kind), _inside(tensor_name(layer, kind, ""), state)
        if f"{name}=constant" in getattr(config, "linear", []):
            vector = tensors["vector"]
            yield Part(VECTOR, torch.ones_like(vector), {"bias": vector}, None, kind, layer)
            continue
        if name in getattr(config, "linear", []):
            form, tensors = LINEAR, _inside(f"{LINEAR_NAMES[kind]}.", tensors)
        norm = state[f"model.layers.{layer}.{getattr(PRE_NORM, kind).before}.weight"]
        yield Part(form, norm, tensors, precisions.get(name), kind, layer)


def _inside(prefix: str, state: Tensors) -> Tensors:
    """Return the tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
