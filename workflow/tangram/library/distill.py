"""Block-wise local distillation (BLD): train each piece to reproduce its subblock's output on the parent's activations.

Decoupled as in Puzzle (arXiv 2411.19146, section 3): an attention variant is trained with the parent's frozen FFN, an
FFN variant with the parent's frozen attention, and the loss compares the outputs of the whole decoder layer. The module
`coupled` trains both together.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tangram.blocks import get_block
from tangram.blocks.base import FITTED_TOKENS
from tangram.blocks.calibration import Calibration
from tangram.blocks.moments import Moments, Part, accumulate
from tangram.config import BlockDistillation, Pruning
from tangram.errors import TangramError
from tangram.models.by_layer import materialize
from tangram.models.families import SUBBLOCK_NAMES, Shape, decoder_layers, place_of, subblock
from tangram.models.forward import layer_contexts
from tangram.models.layouts import contribution_of, residual_multiplier, subblock_input
from tangram.models.replace import replace_subblocks
from tangram.training.loop import Checkpointing, TrainingPlan, steps_of, train
from tangram.training.losses import normalized_mse, span_loss
from tangram.training.parallel import World
from tangram.training.precision import autocast

if TYPE_CHECKING:
    from transformers import PreTrainedModel


MEASURED_TOKENS = FITTED_TOKENS // 4  # at a time, because moments also hold the activations inside a subblock


@dataclass(frozen=True)
class Piece:
    """A trained subblock of one layer.

    Attributes:
        weights: tensors by their names inside the subblock.
        loss_before: held-out loss of the initial weights.
        loss_after: held-out loss of the trained weights; None where nothing is trained.
        kept: which weights are stored, ``'initial'`` or ``'trained'``: those of lower held-out loss.
        curve: training rows of `training.loop.train`.
        tokens: number of training tokens.
        seconds: wall time.
    """

    weights: dict[str, torch.Tensor]
    loss_before: float
    loss_after: float | None
    kept: str
    curve: list[dict[str, Any]]
    tokens: int
    seconds: float

    def row(self, layer: int, kind: str, variant: str) -> dict[str, Any]:
        """Return the row of `tables.LIBRARY`."""
        return {
            "layer": layer,
            "kind": kind,
            "variant": variant,
            "parameters": sum(tensor.numel() for tensor in self.weights.values()),
            "bld_loss_before": self.loss_before,
            "bld_loss_after": self.loss_after,
            "kept": self.kept,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }

    def curves(self, layer: int, kind: str, variant: str, tokens_per_step: int) -> list[dict[str, Any]]:
        """Return the rows of `tables.CURVES`."""
        series = f"{kind} {variant} layer {layer}"
        return [{"series": series, "tokens": (row["step"] + 1) * tokens_per_step, **row} for row in self.curve]


@torch.inference_mode()
def _after_attention(layer: nn.Module, hidden: torch.Tensor, context: dict[str, Any], batch: int) -> torch.Tensor:
    """Return the residual stream between attention and FFN, ``(sequences, length, hidden)``."""
    place = place_of(layer, "attention")
    return torch.cat([part + contribution_of(layer, place, part, **context) for part in hidden.split(batch)])


class _LayerCalibration(Calibration):
    """The calibration of a layer's subblock; activations are computed when they are read, as most pieces need none.

    Attributes:
        norm_after: whether a norm follows the attention or FFN; the outputs in the moments are normed.
    """

    norm_after: bool
    _problem: LayerDistillation
    _kind: str

    def __init__(self, problem: LayerDistillation, kind: str, moments: Moments | None):
        vars(self).update(
            weights=problem.weights.flatten(),
            ridge=problem.settings.ridge,
            selection=problem.pruning.selection,
            pruning_ridge=problem.pruning.ridge,
            context=problem.context,
            norm_after=place_of(problem.layer, kind).after is not None,
            measure=lambda: problem.measure(kind) if moments is None else moments,
            _problem=problem,
            _kind=kind,
        )

    @functools.cached_property
    def inputs(self) -> torch.Tensor:
        """See `Calibration`."""
        problem = self._problem
        before = problem.before(self._kind)[: problem.training]
        place = place_of(problem.layer, self._kind)
        with torch.inference_mode():
            inputs = [subblock_input(problem.layer, place, part) for part in before.split(problem.settings.batch_size)]
        return torch.cat(inputs).flatten(0, 1)

    @functools.cached_property
    def outputs(self) -> torch.Tensor:
        """See `Calibration`."""
        problem = self._problem
        if self.norm_after:
            sequences = self.inputs.unflatten(0, (problem.training, -1))
            with torch.inference_mode():
                parts = [problem.unnormed(self._kind, part) for part in sequences.split(problem.settings.batch_size)]
            return torch.cat(parts).flatten(0, 1).float()
        after = problem.middle if self._kind == "attention" else problem.outputs
        outputs = after[: problem.training].to(torch.float32, copy=True)
        outputs -= problem.before(self._kind)[: problem.training]  # in place, because both hold a whole split
        if (multiplier := residual_multiplier(problem.layer)) != 1:
            outputs /= multiplier
        return outputs.flatten(0, 1)


class LocalLoss(nn.Module):
    """The training loss: `LayerDistillation.loss`, plus the span-contrast loss if the config has one."""

    def __init__(self, problem: LayerDistillation, layer: nn.Module, kind: str, term: nn.Module | None):
        super().__init__()
        self.layer, self.term = layer, term
        self._problem, self._kind = problem, kind

    def forward(self, sequences: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the total loss for ``sequences`` (indices), and its two terms if there are two."""
        problem = self._problem
        with autocast(problem.inputs.device, problem.settings.compute):
            predicted = problem.predict(self.layer, self._kind, sequences)
        target = problem.outputs[sequences]
        mse = normalized_mse(predicted, target, problem.scale[sequences]).mean()
        if self.term is None:
            return mse, {}
        contrast = self.term(predicted, target, sequences)
        total = mse + problem.settings.span_contrast.weight * contrast
        return total, {"normalized_mse": mse.item(), "span_contrast": contrast.item()}


class LayerDistillation:
    """The distillation of one decoder layer: inputs, target outputs, normalization of the loss, and the training.

    The loss is the squared error of the layer's output, divided by the mean square of the parent layer's contribution
    to the residual stream. Removing the whole layer gives a loss of 1.

    Args:
        model: the parent.
        index: the layer's index.
        inputs: the layer's input, ``(sequences, length, hidden)``.
        outputs: the parent layer's output, ``(sequences, length, hidden)``.
        settings: config section `library.bld`.
        tokens: ``(sequences, length)``; the span-contrast loss needs them.
        pruning: config section `library.pruning`.

    Raises:
        TangramError: no sequence remains for training.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        index: int,
        inputs: torch.Tensor,
        outputs: torch.Tensor,
        settings: BlockDistillation,
        tokens: torch.Tensor | None = None,
        pruning: Pruning | None = None,
    ):
        self.tokens, self.pruning = tokens, pruning or Pruning()
        self.model, self.index, self.settings = model, index, settings
        self.layer = materialize(decoder_layers(model)[index])
        self.context = layer_contexts(model, inputs[:1])[index]
        self.inputs, self.outputs = inputs, outputs
        held_out = max(1, round(settings.holdout_fraction * len(inputs)))
        self.training = len(inputs) - held_out
        if self.training < 1:
            raise TangramError(
                f"of {len(inputs)} sequences, library.bld.holdout_fraction {settings.holdout_fraction:g} holds out "
                f"{held_out} and leaves none to train on; raise corpus.distill.tokens, or lower one of "
                "corpus.sequence_length and library.bld.holdout_fraction"
            )
        parts = zip(inputs.split(settings.batch_size), outputs.split(settings.batch_size), strict=True)
        contribution = torch.cat([(after.float() - before.float()).square().mean(-1) for before, after in parts])
        per_token = settings.normalize == "token"
        self.scale = contribution.clamp_min(1e-12) if per_token else contribution.mean().expand_as(contribution)

    @functools.cached_property
    def middle(self) -> torch.Tensor:
        """The residual stream between attention and FFN, ``(sequences, length, hidden)``."""
        return _after_attention(self.layer, self.inputs, self.context, self.settings.batch_size).clone()

    @property
    def weights(self) -> torch.Tensor:
        """The weight of each training token in fits, ``(sequences, length)``."""
        return 1 / self.scale[: self.training]

    def before(self, kind: str) -> torch.Tensor:
        """Return the residual stream before a subblock, ``(sequences, length, hidden)``."""
        return self.inputs if kind == "attention" else self.middle

    def calibration(self, kind: str, moments: Moments | None = None) -> Calibration:
        """Return the calibration of a subblock on the training sequences.

        Args:
            kind: ``'attention'`` or ``'ffn'``.
            moments: those that `measure` returned; by default they are measured when they are needed.
        """
        return _LayerCalibration(self, kind, moments)

    def unnormed(self, kind: str, inputs: torch.Tensor) -> torch.Tensor:
        """Return the outputs of the parent's attention or FFN alone, without a norm after it and a multiplier."""
        module = subblock(self.layer, kind)
        outputs: torch.Tensor = module(inputs) if kind == "ffn" else module(hidden_states=inputs, **self.context)[0]
        return outputs

    @torch.no_grad()
    def measure(self, kind: str) -> Moments:
        """Return the moments of a subblock's activations on the training sequences, in one pass."""
        before = self.before(kind)
        module, place, weights = subblock(self.layer, kind), place_of(self.layer, kind), self.weights
        last: Any = module.o_proj if kind == "attention" else module.down_proj
        inner: list[torch.Tensor] = []

        def parts() -> Iterator[Part]:
            per_part = max(1, MEASURED_TOKENS // before.shape[1])
            for sequences in torch.arange(self.training).split(per_part):
                normed = subblock_input(self.layer, place, before[sequences])
                result = self.unnormed(kind, normed)
                result = result if place.after is None else getattr(self.layer, place.after)(result)
                yield (
                    normed.flatten(0, 1),
                    inner.pop().flatten(0, 1),
                    result.flatten(0, 1),
                    weights[sequences].flatten(),
                )

        handle = last.register_forward_pre_hook(lambda _, arguments: inner.append(arguments[0]))
        try:
            return accumulate(parts())
        finally:
            handle.remove()

    def predict(self, layer: nn.Module, kind: str, sequences: torch.Tensor | slice) -> torch.Tensor:
        """Return the output of a layer with a replaced subblock, ``(sequences, length, hidden)``."""
        if kind == "attention":
            return layer(self.inputs[sequences], **self.context)
        middle = self.middle[sequences]
        return (
            middle if subblock(layer, kind) is None else middle + contribution_of(layer, place_of(layer, kind), middle)
        )

    def loss(self, layer: nn.Module, kind: str, sequences: torch.Tensor | slice) -> torch.Tensor:
        """Return the mean normalized loss of a layer with a replaced subblock."""
        predicted = self.predict(layer, kind, sequences)
        return normalized_mse(predicted, self.outputs[sequences], self.scale[sequences]).mean()

    @torch.no_grad()
    def held_out_loss(self, layer: nn.Module, kind: str) -> float:
        """Return the loss on the held-out sequences."""
        held_out = range(self.training, len(self.inputs))
        parts = torch.tensor(list(held_out)).split(self.settings.batch_size)
        return sum(self.loss(layer, kind, part).item() * len(part) for part in parts) / len(held_out)

    def distill(
        self,
        kind: str,
        variant: str,
        seed: int,
        checkpointing: Checkpointing | None = None,
        moments: Moments | None = None,
    ) -> Piece:
        """Initialize, train and evaluate one piece; return the initial or the trained weights, whichever are better.

        Args:
            kind: ``'attention'`` or ``'ffn'``.
            variant: the variant's name.
            seed: seed of the order of the sequences.
            checkpointing: where the training saves its state.
            moments: see `calibration`.
        """
        begin = time.monotonic()
        block = get_block(kind, variant, Shape.of(self.model.config))
        with torch.no_grad():
            initial = block.initialize(subblock(self.layer, kind), self.calibration(kind, moments))
        piece = self.train(kind, variant, initial, seed, checkpointing)
        return replace(piece, seconds=time.monotonic() - begin)

    def train(
        self,
        kind: str,
        variant: str,
        initial: dict[str, torch.Tensor],
        seed: int,
        checkpointing: Checkpointing | None = None,
    ) -> Piece:
        """Train and evaluate a piece from its initial weights; see `distill`."""
        config = self.model.config
        block = get_block(kind, variant, Shape.of(config))
        layer = replace_subblocks(materialize(self.layer), config, self.index, block.overrides(), {kind: initial})
        piece = self.train_layer(layer, {kind: initial}, block.trainable, seed, checkpointing)
        prefix = f"{SUBBLOCK_NAMES[kind]}."
        return replace(piece, weights={name.removeprefix(prefix): t for name, t in piece.weights.items()})

    def train_layer(
        self,
        layer: nn.Module,
        initial: Mapping[str, Mapping[str, torch.Tensor]],
        trainable: bool,
        seed: int,
        checkpointing: Checkpointing | None = None,
    ) -> Piece:
        """Train and evaluate the replaced subblocks of a layer together.

        Args:
            layer: the layer with the replaced subblocks; its weights change.
            initial: their initial weights, by kind and name in the subblock.
            trainable: False to only measure the loss of the initial weights.
            seed: seed of the order of the sequences.
            checkpointing: where the training saves its state.

        Returns:
            A piece whose tensors have their names in the layer, such as ``mlp.up_proj.weight``.
        """
        begin = time.monotonic()
        kind = next(iter(initial)) if len(initial) == 1 else "attention"  # the first subblock that differs
        before = self.held_out_loss(layer, kind)
        after, chosen, curve, weights = None, "initial", list[dict[str, Any]](), dict(initial)
        plan = TrainingPlan(
            examples=self.training,
            steps=steps_of(self.settings.epochs * self.training, self.training, self.settings.batch_size),
            batch_size=self.settings.batch_size,
            micro_batch_size=self.settings.batch_size,
            learning_rate=self.settings.learning_rate,
            warmup_fraction=self.settings.warmup_fraction,
            seed=seed,
        )
        if trainable and plan.steps:
            children = {name: module for name in initial if (module := subblock(layer, name)) is not None}
            term: nn.Module | None = None
            if self.settings.span_contrast.weight:
                if self.tokens is None:
                    raise ValueError("the span-contrast loss needs the tokens")
                term = span_loss(self.settings.span_contrast, self.outputs[: self.training], self.tokens, seed)
            modules = [child.requires_grad_(True) for child in children.values()] + ([] if term is None else [term])
            module = modules[0] if len(modules) == 1 else nn.ModuleList(modules)
            with World().distribute(LocalLoss(self, layer, kind, term), [layer]) as loss:
                for name, child in children.items():
                    child.load_state_dict(initial[name])  # again, unrounded: `distribute` made the weights float32
                curve = train(module, loss, plan, checkpointing=checkpointing)
            after = self.held_out_loss(layer, kind)
            if after < before:
                chosen, weights = "trained", {name: child.state_dict() for name, child in children.items()}
        return Piece(
            weights={
                f"{SUBBLOCK_NAMES[kind]}.{name}": tensor.detach().to(self.model.dtype).clone().contiguous()
                for kind, tensors in weights.items()
                for name, tensor in tensors.items()
            },
            loss_before=before,
            loss_after=after,
            kept=chosen,
            curve=curve,
            tokens=plan.steps * plan.batch_size * self.inputs.shape[1] if curve else 0,
            seconds=time.monotonic() - begin,
        )
