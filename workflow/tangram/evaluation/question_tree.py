"""A question and its choices as one sequence: every choice is a branch that sees the question and itself.

Tree attention, as in SpecInfer (arXiv 2305.09781, section 4.2). Log-likelihoods are those of question + choice as a
sequence of its own, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.utils.rnn import pad_sequence

from tangram.models.families import window_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PADDING = -1  # the branch of padding; the question is branch 0, its choices are 1, 2, …


@dataclass(frozen=True)
class Tree:
    """A question and its choices as one sequence.

    Attributes:
        tokens: the question's tokens, then each choice's but for its last one, which predicts nothing.
        positions: of each token in its own question + choice.
        branches: 0 for the question, from 1 for its choices.
        readouts: index into ``tokens`` of where each token of each choice is predicted.
        targets: those tokens.
        lengths: how many of them each choice has.
    """

    tokens: list[int]
    positions: list[int]
    branches: list[int]
    readouts: list[int]
    targets: list[int]
    lengths: list[int]

    @classmethod
    def of(cls, question: Sequence[int], choices: Sequence[Sequence[int]]) -> Tree:
        """Pack a tokenized question and its tokenized choices."""
        size = len(question)
        tree = cls(list(question), list(range(size)), [0] * size, [], [], [len(choice) for choice in choices])
        for branch, choice in enumerate(choices, start=1):
            start, inner = len(tree.tokens), len(choice) - 1
            tree.readouts.extend([size - 1, *range(start, start + inner)])
            tree.targets.extend(choice)
            tree.tokens.extend(choice[:-1])
            tree.positions.extend(range(size, size + inner))
            tree.branches.extend([branch] * inner)
        return tree


def tree_mask(branches: torch.Tensor, positions: torch.Tensor, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """Return the additive attention mask ``(batch, 1, query, key)`` of padded trees.

    Args:
        branches: ``(batch, length)``.
        positions: of each token in its own question + choice, ``(batch, length)``.
        window: tokens that attention sees, the own one included; all if None.
        dtype: of the mask.
    """
    places = torch.arange(branches.shape[1], device=branches.device)
    same = (branches[:, :, None] == branches[:, None, :]) | (branches[:, None, :] == 0)
    visible = same & (places[None, :] <= places[:, None])
    if window is not None:
        visible &= positions[:, :, None] - positions[:, None, :] < window
    return torch.zeros(visible.shape, dtype=dtype, device=branches.device).masked_fill(
        ~visible, torch.finfo(dtype).min
    )[:, None]


def target_logits(model: PreTrainedModel, trees: Sequence[Tree]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return from which logits each target of ``trees`` is predicted, ``(targets, vocabulary)``, and the targets.

    The LM head is run only where a choice's tokens are predicted.
    """

    def padded(name: str, value: int) -> torch.Tensor:
        return pad_sequence([torch.tensor(getattr(t, name)) for t in trees], True, value).to(model.device)

    positions = padded("positions", 0)
    hidden = model.model(
        input_ids=padded("tokens", 0),
        position_ids=positions,
        attention_mask=tree_mask(padded("branches", PADDING), positions, window_of(model.config), model.dtype),
        use_cache=False,
    ).last_hidden_state
    rows = [row for row, tree in enumerate(trees) for _ in tree.readouts]
    logits = model.lm_head(hidden[rows, [place for tree in trees for place in tree.readouts]]).float()
    return logits, torch.tensor([token for tree in trees for token in tree.targets], device=model.device)
