"""Replace-1-block scores by downstream accuracy (Puzzle, Half-MMLU): the parent with one subblock replaced answers.

All choices of a question are branches of one sequence (`evaluation.question_tree`). Pieces come in the order of their
layers; the parent's hidden states advance with them, so that only the replaced layer and those after it run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from tangram.blocks.base import HEAD, Block
from tangram.corpus.framing import opened, opening
from tangram.errors import TangramError
from tangram.evaluation.question_tree import PADDING, Tree, tree_mask
from tangram.library.pieces import State
from tangram.metrics import standard_error_by_sequence
from tangram.models.by_layer import materialize
from tangram.models.families import SLIDING, attention_types, decoder_layers
from tangram.models.forward import embed, logits_of
from tangram.models.replace import replace_head, replace_subblocks
from tangram.scores.questions import Asked
from tangram.scores.replace_one import Row

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH_TOKENS = 1024  # large enough for a CPU's full speed, small enough for any memory


def tree_of(question: Asked, tokenizer: PreTrainedTokenizerBase, first: list[int], longest: int | None) -> Tree:
    """Return a question with its choices as lm-eval encodes them; one beyond the context loses its beginning.

    Args:
        question: the question.
        tokenizer: the parent's tokenizer.
        first: its `opening`.
        longest: the parent's number of positions; None if its config lacks it.
    """
    context = question.prompt.rstrip()  # spaces at the end belong to the choice
    ids = opened(context, tokenizer, first)
    spaces = question.prompt[len(context) :]
    choices = [opened(f"{context}{spaces}{choice}", tokenizer, first)[len(ids) :] for choice in question.choices]
    room = len(ids) if longest is None else longest + 1 - max(map(len, choices))
    if room < 1 or not all(choices):
        raise TangramError(f"config.scores.tasks.names: a choice of '{question.task}' does not fit; leave the task out")
    return Tree.of(ids[-room:], choices)


class _Batch:
    """Questions that run together: their masks, and the parent's hidden states before its current layer."""

    def __init__(self, model: PreTrainedModel, trees: Sequence[Tree]):
        def padded(name: str, value: int) -> torch.Tensor:
            return pad_sequence([torch.tensor(getattr(t, name)) for t in trees], True, value).to(model.device)

        config: Any = model.config
        positions, branches = padded("positions", 0), padded("branches", PADDING)
        self.hidden = embed(model, padded("tokens", 0))
        types, contexts = attention_types(config), dict[str, dict[str, Any]]()
        for kind in set(types):
            window = config.sliding_window if kind == SLIDING else None
            bases = (kind,) if kind in (config.rope_parameters or {}) else ()
            contexts[kind] = {
                "attention_mask": tree_mask(branches, positions, window, self.hidden.dtype),
                "position_ids": positions,
                "position_embeddings": model.model.rotary_emb(self.hidden, positions, *bases),
            }
        self.contexts = [contexts[kind] for kind in types]
        self.rows = [row for row, tree in enumerate(trees) for _ in tree.readouts]
        self.readouts = [index for tree in trees for index in tree.readouts]
        targets = [token for tree in trees for token in tree.targets]
        self.targets = torch.tensor(targets, device=model.device)
        self.lengths = [tree.lengths for tree in trees]


class AnswerScores:
    """Scores pieces, layer by layer from the first on, by the parent's answers with one subblock replaced.

    Args:
        model: the parent.
        tokenizer: its tokenizer.
        questions: the questions.
        longest: see `tree_of`.

    Attributes:
        answers: the parent's `accuracy` and `margin` on every question, the longest first, ``(questions,)``.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        questions: Sequence[Asked],
        longest: int | None = None,
    ):
        self._model, self._layer = model, 0
        first = opening(tokenizer)
        trees = [tree_of(question, tokenizer, first, longest) for question in questions]
        order = sorted(range(len(trees)), key=lambda i: -len(trees[i].tokens))
        self.tokens = sum(len(tree.tokens) for tree in trees)
        self._labels = torch.tensor([questions[i].label for i in order])
        self._batches = []
        with torch.inference_mode():
            while order:
                rows = max(1, BATCH_TOKENS // len(trees[order[0]].tokens))
                self._batches.append(_Batch(model, [trees[i] for i in order[:rows]]))
                order = order[rows:]
            self.answers = self._answers(self._run(0, []), None)

    def _run(self, first: int, replaced: Sequence[nn.Module]) -> list[torch.Tensor]:
        """Return the last hidden states of every batch, from the parent's states before layer ``first``."""
        layers = [*replaced, *list(decoder_layers(self._model))[first + len(replaced) :]]
        states = [batch.hidden for batch in self._batches]
        for index, layer in enumerate(layers, start=first):  # one layer's weights are in memory at a time
            states = self._through(layer, index, states)
        return states

    def _through(self, layer: nn.Module, index: int, states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [layer(x, **batch.contexts[index]) for x, batch in zip(states, self._batches, strict=True)]

    def _answers(self, states: Sequence[torch.Tensor], head: nn.Module | None) -> dict[str, torch.Tensor]:
        """Return `accuracy` and `margin` of every question, ``(questions,)``.

        The margin is the log-odds of the right choice among all, from the log-likelihoods of the choices.
        """
        scores: list[torch.Tensor] = []
        for hidden, batch in zip(states, self._batches, strict=True):
            normed = self._model.model.norm(hidden[batch.rows, batch.readouts])
            log_probabilities = logits_of(self._model, normed, head).float().log_softmax(-1)
            chosen = log_probabilities.gather(-1, batch.targets[:, None]).squeeze(-1).double().cpu()
            sizes = [length for lengths in batch.lengths for length in lengths]
            choices = torch.stack([part.sum() for part in chosen.split(sizes)])
            scores += choices.split([len(lengths) for lengths in batch.lengths])
        right, margins = [], []
        for choices, label in zip(scores, self._labels.tolist(), strict=True):
            others = torch.cat([choices[:label], choices[label + 1 :]])
            right.append(choices.argmax() == label)
            margins.append(choices[label] - others.logsumexp(0))
        return {"accuracy": torch.stack(right).double(), "margin": torch.stack(margins)}

    @torch.inference_mode()
    def score_piece(self, layer: int, block: Block, tensors: State) -> list[Row]:
        """Return the rows of `tables.SCORES` of one piece; layers must come in ascending order.

        Args:
            layer: the piece's layer; 0 for the head.
            block: the block of its variant.
            tensors: its weights, by their names inside the subblock or the head.

        Raises:
            TangramError: the model's outputs are not finite.
        """
        if block.kind == HEAD:
            head = replace_head(self._model.lm_head, str(block.variant.precision), tensors)
            answers = self._answers(self._run(self._layer, []), head)
        else:
            layers = decoder_layers(self._model)
            while self._layer < layer:
                states = self._through(layers[self._layer], self._layer, [batch.hidden for batch in self._batches])
                for batch, hidden in zip(self._batches, states, strict=True):
                    batch.hidden = hidden
                self._layer += 1
            parent, pieces = materialize(layers[layer]), {block.kind: tensors}
            replaced = replace_subblocks(parent, self._model.config, layer, block.entries(), pieces)
            answers = self._answers(self._run(layer, [replaced]), None)
        if not answers["margin"].isfinite().all():
            raise TangramError(
                f"score_tasks: {block.kind} '{block.variant}' of layer {layer} makes the model's outputs not finite; "
                "its weights are broken, rebuild it"
            )
        rows: list[Row] = []
        for metric, values in answers.items():
            mean, error = standard_error_by_sequence((self.answers[metric] - values)[:, None])
            row: Row = {"layer": layer, "kind": block.kind, "variant": str(block.variant), "metric": metric}
            rows.append({**row, "value": mean, "standard_error": error, "tokens": self.tokens})
        return rows
