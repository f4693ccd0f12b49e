"""Successive halving of candidates by short finetunings: who is better after some training, not who begins better.

Candidates are first compared as they are assembled, by exact KL. The better half is finetuned for a part of the tokens
and compared on text that neither trained them nor made them candidates for training; the better half of those goes on
from its weights with twice the steps each, until one is left (sequential halving, Karnin, Koren and Somekh 2013). All
candidates of a round read the same sequences.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tangram.activations import Activations
from tangram.blocks.architecture import Architecture
from tangram.child.assemble import assemble_state, build_child, build_config, cast_state, read_tensors, trained_state
from tangram.config import Finetune, halving_sizes
from tangram.errors import TangramError
from tangram.evaluation.text import compare_on_text
from tangram.files import read_progress, write_tensors, write_text
from tangram.finetune import finetune
from tangram.gguf_types import round_pieces
from tangram.library.pieces import Library
from tangram.training.loop import Checkpointing

if TYPE_CHECKING:
    from transformers import PreTrainedModel


VALUES = "values.json"  # file of the scores by `_name`


@dataclass(frozen=True)
class Round:
    """One round of the halving.

    Attributes:
        candidates: number of candidates that are trained.
        steps: the optimizer steps that each of them takes; a candidate's rounds follow each other.
    """

    candidates: int
    steps: range


def schedule(candidates: int, steps: int) -> list[Round]:
    """Return the rounds that leave one candidate, each with an equal share of all optimizer steps.

    Args:
        candidates: candidates, of which the better half, at least 2, are trained.
        steps: steps of all candidates together, at most.

    Raises:
        TangramError: they do not suffice for one step of each candidate.
    """
    sizes = halving_sizes(candidates)
    rounds, first = list[Round](), 0
    for size in sizes:
        last = first + steps // len(sizes) // size
        if last == first:
            raise TangramError(
                f"selection.tokens suffice for {steps} steps, and {len(sizes)} rounds of at most {sizes[0]} candidates "
                f"need {len(sizes) * sizes[0]}; raise it, or lower finetune.batch_size or solutions"
            )
        rounds.append(Round(size, range(first, last)))
        first = last
    return rounds


def halve(order: Sequence[int], rounds: Sequence[Round], train: Callable[[int, int], np.ndarray]) -> list[list[int]]:
    """Return each round's candidates, best first after its training; the last round's first one is the winner.

    Args:
        order: the candidates, best first.
        rounds: `schedule`.
        train: trains a candidate in a round (an index), after all earlier rounds; returns its scores on the same text
            for all, lower is better.
    """
    ranked, results = list(order), []
    for number, each in enumerate(rounds):
        means = {candidate: float(train(number, candidate).mean()) for candidate in ranked[: each.candidates]}
        ranked = sorted(means, key=lambda candidate: means[candidate])  # stable: ties keep the order
        results.append(ranked)
    return results


class FinetunedCandidates:
    """Trains candidates from round to round; a killed job repeats no finished training.

    Args:
        parent: the teacher.
        parent_state: its tensors by their names in the checkpoint.
        architectures: of the candidates.
        library: source of their pieces.
        input_ids: the text to train on, ``(sequences, length)``.
        activations: the parent's hidden states of it.
        compared: the text that compares candidates, and the parent's last hidden states there.
        settings: how to train; its budget counts for nothing.
        seed: seed of the order of sequences.
        rounds: the steps of every round.
        state: folder of trained weights and scores, and how often a training saves itself.
    """

    def __init__(
        self,
        parent: PreTrainedModel,
        parent_state: Mapping[str, torch.Tensor],
        architectures: Sequence[Architecture],
        library: Library,
        input_ids: torch.Tensor,
        activations: Activations,
        compared: tuple[torch.Tensor, torch.Tensor],
        settings: Finetune,
        seed: int,
        rounds: Sequence[Round],
        state: Checkpointing,
    ):
        self._parent, self._parent_state, self._library = parent, parent_state, library
        self._architectures, self._input_ids, self._activations = architectures, input_ids, activations
        self._compared, self._settings, self._seed, self._state = compared, settings, seed, state
        self.rounds = list(rounds)
        self.values: dict[str, list[float]] = read_progress(state.path / VALUES, state.identity).get("values", {})

    def train(self, number: int, candidate: int) -> np.ndarray:
        """Train a candidate in a round; return its KL on every compared sequence, in nats per token."""
        name = _name(number, candidate)
        if name not in self.values:
            child = self._child(number, candidate)
            steps, identity = self.rounds[number].steps, f"{self._state.identity} {name}"
            checkpointing = Checkpointing(self._state.path / "training", self._state.seconds, identity)
            text = (self._activations, self._input_ids, self._settings, self._seed)
            label = f"select_child candidate {candidate}, round {number + 1} of {len(self.rounds)}"
            finetune(child, self._parent, *text, label, checkpointing, steps=steps)
            round_pieces(child)
            input_ids, final = self._compared
            kl = compare_on_text(child, self._parent, final, input_ids, self._settings.micro_batch_size, label)
            self.values[name] = kl["kl"].double().mean(dim=1).tolist()
            self._save(number, candidate, child)
        return np.array(self.values[name])

    def first_prompt(self, length: int) -> int:
        """Return the number of prompts of ``length`` tokens in the text that compares candidates."""
        sequences, tokens = self._compared[0].shape
        return int(sequences) * (int(tokens) // length)

    def rows(self) -> list[dict[str, Any]]:
        """Return rows of `tables.SELECTION`: every trained candidate's KL on each sequence after its last round."""
        tokens = self._compared[0].shape[1]
        last = {candidate: values for (_, candidate), values in sorted(self._by_round().items())}
        return [
            {"candidate": candidate, "prompt": sequence, "metric": "finetuned", "value": value, "tokens": tokens}
            for candidate, values in sorted(last.items())
            for sequence, value in enumerate(values)
        ]

    def summary(self) -> list[dict[str, Any]]:
        """Return every round's training tokens per candidate, and the candidates' mean KL after it, by candidate."""
        tokens = self._settings.batch_size * self._input_ids.shape[1]
        values = self._by_round()
        return [
            {
                "tokens": len(each.steps) * tokens,
                "kl": {str(c): float(np.mean(kl)) for (r, c), kl in sorted(values.items()) if r == number},
            }
            for number, each in enumerate(self.rounds)
        ]

    def _by_round(self) -> dict[tuple[int, int], list[float]]:
        """Return the scores by round and candidate."""
        by_round = {}
        for name, values in self.values.items():
            number, candidate = map(int, name.split("-"))
            by_round[number, candidate] = values
        return by_round

    def _file(self, number: int, candidate: int) -> Path:
        return self._state.path / f"{_name(number, candidate)}.safetensors"

    def _child(self, number: int, candidate: int) -> Any:
        """Return a candidate as it is before a round."""
        architecture = self._architectures[candidate]
        if number == 0:
            state = assemble_state(self._parent_state, architecture, self._library)
            state = cast_state(state, architecture, self._parent.dtype)
        else:
            state = read_tensors(self._file(number - 1, candidate))
        child = build_child(build_config(self._parent.config, architecture), state)
        return child.to(self._parent.device)

    def _save(self, number: int, candidate: int, child: Any) -> None:
        """Write a candidate's weights, then its scores; after a kill in between, the training runs again."""
        if number + 1 < len(self.rounds):
            write_tensors(self._file(number, candidate), trained_state(child), {})
        content = {"identity": self._state.identity, "values": self.values}
        write_text(self._state.path / VALUES, json.dumps(content))
        if number:
            self._file(number - 1, candidate).unlink(missing_ok=True)


def _name(number: int, candidate: int) -> str:
    return f"{number}-{candidate}"
