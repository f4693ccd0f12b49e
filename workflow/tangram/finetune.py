"""End-to-end distillation (GKD) of an assembled child: hidden-state cosine over layers + KL (Puzzle, section 4.3).

The teacher's hidden states are read from the activation cache or streamed. The final norm and the LM head turn the last
of them into the teacher's logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tangram.activations import Activations, open_activations
from tangram.config import Finetune
from tangram.corpus.tokens import read_tokens
from tangram.evaluation.text import compare_on_text
from tangram.library.requantize import round_again, to_float
from tangram.models.families import decoder_layers
from tangram.models.forward import embed, layer_contexts, logits_of
from tangram.tables import VALIDATION_KL
from tangram.training.loop import Checkpointing, TrainingPlan, Validation, steps_of, train
from tangram.training.losses import cosine_distance, kl_divergence, span_loss
from tangram.training.parallel import World
from tangram.training.precision import as_stored, autocast

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VALIDATED = 8  # sequences of the score split in each point of the learning curve


class Distillation(nn.Module):
    """The training loss: the weighted sum of cosine, KL and LM losses; a module, as DDP and FSDP need one.

    Args:
        child: the model to train.
        parent: the teacher; only its final norm and LM head run here.
        activations: the teacher's hidden states of ``input_ids``.
        input_ids: ``(sequences, length)``.
        settings: the weights of the losses.
        spans: the losses of `span_terms`, or None.
        recompute: checkpoint activations: store only each layer's input, and run the layer again in the backward pass.
    """

    def __init__(
        self,
        child: PreTrainedModel,
        parent: PreTrainedModel,
        activations: Activations,
        input_ids: torch.Tensor,
        settings: Finetune,
        spans: nn.ModuleDict | None = None,
        recompute: bool = False,
    ):
        super().__init__()
        self.child, self.spans = child, spans
        self._teacher, self._activations = [parent], activations  # a list, so that the teacher is not a submodule
        self._input_ids, self._settings, self._recompute = input_ids, settings, recompute

    def forward(self, sequences: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the total loss and every term, each a mean over the tokens of ``sequences`` (indices)."""
        with autocast(self.child.device, self._settings.compute):
            return self._loss(sequences)

    def _loss(self, sequences: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        child, parent, settings = self.child, self._teacher[0], self._settings
        layers = decoder_layers(child)
        tokens = self._input_ids[sequences].to(child.device)
        terms = {int(index): term for index, term in (self.spans or {}).items()}
        outputs = {len(layers), *(index + 1 for index in terms)}
        compared = range(1, len(layers) + 1) if settings.cosine_weight else sorted(outputs)
        targets = dict(zip(compared, self._activations.of_sequences(sequences, compared), strict=True))
        hidden = embed(child, tokens)
        contexts = layer_contexts(child, hidden)
        cosines, contrasts = [], []
        for index, layer in enumerate(layers):
            if self._recompute:
                hidden = checkpoint(layer, hidden, use_reentrant=False, **contexts[index])
            else:
                hidden = layer(hidden, **contexts[index])
            if settings.cosine_weight:
                cosines.append(cosine_distance(hidden, targets[index + 1]))
            if index in terms:
                contrasts.append(terms[index](hidden, targets[index + 1], sequences))
        logits = logits_of(child, child.model.norm(hidden)).flatten(0, 1)
        total = torch.zeros((), device=child.device)
        metrics: dict[str, float] = {}
        if settings.cosine_weight:
            cosine = torch.stack(cosines).mean()
            total, metrics["cosine"] = total + settings.cosine_weight * cosine, cosine.item()
        if contrasts:
            contrast = torch.stack(contrasts).mean()
            total, metrics["span_contrast"] = total + settings.span_contrast.weight * contrast, contrast.item()
        if settings.kl_weight:
            with torch.no_grad():
                teacher = logits_of(parent, parent.model.norm(targets[len(layers)])).flatten(0, 1)
            kl = kl_divergence(logits, teacher)
            total, metrics["kl"] = total + settings.kl_weight * kl, kl.item()
        if settings.lm_weight:
            predictions = logits.unflatten(0, tokens.shape)[:, :-1].flatten(0, 1)
            lm = functional.cross_entropy(predictions.float(), tokens[:, 1:].flatten())
            total, metrics["lm_loss"] = total + settings.lm_weight * lm, lm.item()
        return total, metrics


def span_terms(
    layers: int, activations: Activations, input_ids: torch.Tensor, settings: Finetune, seed: int
) -> nn.ModuleDict | None:
    """Return the span-contrast losses by the index of their layer, or None if their weight is 0."""
    if not settings.span_contrast.weight:
        return None
    chosen = sorted({max(1, round(depth * layers)) - 1 for depth in settings.span_contrast.depths})
    contrast = settings.span_contrast
    return nn.ModuleDict(
        {str(index): span_loss(contrast, activations.hidden(index + 1), input_ids, seed) for index in chosen}
    )


class TextKL:
    """KL(parent ‖ child) on a split of the corpus, in nats per token, of the child's present weights.

    Args:
        child: the model.
        parent: the parent; only its final norm and LM head run if there are cached activations.
        split: file of the split.
        activations: its cached activations; recomputed by default.
        batch: sequences per forward pass.
    """

    def __init__(
        self, child: PreTrainedModel, parent: PreTrainedModel, split: str, activations: str | None, batch: int
    ):
        self.input_ids = read_tokens(split)
        final = open_activations(activations, parent, self.input_ids, batch).hidden(len(decoder_layers(parent)))
        self._models, self._final, self._batch = (child, parent), final, batch

    def by_sequence(self, count: int | None = None) -> torch.Tensor:
        """Return the mean over the tokens of each of the first ``count`` sequences, or of all."""
        text = self._final[:count], self.input_ids[:count]
        return compare_on_text(*self._models, *text, self._batch, "KL on the score split")["kl"].mean(dim=1)


def budget_of(settings: Finetune, examples: int, length: int, seed: int, steps: range | None = None) -> TrainingPlan:
    """Return the plan of a finetuning on ``examples`` sequences of ``length`` tokens.

    With ``steps``, it takes only these, of a training in several parts that reads its sequences in one order. Each part
    has a learning rate schedule of its own.
    """
    budget, sequences = settings.budget, examples
    if budget.epochs is not None:
        sequences = budget.epochs * examples
    elif budget.tokens is not None:
        sequences = -(-budget.tokens // length)
    return TrainingPlan(
        examples=examples,
        steps=steps_of(sequences, examples, settings.batch_size) if steps is None else len(steps),
        batch_size=settings.batch_size,
        micro_batch_size=settings.micro_batch_size,
        learning_rate=settings.learning_rate,
        warmup_fraction=settings.warmup_fraction,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
        seed=seed,
        schedule=settings.schedule,
        seconds=None if budget.minutes is None or steps is not None else 60 * budget.minutes,
        first=0 if steps is None else steps.start,
    )


def part_of(settings: Finetune, examples: int, length: int, number: int, parts: int) -> range:
    """Return the steps of one of several equal parts of a finetuning, numbered from 1; together they are its steps."""
    steps = budget_of(settings, examples, length, seed=0).steps
    return range(steps * (number - 1) // parts, steps * number // parts)


def finetune(
    child: PreTrainedModel,
    parent: PreTrainedModel,
    activations: Activations,
    input_ids: torch.Tensor,
    settings: Finetune,
    seed: int,
    label: str | None = None,
    checkpointing: Checkpointing | None = None,
    world: World = World(),  # noqa: B008 (frozen)
    weights: str | None = None,
    validation: TextKL | None = None,
    steps: range | None = None,
) -> list[dict[str, Any]]:
    """Train the weights of ``child`` in place. Matrices of 8 bits are trained in its dtype, then rounded again.

    See `Distillation` and `training.loop.train` for arguments and errors. The returned rows have a column more, tokens:
    those that were trained on after the step, and of ``validation``, before it. ``validation`` is also measured before
    and after the training; all these values are of matrices before their rounding. For ``steps`` see `budget_of`.

    If the world is sharded, ``child`` is a `models.by_layer.meta_model`, ``weights`` is its checkpoint folder, and
    `World.gather` rounds the trained weights to the child's dtype.
    """
    plan = budget_of(settings, len(input_ids), input_ids.shape[1], seed, steps)
    scaled = to_float(child)
    child.requires_grad_(True)
    parent.requires_grad_(False)
    spans = span_terms(len(decoder_layers(child)), activations, input_ids, settings, seed)
    # A sharded model needs the memory; also, FSDP frees the gathered and rounded weights before the backward pass.
    loss = Distillation(child, parent, activations, input_ids, settings, spans, recompute=world.sharded)
    all_used = bool(settings.kl_weight or settings.lm_weight)  # cosine alone uses no final norm and no LM head
    module = child if spans is None else nn.ModuleList([child, spans])
    parts = [*decoder_layers(child), *(spans or {}).values()]
    with world.distribute(loss, parts, all_used) as shared:
        if weights is not None:
            world.load(child, weights)

        def measure() -> float:
            assert validation is not None
            with as_stored(shared):
                return validation.by_sequence(VALIDATED).mean().item()

        points = Validation(measure, VALIDATION_KL, len(validation.input_ids[:VALIDATED])) if validation else None
        before = measure() if points else None
        rows = train(module, shared, plan, label, checkpointing, world, points)
        if points:
            ends = {0: before, rows[-1]["step"] + 1: measure()}
            rows[:0] = [{"step": step, "metric": VALIDATION_KL, "value": value} for step, value in ends.items()]
    round_again(child, scaled, input_ids)
    for row in rows:
        row["tokens"] = plan.sequences(row["step"] + (row["metric"] != VALIDATION_KL)) * input_ids.shape[1]
    return rows
