"""Tree attention over a question and its choices: every choice is a branch that sees the question and itself.

As in SpecInfer (arXiv 2305.09781, section 4.2). Log-likelihoods equal those of separate sequences of question + choice,
up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.utils.rnn import pad_sequence

from tangram.models.families import SLIDING, attention_types
from tangram.models.forward import logits_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PADDING = -1  # branch of padding; the question is branch 0, its choices are 1, 2, ...


@dataclass(frozen=True)
class Tree:
    """A question and its choices as one sequence.

    Attributes:
        tokens: the question's tokens, then each choice's tokens except the last, which predicts nothing.
        positions: position of each token in its sequence of question + choice.
        branches: branch of each token: 0 for the question, from 1 for its choices.
        readouts: for each target, the index into ``tokens`` of the token that predicts it.
        targets: the tokens of all choices.
        lengths: number of targets of each choice.
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
        branches: `Tree.branches`, padded, ``(batch, length)``.
        positions: `Tree.positions`, padded, ``(batch, length)``.
        window: size of the sliding window, the query's token included; None for full attention.
        dtype: dtype of the mask.
    """
    indices = torch.arange(branches.shape[1], device=branches.device)
    same = (branches[:, :, None] == branches[:, None, :]) | (branches[:, None, :] == 0)
    visible = same & (indices[None, :] <= indices[:, None])
    if window is not None:
        visible &= positions[:, :, None] - positions[:, None, :] < window
    return torch.zeros(visible.shape, dtype=dtype, device=branches.device).masked_fill(
        ~visible, torch.finfo(dtype).min
    )[:, None]


def target_logits(model: PreTrainedModel, trees: Sequence[Tree]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits that predict each target of ``trees``, ``(targets, vocabulary)``, and the targets.

    The LM head runs only at the positions that predict targets.
    """

    def padded(name: str, value: int) -> torch.Tensor:
        return pad_sequence([torch.tensor(getattr(t, name)) for t in trees], True, value).to(model.device)

    positions, branches = padded("positions", 0), padded("branches", PADDING)
    windows = {kind: model.config.sliding_window if kind == SLIDING else None for kind in attention_types(model.config)}
    masks = {kind: tree_mask(branches, positions, window, model.dtype) for kind, window in windows.items()}
    hidden = model.model(
        input_ids=padded("tokens", 0),
        position_ids=positions,
        attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
        use_cache=False,
    ).last_hidden_state
    rows = [row for row, tree in enumerate(trees) for _ in tree.readouts]
    logits = logits_of(model, hidden[rows, [index for tree in trees for index in tree.readouts]]).float()
    return logits, torch.tensor([token for tree in trees for token in tree.targets], device=model.device)
