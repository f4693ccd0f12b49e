"""Coupled block-wise local distillation: train a layer's attention and FFN variants together.

As in Puzzle (arXiv 2411.19146, section 3): decoupled pieces are trained beside the parent's other subblock, but a
child's layer often has both replaced. A pair is trained as it will run. Its loss is that of the pieces: the normalized
squared error of the layer's output. Started from trained pieces, this is the second of the paper's two stages; started
from closed-form weights, it is full coupled BLD. All weights of both variants are trained, also those of a linear map,
which is the optimum only beside the parent's other subblock.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import torch

from tangram.blocks.architecture import LayerChoice, pieces_of
from tangram.blocks.registry import get_block
from tangram.library.distill import LayerDistillation, Piece
from tangram.library.pairs import layer_of_pair
from tangram.library.pieces import State
from tangram.models.by_layer import materialize
from tangram.models.families import Shape, subblock
from tangram.training.loop import Checkpointing


@torch.no_grad()
def closed_form(problem: LayerDistillation, choice: LayerChoice) -> dict[str, State]:
    """Return the initial weights of both variants by kind, each fitted beside the parent's other subblock."""
    shape = Shape.of(problem.model.config)
    blocks = [get_block(kind, variant, shape) for kind, variant in pieces_of(choice)]
    parent = materialize(problem.layer)
    return {
        block.kind: block.initialize(subblock(parent, block.kind), problem.calibration(block.kind)) for block in blocks
    }


def distill_pair(
    problem: LayerDistillation,
    choice: LayerChoice,
    seed: int,
    initial: Mapping[str, State] | None = None,
    checkpointing: Checkpointing | None = None,
) -> Piece:
    """Train a layer's two variants together; return the initial or the trained weights, whichever are better.

    Args:
        problem: the layer's inputs, outputs, loss and settings.
        choice: the variants of its attention and its FFN.
        seed: seed of the order of the sequences.
        initial: their initial weights, by kind and name in the subblock, such as those of separately trained pieces; by
            default `closed_form`.
        checkpointing: where the training saves its state.

    Returns:
        A piece whose tensors have their names in the layer, such as ``mlp.up_proj.weight``.
    """
    begin = time.monotonic()
    weights = closed_form(problem, choice) if initial is None else initial
    layer = layer_of_pair(problem.model, problem.index, choice, weights)
    piece = problem.train_layer(layer, weights, any(weights.values()), seed, checkpointing)
    return replace(piece, seconds=time.monotonic() - begin)
