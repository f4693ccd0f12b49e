"""The search problem of one target: groups of options, their costs, and the limits (Puzzle, appendix B).

One option of every group is chosen. Every layer is a group with one option per *pair* of an attention and an FFN
variant. A pair's score is the sum of its two replace-1-block scores. Of a coupled pair, which was trained together and
has a score of its own (kind ``'block'`` in the table), the option has that score and the weights of the pair. The costs
are those of the two variants in either case. The last group is the LM head with one option per variant. The parent's
subblock scores 0 and is always an option.

All constraints are linear in the options once the batch size of each scenario is fixed; throughput >= T is
batch * (prefill + generate) / T >= seconds.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tangram.blocks.architecture import Architecture, Choice, LayerChoice, pieces_of
from tangram.blocks.base import HEAD, PAIR, PARENT, Variant
from tangram.config import STOCK, Constraint, Scenario, Search, Section, Target, uniform_precision
from tangram.costs.llama_layers import STUB_PIECE
from tangram.engines import LLAMA_CPP, REFERENCES, head_precision, refusal
from tangram.errors import TangramError
from tangram.search.cost_model import REMEDY, REST, CostModel, records
from tangram.search.objective import objective_of, weighted_scores

if TYPE_CHECKING:
    import pandas as pd

TOLERANCE = 1e-8  # relative excess of a limit that counts as rounding in the solver's arithmetic
EXACT = 1e-9  # two objectives closer than this, relative to max(1, |objective|), are equal


class Settings(Section):
    """The slice of the config that the solver and its baselines need."""

    target: Target
    search: Search
    scenarios: dict[str, Scenario]


def rounding(objective: float) -> float:
    """Return the difference up to which two objectives are equal."""
    return EXACT * max(1.0, abs(objective))


@dataclass(frozen=True)
class Option:
    """One pair of variants for one layer, or one variant of the head.

    Attributes:
        choice: the variants.
        score: the option's term of the objective.
        parts: scores of the choice's pieces, whose sum is the score; None if the pair itself was scored.
    """

    choice: Choice
    score: float
    parts: tuple[float, ...] | None


@dataclass(frozen=True)
class Resources:
    """The constraints at fixed batch sizes: ``usage @ x <= budget``, every row divided by its limit.

    Attributes:
        usage: ``(constraints, options)``, options of all groups in order.
        fixed: ``(constraints,)``, the share of embedding and final norm.
        stub: ``(constraints,)``, the share of a stub, which `usage` counts although the next layer's FFN replaces it.
    """

    usage: np.ndarray
    fixed: np.ndarray
    stub: np.ndarray

    @property
    def budget(self) -> np.ndarray:
        """The options' share of every limit, ``(constraints,)``."""
        return 1.0 - self.fixed


def options_of(
    scores: pd.DataFrame, objective: str | Mapping[str, float], num_layers: int
) -> tuple[tuple[Option, ...], ...]:
    """Return the options of every layer and of the head, the parent's first, then in the order of names.

    Args:
        scores: rows of `tables.SCORES`.
        objective: the metric to minimize, or weights by metric.
        num_layers: decoder layers.

    Raises:
        TangramError: a metric is missing, a score is not finite or appears twice, or a layer is out of range.
    """
    layers = range(num_layers)
    known: dict[tuple[int, str], dict[str, float]] = {(0, HEAD): {PARENT: 0.0}}
    for layer in layers:
        known |= {(layer, "attention"): {PARENT: 0.0}, (layer, "ffn"): {PARENT: 0.0}, (layer, PAIR): {}}
    for row in records(weighted_scores(scores, objective)):
        where = f"scores: {row.kind} '{row.variant}' of layer {row.layer}"
        if (row.layer, row.kind) not in known:
            raise TangramError(f"{where} does not belong to a parent of {num_layers} layers; {REMEDY}")
        if not math.isfinite(row.value):
            raise TangramError(f"{where} is {row.value}; {REMEDY}")
        by_variant = known[row.layer, row.kind]
        if row.variant == PARENT:
            continue
        if row.variant in by_variant:
            raise TangramError(f"{where} appears twice; {REMEDY}")
        by_variant[row.variant] = float(row.value)
    groups = []
    for layer in layers:
        pairs: dict[str, Option] = {}
        for (attention, a), (ffn, f) in itertools.product(
            known[layer, "attention"].items(), known[layer, "ffn"].items()
        ):
            choice = LayerChoice(attention, ffn)
            pairs[choice.pair] = Option(choice, a + f, (a, f))
        for pair, score in known[layer, PAIR].items():
            if pair != LayerChoice().pair:
                pairs[pair] = Option(LayerChoice.parse(pair), score, None)
        groups.append(tuple(pairs.values()))
    return (*groups, tuple(Option(variant, score, (score,)) for variant, score in known[0, HEAD].items()))


Batches = dict[str, int]


@dataclass(frozen=True)
class Problem:
    """One target's problem: options of every layer and, last, of the head; their costs; and the limits."""

    options: tuple[tuple[Option, ...], ...]
    costs: CostModel
    target: Target

    @functools.cached_property
    def parent(self) -> Architecture:
        """The parent's architecture."""
        return Architecture((LayerChoice(),) * self.num_layers)

    @functools.cached_property
    def reference_parent(self) -> Architecture:
        """The parent to which relative limits refer, in the precision of the engine's reference."""
        return self.parent_in(REFERENCES[self.target.engine])

    def parent_in(self, variant: str, head: str | None = None) -> Architecture:
        """Return the parent with one variant, such as ``'parent@int8'``, for every subblock and by default the head."""
        return Architecture((LayerChoice(variant, variant),) * self.num_layers, head or variant)

    @functools.cached_property
    def stock(self) -> Problem:
        """The problem with the costs of stock transformers' models or llama.cpp's files: the parent's reference."""
        costs, variant = self.costs.stock(), REFERENCES[self.target.engine]
        return replace(self, costs=costs if variant == PARENT else costs.in_one_type(variant))

    @property
    def num_layers(self) -> int:
        """The number of decoder layers."""
        return len(self.options) - 1

    @functools.cached_property
    def group_of(self) -> np.ndarray:
        """The group of every option, ``(options,)``: its layer, or the number of layers for the head's."""
        return np.repeat(np.arange(len(self.options)), [len(group) for group in self.options])

    @functools.cached_property
    def scores(self) -> np.ndarray:
        """The score of every option, ``(options,)``."""
        return np.array([option.score for option in self._flat])

    @functools.cached_property
    def _flat(self) -> tuple[Option, ...]:
        return tuple(itertools.chain.from_iterable(self.options))

    @functools.cached_property
    def _positions(self) -> dict[tuple[int, Choice], int]:
        groups = self.group_of.tolist()
        return {(group, option.choice): i for i, (group, option) in enumerate(zip(groups, self._flat, strict=True))}

    def position(self, group: int, choice: Choice) -> int:
        """Return the index of a group's option among the options of all groups.

        Raises:
            TangramError: the group has no such option.
        """
        try:
            return self._positions[group, choice]
        except KeyError:
            where = f"layer {group}" if group < self.num_layers else "the head"
            raise TangramError(f"{choice} is not an option of {where}: the library holds no score") from None

    def has(self, group: int, choice: Choice) -> bool:
        """Return whether a group has an option."""
        return (group, choice) in self._positions

    def option(self, group: int, choice: Choice) -> Option:
        """Return a group's option.

        Raises:
            TangramError: the group has no such option.
        """
        return self._flat[self.position(group, choice)]

    def chosen(self, architecture: Architecture) -> list[Option]:
        """Return an architecture's option of every group.

        Raises:
            TangramError: a group has no such option.
        """
        return [self.option(group, choice) for group, choice in enumerate(architecture.choices)]

    def architecture(self, values: np.ndarray) -> Architecture:
        """Return the architecture of a program's binary values ``(options,)``: 1 for each group's chosen option."""
        return Architecture.of(self._flat[i].choice for i in np.flatnonzero(values > 0.5))

    def objective(self, architecture: Architecture) -> float:
        """Return the sum of scores."""
        return math.fsum(option.score for option in self.chosen(architecture))

    def scale_of_gap(self, objective: float, best: Architecture | None = None) -> float:
        """Return the scale of a gap: the objective, or the best solution's sum of absolute scores if that is larger.

        The two differ only if noise makes scores negative; a sum near zero then does not require a gap near zero.
        """
        scores = [option.score for option in self.chosen(best)] if best else []
        return max(abs(objective), math.fsum(map(abs, scores)))

    def constrained_scenarios(self) -> list[str]:
        """Return the scenarios of the constraints, in the config's order."""
        used = {constraint.scenario for constraint in self.target.constraints}
        return [name for name in self.costs.scenarios if name in used]

    def batch_grid(self) -> list[Batches]:
        """Return every combination of one batch size per constrained scenario."""
        names = self.constrained_scenarios()
        grids = [sorted(set(self.costs.scenarios[name].batch_sizes)) for name in names]
        return [dict(zip(names, sizes, strict=True)) for sizes in itertools.product(*grids)]

    def predict(self, constraint: Constraint, architecture: Architecture, batches: Mapping[str, int]) -> float:
        """Return an architecture's value of a constraint's quantity."""
        prediction = self.costs.predict(architecture, *self._workload(constraint, batches))
        return float(getattr(prediction, constraint.quantity))

    def _workload(self, constraint: Constraint, batches: Mapping[str, int]) -> tuple[str, int]:
        """Return a constraint's scenario and batch size; parameters and KV bytes are the same in every scenario."""
        scenario = constraint.scenario or next(iter(self.costs.scenarios))
        return scenario, batches.get(scenario, self.costs.scenarios[scenario].batch_sizes[0])

    def best_batch(self, architecture: Architecture, scenario: str) -> int | None:
        """Return the batch size of largest throughput within the scenario's absolute memory limits, or None."""
        limits = [
            constraint.max
            for constraint in self.target.constraints
            if (constraint.quantity, constraint.scenario, constraint.relative_to_parent) == ("memory", scenario, False)
        ]
        sizes = self.costs.scenarios[scenario].batch_sizes
        predictions = [self.costs.predict(architecture, scenario, batch) for batch in sizes]
        fitting = [p for p in predictions if all(p.memory <= limit * (1 + TOLERANCE) for limit in limits if limit)]
        return max(fitting, key=lambda p: (p.throughput, -p.batch)).batch if fitting else None

    def usual_batch(self, architecture: Architecture, scenario: str) -> int:
        """Return the batch size of largest throughput, or the smallest one if none fits into memory."""
        return self.best_batch(architecture, scenario) or min(self.costs.scenarios[scenario].batch_sizes)

    def usual_batches(self, architecture: Architecture) -> Batches:
        """Return the `usual_batch` of every constrained scenario."""
        return {name: self.usual_batch(architecture, name) for name in self.constrained_scenarios()}

    def reference(self, constraint: Constraint, batches: Mapping[str, int]) -> float:
        """Return the parent's value that scales a relative constraint; 1 for an absolute one.

        For throughput, the parent's best over the batch grid; for all other quantities, its value at the same batch.

        Raises:
            TangramError: the parent exceeds the memory limit at every batch size.
        """
        if not constraint.relative_to_parent:
            return 1.0
        run, parent = self._reference_of(constraint)
        if constraint.quantity == "throughput":
            assert constraint.scenario is not None  # checked by the config
            batch = run.best_batch(parent, constraint.scenario)
            if batch is None:
                raise TangramError(
                    f"the parent exceeds the memory limit of scenario '{constraint.scenario}' at every batch size, "
                    "so a throughput relative to it is undefined; make it absolute: relative_to_parent: false"
                )
            batches = {constraint.scenario: batch}
        return run.predict(constraint, parent, batches)

    def _reference_of(self, constraint: Constraint) -> tuple[Problem, Architecture]:
        """Return the parent to which a constraint refers, with the problem that has its costs.

        It is stock transformers' or the packed one, or in llama.cpp the F16 file; or the parent in one precision.
        """
        precision = uniform_precision(constraint.reference)
        if precision is None:
            return self.stock if constraint.reference == STOCK else self, self.reference_parent
        head = str(Variant(PARENT, precision=head_precision(self.target.engine, precision)))
        costs = self.costs.in_one_type(head) if self.target.engine == LLAMA_CPP else self.costs
        return replace(self, costs=costs), self.parent_in(str(Variant(PARENT, precision=precision)), head)

    def limit(self, constraint: Constraint, batches: Mapping[str, int]) -> float:
        """Return a constraint's limit in the unit of its quantity."""
        factor = constraint.min if constraint.quantity == "throughput" else constraint.max
        return float(factor or math.nan) * self.reference(constraint, batches)

    def slack(self, constraint: Constraint, architecture: Architecture, batches: Mapping[str, int]) -> float:
        """Return the distance of an architecture to a limit, relative to the limit; negative if it is exceeded."""
        value, limit = self.predict(constraint, architecture, batches), self.limit(constraint, batches)
        return (value / limit - 1) if constraint.quantity == "throughput" else (1 - value / limit)

    def feasible(self, architecture: Architecture, batches: Mapping[str, int]) -> bool:
        """Return whether an architecture satisfies every limit."""
        return all(self.slack(c, architecture, batches) >= -TOLERANCE for c in self.target.constraints)

    def resources(self, batches: Mapping[str, int]) -> Resources:
        """Return the constraints as linear forms of the options at given batch sizes."""
        rows = [self._linear(constraint, batches) for constraint in self.target.constraints]
        usage, fixed, stub = zip(*rows, strict=True)
        return Resources(np.array(usage), np.array(fixed), np.array(stub))

    def _linear(self, constraint: Constraint, batches: Mapping[str, int]) -> tuple[list[float], float, float]:
        """Return one constraint's usage of every option, its fixed usage, and that of a stub, divided by the limit."""
        scenario, batch = self._workload(constraint, batches)
        limit = self.limit(constraint, batches)
        if constraint.quantity == "throughput":  # a lower limit on tokens/s is an upper limit on seconds
            limit = self.costs.tokens(scenario, batch) / limit

        @functools.cache
        def piece(layer: int, kind: str, variant: str) -> float:
            return self.costs.usage(constraint.quantity, scenario, batch, layer, kind, variant) / limit

        stub = piece(0, *STUB_PIECE) if self.costs.counts_stubs else 0.0
        usage = [
            sum(piece(self.layer(group), kind, variant) for kind, variant in pieces_of(option.choice))
            for group, options in enumerate(self.options)
            for option in options
        ]
        if stub:
            usage = [value - stub * count for value, count in zip(usage, self._excess_stubs, strict=True)]
        return usage, piece(0, *REST), stub

    @functools.cached_property
    def _excess_stubs(self) -> list[int]:
        """The number of stubs in the costs of every option's subblocks that its layer does not need."""
        layers = [[option.choice] if isinstance(option.choice, LayerChoice) else [] for option in self._flat]
        return list(map(self.costs.excess_stubs, layers))

    def layer(self, group: int) -> int:
        """Return the layer of a group's rows in the tables; the head's is 0."""
        return group if group < self.num_layers else 0

    def with_constraints(self, constraints: tuple[Constraint, ...]) -> Problem:
        """Return the problem with other constraints."""
        return replace(self, target=self.target.model_copy(update={"constraints": constraints}))


def layers_of(folder: str | Path) -> int:
    """Return a checkpoint folder's number of layers.

    Raises:
        TangramError: its config is missing or lacks it.
    """
    path = Path(folder) / "config.json"
    remedy = "delete the folder and run again"
    try:
        return int(json.loads(path.read_text())["num_hidden_layers"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TangramError(f"{path} is not a readable model config: {error!r}; {remedy}") from error


def is_usable(name: str, target: Target) -> bool:
    """Return whether a target's engine and formats can express a variant, or both variants of a pair."""
    return all(refusal(variant, target.engine, target.export) is None for variant in name.split("+"))


def load_problem(settings: Settings, scores: Path, costs: Path, calibration: Path, parent: Path) -> Problem:
    """Read the tables and return a target's problem.

    Raises:
        TangramError: a table is damaged or incomplete.
    """
    from tangram.tables import CALIBRATION, COSTS, SCORES, read_table

    table = read_table(scores, SCORES)
    usable = [is_usable(variant, settings.target) for variant in table["variant"]]
    model = CostModel(read_table(costs, COSTS), read_table(calibration, CALIBRATION), settings.scenarios)
    options = options_of(table[usable], objective_of(settings.target, settings.search), layers_of(parent))
    return Problem(options, model, settings.target)
