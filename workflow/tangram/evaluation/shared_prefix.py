"""A model for lm-eval that reads each question once, however many choices it has.

lm-eval's own `HFLM` runs question + choice as a sequence of its own for every choice, and the LM head over all of it.
Here a question's choices follow it as branches of one sequence: every branch continues the question's positions and
sees the question and itself (tree attention, as in SpecInfer, arXiv 2305.09781, section 4.2). The LM head is run only
where a choice's tokens are predicted. Log-likelihoods are the same up to rounding; the work is about a third.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.models.huggingface import HFLM
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from tangram.errors import TangramError
from tangram.framing import opened, opening

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH_TOKENS = 1024  # enough for a CPU's full speed, little enough for any memory
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
        """Pack a tokenised question and its tokenised choices."""
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


def tree_mask(branches: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the additive attention mask ``(batch, 1, query, key)`` of padded ``branches`` ``(batch, length)``."""
    places = torch.arange(branches.shape[1], device=branches.device)
    same = (branches[:, :, None] == branches[:, None, :]) | (branches[:, None, :] == 0)
    visible = same & (places[None, :] <= places[:, None])
    return torch.zeros(visible.shape, dtype=dtype, device=branches.device).masked_fill(
        ~visible, torch.finfo(dtype).min
    )[:, None]


def _batches(trees: list[Tree]) -> Iterator[list[int]]:
    """Yield indices of trees, longest first, as many at a time as `BATCH_TOKENS` allow with padding."""
    order = sorted(range(len(trees)), key=lambda i: -len(trees[i].tokens))
    while order:
        rows = max(1, BATCH_TOKENS // len(trees[order[0]].tokens))
        yield order[:rows]
        order = order[rows:]


class SharedPrefixLM(HFLM):
    """lm-eval's Hugging Face model, with log-likelihoods computed question by question.

    Args:
        model: parent or child, loaded.
        tokenizer: its tokenizer.
        label: what to show beside the progress bar, and to name in errors.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, label: str):
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=1)
        self._label = label
        self._opening = opening(tokenizer)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **kwargs: Any
    ) -> list[int]:
        """Return the ids of a text that goes on, opened but not closed.

        lm-eval's own closes a question as the tokenizer closes a text: where that is by EOS, the choices were scored
        after the text's end, and without their first token.
        """
        if add_special_tokens is None:
            ids = opened(string, self.tokenizer, self._opening)
        else:
            ids = self.tokenizer.encode(string, add_special_tokens=add_special_tokens)
        return ids[-left_truncate_len:] if left_truncate_len else ids

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Return log-likelihood and greediness of each (text, question, choice); see lm-eval's `TemplateLM`."""
        questions: dict[tuple[int, ...], list[int]] = {}
        for index, (_, question, _) in enumerate(requests):
            questions.setdefault(tuple(question), []).append(index)
        members = list(questions.values())
        trees = [Tree.of(question, [requests[i][2] for i in indices]) for question, indices in questions.items()]
        answers: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(requests), desc=self._label, mininterval=5, disable=disable_tqdm) as bar:
            for batch in _batches(trees):
                scores, greedy = self._score([trees[i] for i in batch])
                lengths = [length for i in batch for length in trees[i].lengths]
                indices = [index for i in batch for index in members[i]]
                for index, score, best in zip(indices, scores.split(lengths), greedy.split(lengths), strict=True):
                    answers[index] = (score.sum().item(), bool(best.all()))
                bar.update(len(indices))
        return [answers[index] for index in range(len(requests))]

    def _score(self, trees: list[Tree]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-probability, and whether it is the most likely one, of every target of ``trees`` in turn."""

        def padded(name: str, value: int) -> torch.Tensor:
            return pad_sequence([torch.tensor(getattr(t, name)) for t in trees], True, value).to(self.device)

        hidden = self.model.model(
            input_ids=padded("tokens", 0),
            position_ids=padded("positions", 0),
            attention_mask=tree_mask(padded("branches", PADDING), self.model.dtype),
            use_cache=False,
        ).last_hidden_state
        rows = [row for row, tree in enumerate(trees) for _ in tree.readouts]
        logits = self.model.lm_head(hidden[rows, [place for tree in trees for place in tree.readouts]]).float()
        if not logits.isfinite().all():
            raise TangramError(f"{self._label}: the model's outputs are not finite; its weights are broken, rebuild it")
        targets = torch.tensor([token for tree in trees for token in tree.targets], device=self.device)
        scores = logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
        return scores, logits.argmax(-1) == targets
