"""A model for lm-eval that runs each question once for all its choices.

lm-eval's `HFLM` runs one sequence of question + choice for every choice, and the LM head over all positions. Here the
choices are branches of one sequence (`question_tree`). Log-likelihoods are the same up to rounding, questions longer
than the context are cut from the left as in `HFLM`, and the work is about a third. Rolling log-likelihoods and
generation are `HFLM`'s own.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm

from tangram.corpus.framing import opened, opening
from tangram.errors import TangramError
from tangram.evaluation.question_tree import Tree, target_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH_TOKENS = 1024  # large enough for a CPU's full speed, small enough for any memory


def _batches(trees: list[Tree]) -> Iterator[list[int]]:
    """Yield batches of indices of trees, longest first, of at most `BATCH_TOKENS` tokens with padding."""
    order = sorted(range(len(trees)), key=lambda i: -len(trees[i].tokens))
    while order:
        rows = max(1, BATCH_TOKENS // len(trees[order[0]].tokens))
        yield order[:rows]
        order = order[rows:]


class SharedPrefixLM(HFLM):
    """lm-eval's Hugging Face model with log-likelihoods computed per question.

    Args:
        model: parent or child, loaded.
        tokenizer: the model's tokenizer.
        label: label of the progress bar and of errors.
        max_length: tokens that the model reads at most; its context by default.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, label: str, max_length: int | None = None
    ):
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=max_length)
        self._label = label
        self._opening = opening(tokenizer)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **kwargs: Any
    ) -> list[int]:
        """Return the ids of an unfinished text, with the tokenizer's opening tokens but without its closing ones.

        lm-eval's method keeps the closing tokens: with a closing EOS, it scores the choices after the end of the text
        and without their first token.
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
        """Return log-likelihood and greediness of each (text, question, choice); see lm-eval's `TemplateLM`.

        Raises:
            TangramError: a choice is longer than the model's context, or outputs are not finite.
        """
        if requests and requests[0][0] is None:  # windows of a rolling log-likelihood, which share no prefix
            return self._rolling(requests)
        questions: dict[tuple[int, ...], list[int]] = {}
        cut = 0
        for index, (_, question, choice) in enumerate(requests):
            # The choice's last token is no input, as it predicts nothing. At least one token must precede the choice.
            room = self.max_length + 1 - len(choice)
            if room < 1:
                raise TangramError(
                    f"{self._label}: a choice has {len(choice)} tokens, the model reads {self.max_length}; "
                    "leave its task out of evaluation.tasks"
                )
            cut += len(question) > room
            questions.setdefault(tuple(question[-room:]), []).append(index)
        if cut:
            tqdm.write(
                f"{self._label}: {cut} of {len(requests)} questions with a choice exceed the model's {self.max_length} "
                "tokens and lose their beginning, as in lm-eval",
                file=sys.stderr,
            )
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

    def _rolling(self, windows: list[tuple[None, list[int], list[int]]]) -> list[tuple[float, bool]]:
        results: list[tuple[float, bool]] = super()._loglikelihood_tokens(windows, disable_tqdm=True, override_bs=1)
        if not all(math.isfinite(score) for score, _ in results):
            raise self._not_finite()
        return results

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the continuation of every text; see lm-eval's `HFLM`, which cuts long texts from the left.

        Raises:
            TangramError: a task generates as many tokens as the model's context holds.
        """
        for request in requests:
            limit = normalize_gen_kwargs(request.args[1], self.max_gen_toks)["max_gen_toks"]
            if limit >= self.max_length:
                raise TangramError(
                    f"{self._label}: '{request.task_name}' writes up to {limit} tokens, the model reads "
                    f"{self.max_length}; leave it out of evaluation.tasks"
                )
        texts: list[str] = super().generate_until(requests, disable_tqdm)
        return texts

    def _not_finite(self) -> TangramError:
        return TangramError(f"{self._label}: the model's outputs are not finite; its weights are broken, rebuild it")

    def _score(self, trees: list[Tree]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-probability of every target of ``trees``, and whether the target is the most likely token."""
        logits, targets = target_logits(self.model, trees)
        if not logits.isfinite().all():
            raise self._not_finite()
        scores = logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
        return scores, logits.argmax(-1) == targets
