"""The rounds: solve for a part of the way, assemble, finetune for a part of the tokens, score in the child, go on.

Every round loses an equal part of the quality, by the sum of scores (`waypoints`). Scores of the first round are those
of the parent; in later rounds a piece's score is measured in the child of the round before. The last round is only
solved here: its child is assembled and finetuned as any other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tangram.activations import Activations
from tangram.blocks.architecture import from_json
from tangram.child.assemble import (
    assemble_state,
    build_child,
    build_config,
    cast_state,
    read_tensors,
    trained_state,
)
from tangram.child.reassemble import Child, reassemble_state
from tangram.config import Finetune, Scores
from tangram.files import read_progress, write_tensors, write_text
from tangram.finetune import TextKL, finetune, part_of
from tangram.gguf_types import round_pieces
from tangram.library.pieces import Library
from tangram.models.families import Shape
from tangram.rounds.options import in_child, replaceable
from tangram.rounds.scoring import ReplaceInChild, increases
from tangram.rounds.waypoints import waypoint
from tangram.scores.exact import ExactScores
from tangram.search.objective import objective_of
from tangram.search.problem import Problem, Settings
from tangram.search.verify import Solution
from tangram.training.loop import Checkpointing

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Text:
    """One split of the corpus.

    Attributes:
        path: its file.
        input_ids: its tokens, ``(sequences, length)``.
        activations: the parent's hidden states.
        cache: the file of cached activations, or None.
    """

    path: str
    input_ids: torch.Tensor
    activations: Activations
    cache: str | None


@dataclass
class Progress:
    """The finished rounds.

    Attributes:
        rounds: one entry per round: limits, architecture, sum of scores, KL before and after training, steps.
        rows: the rounds' training curves, of `tables.CURVES`.
        child: the child after the last of them; None before the first.
    """

    rounds: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    child: Child | None = None


class Rounds:
    """Runs the rounds of one target; a killed job goes on with the round, the piece or the step where it was.

    Args:
        parent: the parent.
        parent_state: its tensors by their names in the checkpoint.
        problem: the target's problem, with the scores of pieces in the parent.
        settings: the target and the solver's settings.
        library: source of the pieces.
        score: the score split, on which pieces are scored and a round's training must improve the child.
        scoring: how to score.
        text: the finetune split.
        training: how to train; its budget is that of all rounds together.
        seed: seed of the order of sequences.
        state: folder of the states, how often a training saves itself, and what identifies this job.
    """

    def __init__(
        self,
        parent: PreTrainedModel,
        parent_state: Mapping[str, torch.Tensor],
        problem: Problem,
        settings: Settings,
        library: Library,
        score: Text,
        scoring: Scores,
        text: Text,
        training: Finetune,
        seed: int,
        state: Checkpointing,
    ):
        self._parent, self._parent_state, self._problem, self._settings = parent, parent_state, problem, settings
        self._library, self._score, self._scoring = library, score, scoring
        self._text, self._training, self._seed, self._state = text, training, seed, state
        self._count = settings.target.rounds

    def run(self) -> tuple[Problem, Solution, Progress]:
        """Return the last round's problem and its solution, and all earlier rounds."""
        progress = self._restore()
        while len(progress.rounds) + 1 < self._count:
            problem, solution = self._solve(progress)
            self._train(progress, problem, solution)
            self._save(progress)
        return *self._solve(progress), progress

    def _solve(self, progress: Progress) -> tuple[Problem, Solution]:
        """Return the next round's problem and its proven best solution."""
        number, problem = len(progress.rounds) + 1, self._problem
        if progress.child is not None:
            problem = self._problem_in(progress.child, number)
        return waypoint(problem, self._settings.search, self._count - number + 1)

    def _problem_in(self, child: Child, number: int) -> Problem:
        """Return the target's problem with the scores of pieces in a child."""
        shape, parent = Shape.of(self._parent.config), (self._parent, self._parent_state)
        text = (self._score.activations, self._score.input_ids)
        how = (self._scoring.position_stride, self._scoring.batch_size)
        scorer = ReplaceInChild(child, self._model(child), *parent, *text, *how)
        path, identity = self._state.path / "scores.json", f"{self._state.identity} {number}"
        pieces = replaceable(self._problem, child.architecture)
        rows = ExactScores(scorer, self._library, shape, path, identity)(pieces)
        objective = objective_of(self._settings.target, self._settings.search)
        return in_child(self._problem, child.architecture, increases(rows, scorer.score_unchanged(), objective))

    def _model(self, child: Child) -> Any:
        model = build_child(build_config(self._parent.config, child.architecture), child.state)
        return model.to(self._parent.device)

    def _train(self, progress: Progress, problem: Problem, solution: Solution) -> None:
        """Assemble a round's child, train it, and append the round."""
        number, architecture = len(progress.rounds) + 1, solution.architecture
        if progress.child is None:
            state = assemble_state(self._parent_state, architecture, self._library)
        else:
            state = reassemble_state(self._parent_state, progress.child, architecture, self._library)
        state = cast_state(state, architecture, self._parent.dtype)
        model = self._model(Child(architecture, state))
        split = (self._score.path, self._score.cache, self._training.micro_batch_size)
        kl = TextKL(model, self._parent, *split)
        before = kl.by_sequence().mean().item()
        identity = f"{self._state.identity} {number}"
        checkpointing = Checkpointing(self._state.path / "training", self._state.seconds, identity)
        examples, length = self._text.input_ids.shape
        steps = part_of(self._training, examples, length, number, self._count)
        text = (self._text.activations, self._text.input_ids, self._training, self._seed)
        label = f"iterate_child round {number} of {self._count}"
        rows = finetune(model, self._parent, *text, label, checkpointing, validation=kl, steps=steps)
        round_pieces(model)
        after = kl.by_sequence().mean().item()
        if after < before:
            state = trained_state(model)
        progress.child = Child(architecture, state)
        progress.rows += [{"series": f"round {number}", **row} for row in rows]
        progress.rounds.append(
            {
                "round": number,
                "limits": [str(constraint) for constraint in problem.target.constraints],
                "objective": solution.objective,
                "kl_before": before,
                "kl_after": after,
                "kept": "trained" if after < before else "initial",
                "finetune_steps": len(steps),
                "finetune_tokens": rows[-1]["tokens"],
                **asdict(architecture),
            }
        )

    def _file(self, number: int) -> Path:
        return self._state.path / f"round-{number}.safetensors"

    def _save(self, progress: Progress) -> None:
        """Write the last round's child, then what the rounds did; after a kill in between, the round runs again."""
        assert progress.child is not None
        number = len(progress.rounds)
        tensors = {name: tensor.contiguous() for name, tensor in progress.child.state.items()}
        write_tensors(self._file(number), tensors, {})
        content = {"identity": self._state.identity, "rounds": progress.rounds, "rows": progress.rows}
        write_text(self._state.path / "rounds.json", json.dumps(content))
        self._file(number - 1).unlink(missing_ok=True)

    def _restore(self) -> Progress:
        """Return the rounds that an earlier job of the same identity finished."""
        content = read_progress(self._state.path / "rounds.json", self._state.identity)
        if not content:
            return Progress()
        rounds: Sequence[dict[str, Any]] = content["rounds"]
        child = Child(from_json(rounds[-1]), read_tensors(self._file(len(rounds))))
        return Progress(list(rounds), content["rows"], child)
