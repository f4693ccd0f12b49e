"""The parent, texts, pieces and children of the study, by functions that any process can call with plain arguments.

Everything that several experiments need is made once: texts with the parent's activations, libraries of pieces with one
file per piece, score tables. Children are measured in memory; those that several
experiments finetune alike are written once.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tangram.activations import CachedActivations, capture
from tangram.blocks.architecture import LayerChoice, from_json
from tangram.blocks.base import HEAD, HEAD_SHARD, KINDS
from tangram.blocks.projections import projection_moments
from tangram.blocks.registry import get_block
from tangram.child.assemble import (
    assemble_state,
    build_child,
    build_config,
    load_parent,
    read_tensors,
    shuffle_matrices,
    trained_state,
)
from tangram.config import BlockDistillation, Finetune, Packing, Pruning, Split
from tangram.corpus.build import build_split
from tangram.corpus.tokens import read_tokens
from tangram.errors import TangramError
from tangram.files import write_tensors
from tangram.finetune import finetune
from tangram.library.distill import LayerDistillation
from tangram.library.pieces import Library, read_library, read_piece, tensor_name
from tangram.library.quantize import quantize_head, quantize_subblock
from tangram.metrics import compare_in_chunks
from tangram.models.families import Shape, decoder_layers, shape_of
from tangram.models.forward import layer_contexts, logits_of
from tangram.models.loading import load_model
from tangram.provenance import fingerprint
from tangram.scores.influence import block_influence
from tangram.scores.replace_one import ReplaceOne, scored_positions
from tangram.selection.candidates import cut_prompts
from tangram.tables import CORPUS, write_table
from tangram_studies.papers.puzzle import wanda

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH = 4  # sequences per forward pass
STRIDE = 4  # of the positions whose predictions are compared
OWN, NARROW = "parent-samples", "python-docs"  # types of text: the parent's own, and documentation of one language
HELD_OUT, FINETUNE = "heldout", "finetune"  # names of the texts of evaluation and of global distillation
Metrics = dict[str, list[float]]  # by metric, one value per passage


@dataclass(frozen=True)
class Lab:
    """Places of files and settings that all functions share.

    Attributes:
        parent: the parent's folder.
        heldout: the held-out split.
        folder: the study's working folder.
        dtype: ``'float32'`` or ``'bfloat16'``.
        device: torch's device.
        seed: the study's first seed.
        length: tokens per training or score sequence.
        passages: held-out passages for evaluation.
        passage_tokens: tokens per passage.
        compute: data type of matrix products in trainings and in the layers of scored pieces and of children.
    """

    parent: str
    heldout: str
    folder: str
    dtype: str
    device: str
    seed: int
    length: int
    passages: int
    passage_tokens: int
    compute: str = "float32"

    @property
    def key(self) -> str:
        """No place of a file is part of a result; the study's identity covers the rest."""
        return ""

    @property
    def layers(self) -> int:
        """The parent's number of layers."""
        return shape_of(self.parent).num_layers


@functools.lru_cache(maxsize=1)
def parent_of(lab: Lab) -> PreTrainedModel:
    """Return the parent without gradients; one per process."""
    return load_model(lab.parent, lab.dtype, lab.device).requires_grad_(False)


@functools.lru_cache(maxsize=1)
def _parent_state(lab: Lab) -> tuple[Any, dict[str, torch.Tensor]]:
    return load_parent(lab.parent)


def _text_file(lab: Lab, text: str) -> Path:
    return Path(lab.folder, "texts", f"{text}.parquet")


def write_text(lab: Lab, text: str, source: str, tokens: int, seed: int, split: str = "distill") -> int:
    """Write a text and the parent's activations on it; return its tokens.

    Args:
        lab: the laboratory.
        text: name of the text.
        source: type of its source, `OWN` or `NARROW`.
        tokens: its length.
        seed: seed of the text.
        split: the split whose documents it takes.
    """
    section = Split.model_validate({"tokens": tokens, "sources": [{"type": source}]})
    packing = Packing(sequence_length=lab.length)
    rows = build_split(split, section, packing, lab.parent, seed, lab.dtype, lab.device)
    write_table(rows, CORPUS, _text_file(lab, text), {})
    _capture(lab, text)
    return len(rows) * lab.length


def write_heldout(lab: Lab) -> int:
    """Write the parent's activations on the held-out passages; return the number of passages."""
    _capture(lab, HELD_OUT)
    return len(tokens_of(lab, HELD_OUT))


def _capture(lab: Lab, text: str) -> None:
    path = Path(lab.folder, "activations", f"{text}.npy")
    path.parent.mkdir(parents=True, exist_ok=True)
    capture(parent_of(lab), tokens_of(lab, text), BATCH, path, f"study_puzzle: activations of {text}")


@functools.lru_cache(maxsize=32)
def tokens_of(lab: Lab, text: str) -> torch.Tensor:
    """Return a text's tokens, ``(sequences, length)``."""
    if text == HELD_OUT:
        return cut_prompts(read_tokens(lab.heldout), lab.passage_tokens)[: lab.passages]
    return read_tokens(_text_file(lab, text))


def activations_of(lab: Lab, text: str) -> CachedActivations:
    """Return the parent's activations on a text, as far as `capture` wrote them."""
    path = Path(lab.folder, "activations", f"{text}.npy")
    return CachedActivations(path, parent_of(lab), tokens_of(lab, text))


# Pieces


def piece_file(lab: Lab, library: str, kind: str, variant: str, layer: int) -> Path:
    """Return the file of one piece."""
    return Path(lab.folder, "libraries", library, kind, variant, f"{layer:02d}-{layer:02d}.safetensors")


def library_of(lab: Lab, library: str) -> Library:
    """Return a library of the study."""
    shards = tuple(f"{layer:02d}-{layer:02d}" for layer in range(lab.layers))
    return read_library(Path(lab.folder, "libraries", library), shards)


def problem_of(lab: Lab, text: str, layer: int, epochs: int, sequences: int | None = None) -> LayerDistillation:
    """Return the distillation of one layer, with the pieces of the paper: channels chosen by their contribution.

    Args:
        lab: the laboratory.
        text: the text to train on.
        layer: the layer.
        epochs: passes over the text.
        sequences: train on the first sequences only.
    """
    states = activations_of(lab, text)
    inputs, outputs = (states.hidden(index)[:sequences] for index in (layer, layer + 1))
    settings = BlockDistillation.model_validate({"epochs": epochs, "compute": lab.compute})
    return LayerDistillation(
        parent_of(lab), layer, inputs, outputs, settings, pruning=Pruning(selection="contribution")
    )


def train_piece(
    lab: Lab,
    library: str,
    text: str,
    kind: str,
    variant: str,
    layer: int,
    epochs: int,
    seed: int,
    sequences: int | None,
) -> dict[str, Any]:
    """Train one piece (decoupled BLD), write it, and return its held-out losses; ``epochs`` 0 only initializes it."""
    piece = problem_of(lab, text, layer, epochs, sequences).distill(kind, variant, seed)
    tensors = {tensor_name(layer, kind, name): tensor for name, tensor in piece.weights.items()}
    write_tensors(piece_file(lab, library, kind, variant, layer), tensors, {})
    return {"before": piece.loss_before, "after": piece.loss_after, "tokens": piece.tokens, "seconds": piece.seconds}


def quantize_piece(lab: Lab, library: str, text: str, kind: str, variant: str, layer: int) -> float:
    """Write the parent's subblock or head in a precision, and return its held-out loss."""
    if kind == HEAD:
        fraction = BlockDistillation().holdout_fraction
        piece = quantize_head(parent_of(lab), activations_of(lab, text), variant, fraction)
        path = Path(lab.folder, "libraries", library, HEAD, variant, f"{HEAD_SHARD}.safetensors")
    else:
        piece = quantize_subblock(problem_of(lab, text, layer, 0), kind, variant, None)
        path = piece_file(lab, library, kind, variant, layer)
    tensors = {tensor_name(layer, kind, name): tensor.contiguous() for name, tensor in piece.weights.items()}
    write_tensors(path, tensors, {})
    return piece.loss_after


def norms_file(lab: Lab) -> Path:
    """Return the file of the norms that `write_norms` writes."""
    return Path(lab.folder, "norms.safetensors")


def write_norms(lab: Lab, text: str) -> int:
    """Write the root mean squares of the inputs of all matrices of all layers; return the number of layers."""
    norms = {}
    for layer in range(lab.layers):
        problem = problem_of(lab, text, layer, 0)
        for kind in KINDS:
            for name, moment in projection_moments(kind, problem.measure(kind)).items():
                norms[tensor_name(layer, kind, f"{name}.weight")] = moment.diagonal().clamp_min(0).sqrt().float()
    write_tensors(norms_file(lab), norms, {})
    return lab.layers


def influence(lab: Lab, text: str) -> list[float]:
    """Return the block influence of every layer (ShortGPT)."""
    return block_influence(activations_of(lab, text), lab.layers)


# Scores


@functools.lru_cache(maxsize=1)
def scorer_of(lab: Lab, text: str) -> ReplaceOne:
    """Return the scorer of replaced pieces on a text; one per process."""
    return ReplaceOne(
        parent_of(lab), activations_of(lab, text), tokens_of(lab, text), STRIDE, BATCH, compute=lab.compute
    )


def score_piece(lab: Lab, library: str, text: str, kind: str, variant: str, layer: int) -> list[dict[str, Any]]:
    """Return the rows of `tables.SCORES` of one piece."""
    block = get_block(kind, variant, Shape.of(parent_of(lab).config))
    tensors = read_piece(piece_file(lab, library, kind, variant, layer), layer, kind)
    return scorer_of(lab, text).score_piece(layer, block, tensors)


# Children


def child_of(lab: Lab, architecture: Mapping[str, Any], library: str) -> PreTrainedModel:
    """Return an assembled child."""
    config, state = _parent_state(lab)
    pinned = from_json(architecture)
    return build_child(build_config(config, pinned), assemble_state(state, pinned, library_of(lab, library)))


def first_changed(architecture: Mapping[str, Any]) -> int:
    """Return the first layer that is not the parent's; the number of layers if all are."""
    layers = from_json(architecture).layers
    return next((index for index, choice in enumerate(layers) if choice != LayerChoice()), len(layers))


@torch.inference_mode()
def metrics_of(lab: Lab, child: PreTrainedModel, text: str = HELD_OUT, first: int = 0) -> Metrics:
    """Return KL, LM loss and agreement of a model on every passage of a text, at every fourth position.

    Args:
        lab: the laboratory.
        child: the model.
        text: name of the text.
        first: the layer to begin with, from the parent's states; those before it must be the parent's.
    """
    parent, tokens, cached = parent_of(lab), tokens_of(lab, text), activations_of(lab, text)
    positions, layers = scored_positions(tokens.shape[1], STRIDE), list(decoder_layers(child))[first:]
    heads = functools.partial(logits_of, child), functools.partial(logits_of, parent)
    states = cached.hidden(first)
    contexts = layer_contexts(child, states[:1])[first:]
    parts: dict[str, list[torch.Tensor]] = {}
    batches = (each.split(BATCH) for each in (tokens, states, cached.hidden(lab.layers)))
    for ids, hidden, final in zip(*batches, strict=True):
        for layer, context in zip(layers, contexts, strict=True):
            hidden = layer(hidden, **context)
        normed = child.model.norm(hidden[:, positions]), parent.model.norm(final[:, positions])
        compared = normed[0].flatten(0, 1), normed[1].flatten(0, 1)
        labels = ids[:, positions + 1].flatten().to(child.device)
        for name, values in compare_in_chunks(*compared, *heads, labels).items():
            parts.setdefault(name, []).append(values.unflatten(0, (len(ids), -1)).double().mean(1))
    metrics = {name: torch.cat(values).tolist() for name, values in parts.items()}
    if not all(map(math.isfinite, metrics["kl"] + metrics["loss"])):
        raise TangramError("study_puzzle: a child's outputs are not finite; delete the study's checkpoints")
    return {name: metrics[name] for name in ("kl", "loss", "agreement")}


def model_of(
    lab: Lab,
    architecture: Mapping[str, Any],
    library: str,
    training: Mapping[str, Any] | None = None,
    seed: int = 0,
    weights: str = "pieces",
    keep: bool = False,
) -> PreTrainedModel:
    """Return an assembled child, after global distillation (GKD) if ``training`` is given.

    Its layers multiply matrices in `Lab.compute`.

    Args:
        lab: the laboratory.
        architecture: the child's architecture.
        library: the library of its pieces.
        training: config section `finetune`; the text is `FINETUNE`. Removed weights of a mask stay zero.
        seed: seed of the order of the sequences, and of random weights.
        weights: ``'pieces'``; ``'random'`` for new weights in all layers (table 15); ``'wanda'`` for a mask on all
            matrices of the layers (table 18).
        keep: store the trained weights, and read them if they are stored: several experiments use the child.
    """
    child = child_of(lab, architecture, library)
    if weights == "random":
        child.load_state_dict(shuffle_matrices(child.state_dict(), seed))
    if weights == "wanda":
        wanda.prune(child, wanda.read_norms(norms_file(lab)))
    if training is not None:
        settings = {"library": library, "training": training, "seed": seed, "weights": weights}
        key = fingerprint([json.dumps([architecture, settings], sort_keys=True)], [])
        path = Path(lab.folder, "finetuned", f"{key}.safetensors")
        if keep and path.exists():
            child.load_state_dict(read_tensors(path), strict=False)  # a tied head is not stored
        else:
            hooks = wanda.keep_zeros(child) if weights == "wanda" else []
            text = activations_of(lab, FINETUNE), tokens_of(lab, FINETUNE)
            section = Finetune.model_validate({**training, "compute": lab.compute})
            finetune(child, parent_of(lab), *text, section, seed)
            for hook in hooks:
                hook.remove()
            if keep:
                write_tensors(path, trained_state(child), {})
    if lab.compute == "bfloat16":  # not in the head, whose rounded logits would change the KL
        for layer in decoder_layers(child):
            layer.forward = torch.autocast(lab.device, torch.bfloat16)(layer.forward)
    return child.eval().requires_grad_(False)


def measure_child(
    lab: Lab,
    architecture: Mapping[str, Any],
    library: str,
    training: Mapping[str, Any] | None = None,
    seed: int = 0,
    weights: str = "pieces",
    keep: bool = False,
) -> Metrics:
    """Return the metrics of a child on the held-out passages; see `model_of`."""
    child = model_of(lab, architecture, library, training, seed, weights, keep)
    assembled = training is None and weights == "pieces"
    return metrics_of(lab, child, first=first_changed(architecture) if assembled else 0)
