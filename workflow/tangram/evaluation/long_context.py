"""Long context: needle in a haystack and variable tracking at several lengths, after RULER (arXiv 2404.06654).

Every question hides short statements among sentences of held-out text and asks for one of them at the end:

- `needle`: statements give numbers to names; the question asks for the number of one name, as in RULER's retrieval
  with several keys.
- `variable-tracking`: chains of statements such as "The number of the river is the number of the anchor."; the question
  asks to follow one of them back to its number. A wrong choice leaves it at some hop for another chain.

All names and numbers of the choices stand in the prompt, so that recency and frequency do not tell the right one. The
answer is the likeliest choice: a small model that knows it may write something else first, and exact match would call
it wrong; the chance is known, 1 / choices. A small model follows no chain without writing its hops down, so a choice
spells them. All models get the same questions.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tangram.config import LongContext
from tangram.corpus.framing import opened, opening
from tangram.errors import TangramError

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NEEDLE, TRACKING = "needle", "variable-tracking"
NAMES = (
    "anchor", "basket", "bottle", "bridge", "button", "candle", "carpet", "castle", "desert", "dragon", "engine",
    "farmer", "feather", "forest", "garden", "hammer", "harbor", "helmet", "island", "jacket", "kitchen", "ladder",
    "lemon", "lion", "magnet", "mirror", "mountain", "needle", "orange", "palace", "pencil", "pilot", "planet",
    "potato", "rabbit", "ribbon", "river", "rocket", "shadow", "spider", "temple", "tiger", "tunnel", "umbrella",
    "valley", "violin", "wagon", "winter",
)  # fmt: skip
# RULER's filler, for a held-out split that is shorter than a question.
NOISE = ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.")
LONGEST_SENTENCE = 240  # characters; a longer piece of text is cut into several


@dataclass(frozen=True)
class LongQuestion:
    """A question about a long text.

    Attributes:
        prompt: the text with the question; an answer follows.
        choices: the answers, each with the space before it.
        label: index of the right one.
        depth: place of the first statement that the answer needs, as a share of the sentences.
    """

    prompt: str
    choices: tuple[str, ...]
    label: int
    depth: float


def read_sentences(path: str | Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the sentences of a split's documents, in their order; none is longer than `LONGEST_SENTENCE`.

    Raises:
        TangramError: the table is missing or damaged.
    """
    from tangram.tables import CORPUS, read_arrow

    sentences = []
    for row in read_arrow(path, CORPUS).to_pylist():
        starts = [*row["document_starts"], len(row["input_ids"])]
        for start, end in itertools.pairwise(starts):
            text = str(tokenizer.decode(row["input_ids"][start:end], skip_special_tokens=True))
            for sentence in re.split(r"(?<=[.!?])\s+", " ".join(text.split())):
                sentences += [
                    sentence[i : i + LONGEST_SENTENCE].strip() for i in range(0, len(sentence), LONGEST_SENTENCE)
                ]
    return [sentence for sentence in sentences if sentence]


class _Statements(NamedTuple):
    """Chains of statements to hide, a question, and its choices."""

    chains: list[list[str]]
    question: str
    choices: tuple[str, ...]


def _numbers(count: int, draw: random.Random, absent: str) -> list[str]:
    """Return distinct numbers of five digits that do not occur in a text."""
    numbers: list[str] = []
    while len(numbers) < count:
        number = str(draw.randrange(10_000, 100_000))
        if number not in absent and number not in numbers:
            numbers.append(number)
    return numbers


def _chains(numbers: Sequence[str], label: int, draw: random.Random, hops: int) -> _Statements:
    """Return a chain of statements for every number, and the question about the end of one.

    Without hops a chain is a needle: one name has the number.
    """
    names = draw.sample(NAMES, len(numbers) * (hops + 1))
    chains, traces = [], []
    for i, number in enumerate(numbers):
        own = names[i :: len(numbers)]  # the first has the number, each other one that of the one before
        facts = [number, *(f"the number of the {name}" for name in own[:-1])]
        chains.append([f"The number of the {name} is {fact}." for name, fact in zip(own, facts, strict=True)])
        traces.append([*own[-2::-1], number])
    choices = []
    for chain, trace in enumerate(traces):  # a wrong one leaves the right chain at some hop for another
        hop = 0 if chain == label else draw.randrange(len(trace))
        *passed, number = [*traces[label][:hop], *trace[hop:]]
        choices.append(
            f" {''.join(f'the number of the {name}. The number of the {name} is ' for name in passed)}{number}"
        )
    asked = names[hops * len(numbers) + label]
    return _Statements(chains, f"The number of the {asked} is", tuple(choices))


def _haystack(words: Sequence[tuple[int, str]], chains: Sequence[Sequence[str]], shares: Sequence[list[float]]) -> str:
    """Return the text of numbered sentences with every statement between two of them.

    Args:
        words: the filler's words, each with the number of its sentence.
        chains: the statements.
        shares: their places as shares of the filler, ascending within a chain.
    """
    sentences: list[list[str]] = []
    for i, (number, word) in enumerate(words):
        if i == 0 or number != words[i - 1][0]:
            sentences.append([])
        sentences[-1].append(word)
    before: dict[int, list[str]] = {}
    for hop in range(len(chains[0])):
        for chain, places in zip(chains, shares, strict=True):
            before.setdefault(round(places[hop] * len(sentences)), []).append(chain[hop])
    parts: list[str] = []
    for i in range(len(sentences) + 1):
        parts += [*before.get(i, ()), *(" ".join(sentence) for sentence in sentences[i : i + 1])]
    return " ".join(parts)


class Generator:
    """Draws questions of a given length; the same seed gives the same questions.

    Args:
        settings: config section `evaluation.long_context`.
        tokenizer: the parent's tokenizer, which every child has, too.
        sentences: those of the held-out split.
        seed: seed of all draws.
    """

    def __init__(self, settings: LongContext, tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str], seed: int):
        self._settings, self._tokenizer, self._seed = settings, tokenizer, seed
        self._opening = opening(tokenizer)
        enough = self._tokens(" ".join(sentences)) >= max(settings.lengths)
        self._sentences = list(sentences) if enough else list(NOISE)
        self._text = " ".join(self._sentences)

    def _tokens(self, text: str) -> int:
        return len(opened(text, self._tokenizer, self._opening))

    def questions(self, task: str, length: int) -> list[LongQuestion]:
        """Return the questions of one task, each of at most ``length`` tokens with its longest answer.

        Raises:
            TangramError: the statements alone are longer.
        """
        draw = random.Random(f"{self._seed} {task} {length}")
        return [self._question(task, length, draw) for _ in range(self._settings.questions)]

    def _question(self, task: str, length: int, draw: random.Random) -> LongQuestion:
        numbers = _numbers(self._settings.choices, draw, self._text)
        label, start = draw.randrange(len(numbers)), draw.randrange(len(self._sentences))
        hidden = _chains(numbers, label, draw, self._settings.hops if task == TRACKING else 0)
        shares = [sorted(draw.random() for _ in chain) for chain in hidden.chains]
        words: list[tuple[int, str]] = []
        number = start
        while len(words) < length:  # a word has at least one token
            words += [(number, word) for word in self._sentences[number % len(self._sentences)].split()]
            number += 1

        def prompt(count: int) -> str:
            return f"{_haystack(words[:count], hidden.chains, shares)}\n\n{hidden.question}"

        def fits(count: int) -> bool:
            text = prompt(count)
            return max(self._tokens(f"{text}{choice}") for choice in hidden.choices) <= length

        if not fits(0):
            raise TangramError(
                f"config.evaluation.long_context.lengths: the statements of '{task}' alone exceed {length} tokens; "
                "raise it, or lower choices or hops"
            )
        low, high = 0, len(words)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return LongQuestion(prompt(low), hidden.choices, label, shares[label][0])


def margins(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[LongQuestion], label: str
) -> list[float]:
    """Return by how many nats the right answer of each question is likelier than the likeliest wrong one.

    Args:
        model: parent or child.
        tokenizer: its tokenizer.
        questions: the questions.
        label: label of the progress bar and of errors.

    Raises:
        TangramError: the model's outputs are not finite.
    """
    from lm_eval.api.instance import Instance

    from tangram.evaluation.shared_prefix import SharedPrefixLM

    requests = [
        Instance("loglikelihood", {}, (question.prompt, choice), i)
        for i, question in enumerate(questions)
        for choice in question.choices
    ]
    answers = iter(SharedPrefixLM(model, tokenizer, label).loglikelihood(requests))
    found = []
    for question in questions:
        scores = [next(answers)[0] for _ in question.choices]
        right = scores.pop(question.label)
        found.append(right - max(scores))
    return found


def question_rows(
    model: str, task: str, length: int, questions: Sequence[LongQuestion], values: Sequence[float]
) -> list[dict[str, Any]]:
    """Return the rows of `tables.LONG_CONTEXT` of one model's `margins` on one task's questions of one length."""
    rows = []
    for sample, (question, margin) in enumerate(zip(questions, values, strict=True)):
        row = {"model": model, "task": task, "length": length, "sample": sample, "depth": question.depth}
        measured = {"acc": float(margin > 0), "margin": margin, "chance": 1 / len(question.choices)}
        rows += [{**row, "metric": metric, "value": value} for metric, value in measured.items()]
    return rows
