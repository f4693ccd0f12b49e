"""The data of a report: one run's tables and what the sections read from them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field

from tangram.blocks import PARENT, Variant, block_class
from tangram.blocks.architecture import Architecture
from tangram.blocks.base import PRECISIONS
from tangram.config import Section, uniform_solution
from tangram.report.estimates import PACKED_KEY, PARENT_KEY, Estimate, Key, ratio
from tangram.report.samples import Samples, counted

HELDOUT = "heldout"
BEST = "0"  # name of the solver's proven best solution, or of the selected candidate
UNIFORM = {uniform_solution(precision): precision for precision in PRECISIONS}  # precisions of the uniform rivals
SPEEDUP, PACKED_SPEEDUP = "speedup", "packed_speedup"  # throughput over the stock parent's, and over the packed one's


class Settings(Section):
    """Settings of the report beyond the tables.

    ``children`` holds the names of each target's solutions that become children, ``library`` the variants of each
    kind, ``optional`` the tables that not every config asks for, and ``engines`` those of targets whose engine is not
    torch.
    """

    run: str
    primary_target: str
    targets: tuple[str, ...]
    children: dict[str, tuple[str, ...]]
    library: dict[str, tuple[str, ...]]
    optional: tuple[str, ...]
    num_layers: int
    default_scenario: str
    seed: int
    engines: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """One run's tables, as frames of `tangram.tables`' schemas; a frame is empty if the run lacks its file.

    ``evaluations``, ``tasks``, ``readouts`` and ``engines`` are EVALUATION, and ``finetuning`` is CURVES, with leading
    columns ``target`` and ``solution``; ``samples`` holds the values of each question and held-out sequence, from which
    ``tasks`` is computed, ``perplexities`` those of each part of texts, and ``long_context`` of each question about a
    long text; ``benchmarks`` has one row per job; ``solutions`` holds the entries of files of solutions by target and
    solution, and ``stock`` the predictions of the stock parent by target.
    """

    folder: Path
    settings: Settings
    scores: pd.DataFrame
    costs: pd.DataFrame
    calibration: pd.DataFrame
    library: pd.DataFrame
    distillation: pd.DataFrame
    finetuning: pd.DataFrame
    evaluations: pd.DataFrame
    speeds: pd.DataFrame
    tasks: pd.DataFrame
    readouts: pd.DataFrame
    architectures: dict[tuple[str, str], Architecture]
    solutions: dict[tuple[str, str], dict[str, Any]]
    parent: dict[str, Any]
    provenance: list[dict[str, str]]
    benchmarks: pd.DataFrame
    selections: dict[str, dict[str, Any]] = field(default_factory=dict)
    rounds: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    stock: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: Samples = field(default_factory=dict)
    perplexities: Samples = field(default_factory=dict)
    long_context: Samples = field(default_factory=dict)
    engines: pd.DataFrame = field(default_factory=pd.DataFrame)
    trials: pd.DataFrame = field(default_factory=pd.DataFrame)

    def estimate(self, key: Key, task: str, metric: str) -> Estimate | None:
        """Return one model's measurement, or None."""
        return self._estimates.get((*key, task, metric))

    @cached_property
    def _estimates(self) -> dict[tuple[str, ...], Estimate]:
        estimates: dict[tuple[str, ...], Estimate] = {}
        for row in rows_of(pd.concat([self.tasks, self.readouts, self.evaluations, self.speeds])):
            error = None if math.isnan(row.standard_error) else row.standard_error
            estimates[row.target, row.solution, row.model, row.task, row.metric] = Estimate(row.value, error, row.n)
        return estimates

    @cached_property
    def counted(self) -> dict[str, str]:
        """The metric that counts in each task, by the task's name."""
        keys = dict.fromkeys(key for key, _, _ in self.samples)
        return {task: metric for key in keys for task, (metric, _) in counted(self.samples, key).items()}

    def heldout(self, key: Key, metric: str) -> Estimate | None:
        """Return a metric on held-out text; the parent's KL to itself is 0 and its agreement 1.

        The packed parent computes what the parent does, up to rounding.
        """
        key = PARENT_KEY if key == PACKED_KEY else key
        if key == PARENT_KEY and metric in ("kl", "agreement"):
            return Estimate(float(metric == "agreement"), 0.0)
        return self.estimate(key, HELDOUT, metric)

    def speedup(self, key: Key, metric: str = SPEEDUP) -> Estimate | None:
        """Return the measured throughput in the default scenario as a multiple of the parent's.

        Finetuning does not change the shape of a model, so child and finetuned child have the same speed.

        Args:
            key: the model.
            metric: ``SPEEDUP``, over the parent in stock transformers, or ``PACKED_SPEEDUP``, over the packed parent.
        """
        reference, scenario = PARENT_KEY if metric == SPEEDUP else PACKED_KEY, self.settings.default_scenario
        if key == reference:
            return Estimate(1.0, 0.0)
        for model in dict.fromkeys((key.model, "finetuned", "child")):
            same_shape = key._replace(model=model)
            speedup = self.estimate(same_shape, scenario, metric)
            if speedup:
                return speedup
            throughput = self.estimate(same_shape, scenario, "throughput")
            parent_throughput = self.estimate(reference, scenario, "throughput")
            if throughput and parent_throughput:
                return ratio(throughput, parent_throughput)
        return None

    @property
    def best_parent(self) -> Key:
        """The fastest measured parent, over which a claim is made: the packed one, or the stock one without it."""
        packed = self.estimate(PACKED_KEY, self.settings.default_scenario, "throughput")
        return PACKED_KEY if packed else PARENT_KEY

    def claimed_speedup(self, key: Key) -> Estimate | None:
        """Return the measured speed-up over `best_parent`."""
        return self.speedup(key, PACKED_SPEEDUP if self.best_parent == PACKED_KEY else SPEEDUP)

    @property
    def children(self) -> list[tuple[str, str]]:
        """Return every (target, solution) with an architecture or an evaluation, in config order, rivals last."""
        evaluated = set(zip(self.evaluations["target"], self.evaluations["solution"], strict=True))
        pairs = {pair for pair in {*self.architectures, *evaluated} if pair[0]}
        return sorted(pairs, key=lambda pair: (self.settings.targets.index(pair[0]), *_order(pair[1])))

    def models(self, target: str, solution: str) -> list[Key]:
        """Return the evaluated models of one solution, before and after finetuning."""
        frame = self.evaluations
        names = set(frame[(frame["target"] == target) & (frame["solution"] == solution)]["model"])
        return [Key(target, solution, model) for model in ("child", "finetuned") if model in names]

    def final(self, target: str, solution: str) -> Key | None:
        """Return the last evaluated model of one solution: the finetuned child, else the assembled one."""
        models = self.models(target, solution)
        return models[-1] if models else None

    @property
    def chosen(self) -> Key | None:
        """The last evaluated model of the primary target's best solution, or None."""
        return self.final(self.settings.primary_target, BEST)

    def sum_of_scores(self, architecture: Architecture, metric: str = "kl") -> float | None:
        """Return the sum of replace-1-block scores of an architecture, or None if a piece has no score."""
        frame = self.scores[self.scores["metric"] == metric]
        values = {(row.layer, row.kind, row.variant): row.value for row in rows_of(frame) if not math.isnan(row.value)}
        changed = list(architecture.scored())
        if any(piece not in values for piece in changed):
            return None
        return math.fsum(values[piece] for piece in changed)

    def variants(self, kind: str, searched: bool = False) -> list[str]:
        """Return the variants of a kind except the parent's, from mildest to strongest.

        Args:
            kind: the kind of subblock.
            searched: leave out those that are only sources of quantized pieces, neither scored nor timed.
        """
        names: set[str] = set()
        for frame in (self.scores, self.costs) if searched else (self.library, self.scores, self.costs):
            names |= set(frame[frame["kind"] == kind]["variant"])
        for architecture in self.architectures.values():
            names |= {variant for _, of_kind, variant in architecture.pieces() if of_kind == kind}
        return sorted(names - {PARENT}, key=strength)


def rows_of(frame: pd.DataFrame) -> Iterator[Any]:
    """Yield a frame's rows with columns as attributes, whose types the stubs of pandas do not know."""
    yield from frame.itertuples(index=False)


def strength(variant: str) -> tuple[int, float, str]:
    """Return a sort key: the parent first, families from mild to strong, and within a family from large to small."""
    return block_class(variant).severity, -(Variant.parse(variant).size or 0.0), variant


def _order(solution: str) -> tuple[int, int, str]:
    return (1, 0, solution) if not solution.isdigit() else (0, int(solution), solution)
