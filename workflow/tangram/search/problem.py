"""One subblock per layer and kind as a problem for a solver: candidates, costs, limits (Puzzle, appendix B).

Every layer has one candidate per *pair* of an attention and an FFN variant. A pair's score is the sum of its two
replace-1-block scores, unless the score table holds the pair itself (kind ``'block'``), which then counts instead. The
parent's own subblock scores 0 and is always a candidate.

All constraints are linear in the candidates once the batch size of each scenario is fixed; throughput >= T is
batch * (prefill + generate) / T >= seconds.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.blocks.base import PARENT
from tangram.config import Constraint, Scenario, Search, Section, Target
from tangram.costs.calibration import steady_seconds
from tangram.errors import TangramError

if TYPE_CHECKING:
    import pandas as pd

TOLERANCE = 1e-8  # relative; a limit is kept if it is exceeded by no more than rounding in the solver's arithmetic
ELEMENT_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
REMEDY = "delete it and run again: only this table and what depends on it is rebuilt"


class Settings(Section):
    """The slice of the config that `solve_mip` and `drop_layers` need."""

    target: Target
    search: Search
    scenarios: dict[str, Scenario]


def records(table: pd.DataFrame) -> Iterator[Any]:
    """Yield a table's rows as named tuples."""
    yield from table.itertuples(index=False)


@dataclass(frozen=True)
class Prediction:
    """What the cost tables say about one architecture in one scenario at one batch size.

    Attributes:
        batch: sequences.
        throughput: prompt and generated tokens per second of the whole batch.
        latency: seconds from the prompt to the last token, for the whole batch.
        time_to_first_token: seconds of the prefill.
        memory: bytes of parameters and full KV cache.
        parameters: number of parameters, embedding included.
        kv_bytes_per_token: bytes per token and sequence.
    """

    batch: int
    throughput: float
    latency: float
    time_to_first_token: float
    memory: float
    parameters: float
    kv_bytes_per_token: float


class CostModel:
    """Predicts time and memory of any architecture from the tables of its pieces.

    Seconds are `costs.calibration.steady_seconds`: ratios to the parent's subblock timed in the same job, so that they
    hold across jobs and a machine's moods. The calibration's scale multiplies a whole model's sum.

    Args:
        costs: rows of `tables.COSTS`.
        calibration: rows of `tables.CALIBRATION`.
        scenarios: workloads by name.
        num_layers: decoder layers.
        element_bytes: bytes per parameter.

    Raises:
        TangramError: a row is there twice or its seconds are not usable.
    """

    def __init__(
        self,
        costs: pd.DataFrame,
        calibration: pd.DataFrame,
        scenarios: Mapping[str, Scenario],
        num_layers: int,
        element_bytes: int,
    ):
        self.scenarios, self.num_layers, self.element_bytes = dict(scenarios), num_layers, element_bytes
        self._times: dict[tuple[Any, ...], float] = {}
        self._bytes: dict[tuple[int, str, str], tuple[int, int]] = {}
        for row in records(costs.assign(seconds=steady_seconds(costs))):
            piece = (row.layer_class, row.kind, row.variant)
            key = (*piece, row.scenario, row.phase, row.batch)
            sizes = (int(row.parameter_bytes), int(row.kv_bytes_per_token))
            where = f"costs: {row.kind} '{row.variant}', scenario '{row.scenario}', {row.phase}, batch {row.batch}"
            if key in self._times or self._bytes.setdefault(piece, sizes) != sizes:
                raise TangramError(f"{where} is there twice or with different sizes; {REMEDY}")
            if not 0 <= row.seconds < math.inf:
                raise TangramError(f"{where}: {row.seconds} s beside {row.parent_seconds} s of the parent; {REMEDY}")
            self._times[key] = float(row.seconds)
        self._classes = sorted({piece[0] for piece in self._bytes})
        self._scales: dict[tuple[str, str, int], float] = {}
        for row in records(calibration):
            workload = (row.scenario, row.phase, row.batch)
            if not 0 < row.scale < math.inf or self._scales.setdefault(workload, row.scale) != row.scale:
                raise TangramError(f"calibration: scale {row.scale} of {workload} is unusable or not unique; {REMEDY}")

    def _piece(self, layer: int, kind: str, variant: str) -> tuple[int, str, str]:
        """Return the key of the class that a layer belongs to: the last one that starts at or before it."""
        for first in reversed(self._classes):
            if first <= layer and (first, kind, variant) in self._bytes:
                return first, kind, variant
        raise TangramError(f"costs hold no row of {kind} '{variant}' for layer {layer}; {REMEDY}")

    def sizes(self, layer: int, kind: str, variant: str) -> tuple[int, int]:
        """Return a piece's parameter bytes and KV-cache bytes per token and sequence."""
        return self._bytes[self._piece(layer, kind, variant)]

    def seconds(self, layer: int, kind: str, variant: str, scenario: str, phase: str, batch: int) -> float:
        """Return a piece's seconds, before calibration."""
        try:
            return self._times[(*self._piece(layer, kind, variant), scenario, phase, batch)]
        except KeyError:
            where = f"scenario '{scenario}' at batch {batch}"
            raise TangramError(f"costs hold no {phase} seconds of {kind} '{variant}' for {where}; {REMEDY}") from None

    def scale(self, scenario: str, phase: str, batch: int) -> float:
        """Return the calibration factor on a whole model's seconds."""
        try:
            return self._scales[scenario, phase, batch]
        except KeyError:
            raise TangramError(
                f"calibration holds no {phase} row for scenario '{scenario}' at batch {batch}; {REMEDY}"
            ) from None

    def predict(self, architecture: Architecture, scenario: str, batch: int) -> Prediction:
        """Add up an architecture's pieces in plain arithmetic; the solver's linear forms are checked against this."""
        pieces = [(0, "model", PARENT)]
        for layer, choice in enumerate(architecture):
            pieces += [(layer, "attention", choice.attention), (layer, "ffn", choice.ffn)]
        workload = self.scenarios[scenario]
        prefill, step = (
            self.scale(scenario, phase, batch)
            * math.fsum(self.seconds(*piece, scenario, phase, batch) for piece in pieces)
            for phase in ("prefill", "decode")
        )
        parameter_bytes = sum(self.sizes(*piece)[0] for piece in pieces)
        kv_bytes = sum(self.sizes(*piece)[1] for piece in pieces)
        latency = prefill + workload.generate * step
        tokens = batch * (workload.prefill + workload.generate)
        return Prediction(
            batch=batch,
            throughput=tokens / latency,
            latency=latency,
            time_to_first_token=prefill,
            memory=parameter_bytes + tokens * kv_bytes,
            parameters=parameter_bytes / self.element_bytes,
            kv_bytes_per_token=kv_bytes,
        )

    def usage(self, quantity: str, scenario: str, batch: int, layer: int, kind: str, variant: str) -> float:
        """Return what one piece adds to a quantity; throughput counts as its seconds (`latency`)."""
        workload = self.scenarios[scenario]
        piece = (layer, kind, variant)
        if quantity in ("parameters", "kv_bytes_per_token", "memory"):
            parameter_bytes, kv_bytes = self.sizes(*piece)
            if quantity == "memory":
                return parameter_bytes + batch * (workload.prefill + workload.generate) * kv_bytes
            return parameter_bytes / self.element_bytes if quantity == "parameters" else kv_bytes
        prefill = self.scale(scenario, "prefill", batch) * self.seconds(*piece, scenario, "prefill", batch)
        if quantity == "time_to_first_token":
            return prefill
        step = self.scale(scenario, "decode", batch) * self.seconds(*piece, scenario, "decode", batch)
        return prefill + workload.generate * step


@dataclass(frozen=True)
class Candidate:
    """One pair of subblocks for one layer.

    Attributes:
        choice: the pair's variants.
        score: what the objective adds up.
        parts: scores of attention and FFN that the sum is made of; None where the pair itself was scored.
    """

    choice: LayerChoice
    score: float
    parts: tuple[float, float] | None


@dataclass(frozen=True)
class Resources:
    """The constraints at fixed batch sizes: ``usage @ x <= budget``, every row divided by its limit.

    Attributes:
        usage: ``(constraints, candidates)``, candidates of all layers in order.
        fixed: ``(constraints,)``, what embedding, final norm and LM head take.
    """

    usage: np.ndarray
    fixed: np.ndarray

    @property
    def budget(self) -> np.ndarray:
        """What the layers may take, ``(constraints,)``."""
        return 1.0 - self.fixed


def candidates_of(scores: pd.DataFrame, metric: str, num_layers: int) -> tuple[tuple[Candidate, ...], ...]:
    """Return every layer's candidates, the parent's pair first, then in the order of names.

    Args:
        scores: rows of `tables.SCORES`.
        metric: which of its metrics is minimised.
        num_layers: decoder layers.

    Raises:
        TangramError: the metric is missing, a score is not finite or there twice, or a layer is out of range.
    """
    rows = scores[scores["metric"] == metric]
    if rows.empty:
        raise TangramError(f"scores hold no metric '{metric}' (search.metric); there: {sorted(set(scores['metric']))}")
    single: list[dict[str, dict[str, float]]] = [
        {"attention": {PARENT: 0.0}, "ffn": {PARENT: 0.0}, "block": {}} for _ in range(num_layers)
    ]
    for row in records(rows.sort_values(["layer", "kind", "variant"])):
        where = f"scores: {row.kind} '{row.variant}' of layer {row.layer}"
        if not 0 <= row.layer < num_layers or row.kind not in single[0]:
            raise TangramError(f"{where} does not belong to a parent of {num_layers} layers; {REMEDY}")
        if not math.isfinite(row.value):
            raise TangramError(f"{where} is {row.value}; {REMEDY}")
        known = single[row.layer][row.kind]
        if row.variant == PARENT:
            continue
        if row.variant in known:
            raise TangramError(f"{where} is there twice; {REMEDY}")
        known[row.variant] = float(row.value)
    layers = []
    for known in single:
        pairs: dict[LayerChoice, Candidate] = {}
        for (attention, a), (ffn, f) in itertools.product(known["attention"].items(), known["ffn"].items()):
            choice = LayerChoice(attention, ffn)
            pairs[choice] = Candidate(choice, a + f, (a, f))
        for variant, score in known["block"].items():
            choice = LayerChoice.parse(variant)
            if choice != LayerChoice():
                pairs[choice] = Candidate(choice, score, None)
        layers.append(tuple(pairs.values()))
    return tuple(layers)


Batches = dict[str, int]


@dataclass(frozen=True)
class Problem:
    """One target's problem: candidates of every layer, what they cost, and the limits."""

    candidates: tuple[tuple[Candidate, ...], ...]
    costs: CostModel
    target: Target

    @functools.cached_property
    def parent(self) -> Architecture:
        """The parent's own architecture."""
        return (LayerChoice(),) * len(self.candidates)

    @functools.cached_property
    def layer_of(self) -> np.ndarray:
        """The layer of every candidate, ``(candidates,)``."""
        return np.repeat(np.arange(len(self.candidates)), [len(layer) for layer in self.candidates])

    @functools.cached_property
    def scores(self) -> np.ndarray:
        """The score of every candidate, ``(candidates,)``."""
        return np.array([candidate.score for layer in self.candidates for candidate in layer])

    @functools.cached_property
    def _by_choice(self) -> tuple[dict[LayerChoice, Candidate], ...]:
        return tuple({candidate.choice: candidate for candidate in layer} for layer in self.candidates)

    def candidate(self, layer: int, choice: LayerChoice) -> Candidate:
        """Return a layer's candidate.

        Raises:
            TangramError: the layer has no such candidate.
        """
        try:
            return self._by_choice[layer][choice]
        except KeyError:
            raise TangramError(f"{choice} is not a candidate of layer {layer}: the library holds no score") from None

    def objective(self, architecture: Architecture) -> float:
        """Return the sum of scores."""
        return math.fsum(self.candidate(layer, choice).score for layer, choice in enumerate(architecture))

    def constrained_scenarios(self) -> list[str]:
        """Return the scenarios that some constraint speaks of, in the config's order."""
        used = {constraint.scenario for constraint in self.target.constraints}
        return [name for name in self.costs.scenarios if name in used]

    def batch_grid(self) -> list[Batches]:
        """Return every combination of one batch size per constrained scenario."""
        names = self.constrained_scenarios()
        grids = [sorted(set(self.costs.scenarios[name].batch_sizes)) for name in names]
        return [dict(zip(names, sizes, strict=True)) for sizes in itertools.product(*grids)]

    def predict(self, constraint: Constraint, architecture: Architecture, batches: Mapping[str, int]) -> float:
        """Return an architecture's value of a constraint's quantity."""
        # Parameters and KV bytes belong to no scenario: any one gives them.
        scenario = constraint.scenario or next(iter(self.costs.scenarios))
        batch = batches.get(scenario, self.costs.scenarios[scenario].batch_sizes[0])
        return float(getattr(self.costs.predict(architecture, scenario, batch), constraint.quantity))

    def best_batch(self, architecture: Architecture, scenario: str) -> int | None:
        """Return the batch size of largest throughput that keeps the scenario's absolute memory limits, or None."""
        limits = [
            constraint.max
            for constraint in self.target.constraints
            if (constraint.quantity, constraint.scenario, constraint.relative_to_parent) == ("memory", scenario, False)
        ]
        found = [
            self.costs.predict(architecture, scenario, batch) for batch in self.costs.scenarios[scenario].batch_sizes
        ]
        fitting = [p for p in found if all(p.memory <= limit * (1 + TOLERANCE) for limit in limits if limit)]
        return max(fitting, key=lambda p: (p.throughput, -p.batch)).batch if fitting else None

    def reference(self, constraint: Constraint, batches: Mapping[str, int]) -> float:
        """Return the parent's value that a relative constraint is a multiple of; 1 for an absolute one.

        Throughput is the parent's best over the batch grid; everything else is taken at the same batch.

        Raises:
            TangramError: the parent fits into memory at no batch size.
        """
        if not constraint.relative_to_parent:
            return 1.0
        if constraint.quantity == "throughput":
            assert constraint.scenario is not None  # checked by the config
            batch = self.best_batch(self.parent, constraint.scenario)
            if batch is None:
                raise TangramError(
                    f"the parent exceeds the memory limit of scenario '{constraint.scenario}' at every batch size, "
                    "so a throughput relative to it means nothing; make it absolute: relative_to_parent: false"
                )
            batches = {constraint.scenario: batch}
        return self.predict(constraint, self.parent, batches)

    def limit(self, constraint: Constraint, batches: Mapping[str, int]) -> float:
        """Return a constraint's limit in the quantity's own unit."""
        factor = constraint.min if constraint.quantity == "throughput" else constraint.max
        return float(factor or math.nan) * self.reference(constraint, batches)

    def slack(self, constraint: Constraint, architecture: Architecture, batches: Mapping[str, int]) -> float:
        """Return how far inside its limit an architecture is, relative to the limit; negative outside."""
        value, limit = self.predict(constraint, architecture, batches), self.limit(constraint, batches)
        return (value / limit - 1) if constraint.quantity == "throughput" else (1 - value / limit)

    def feasible(self, architecture: Architecture, batches: Mapping[str, int]) -> bool:
        """Say whether an architecture keeps every limit."""
        return all(self.slack(c, architecture, batches) >= -TOLERANCE for c in self.target.constraints)

    def resources(self, batches: Mapping[str, int]) -> Resources:
        """Return the constraints as linear forms of the candidates at given batch sizes."""
        rows = [self._linear(constraint, batches) for constraint in self.target.constraints]
        return Resources(np.array([usage for _, usage in rows]), np.array([fixed for fixed, _ in rows]))

    def _linear(self, constraint: Constraint, batches: Mapping[str, int]) -> tuple[float, list[float]]:
        """Return one constraint's fixed part and every candidate's, both divided by the limit."""
        scenario = constraint.scenario or next(iter(self.costs.scenarios))
        workload = self.costs.scenarios[scenario]
        batch = batches.get(scenario, workload.batch_sizes[0])
        limit = self.limit(constraint, batches)
        if constraint.quantity == "throughput":  # at least so many tokens per second is at most so many seconds
            limit = batch * (workload.prefill + workload.generate) / limit

        @functools.cache
        def piece(layer: int, kind: str, variant: str) -> float:
            return self.costs.usage(constraint.quantity, scenario, batch, layer, kind, variant) / limit

        usage = [
            piece(layer, "attention", candidate.choice.attention) + piece(layer, "ffn", candidate.choice.ffn)
            for layer, candidates in enumerate(self.candidates)
            for candidate in candidates
        ]
        return piece(0, "model", PARENT), usage


def parent_facts(folder: str | Path) -> tuple[int, int]:
    """Return a checkpoint folder's number of layers and bytes per parameter.

    Raises:
        TangramError: its config is missing or says neither.
    """
    path = Path(folder) / "config.json"
    remedy = "delete the folder and run again"
    try:
        config = json.loads(path.read_text())
        dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
        return int(config["num_hidden_layers"]), ELEMENT_BYTES[dtype]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TangramError(f"{path} is not a readable model config: {error!r}; {remedy}") from error


def load_problem(settings: Settings, scores: Path, costs: Path, calibration: Path, parent: Path) -> Problem:
    """Read the tables and return a target's problem.

    Raises:
        TangramError: a table is damaged or incomplete.
    """
    from tangram.tables import CALIBRATION, COSTS, SCORES, read_table

    num_layers, element_bytes = parent_facts(parent)
    model = CostModel(
        read_table(costs, COSTS), read_table(calibration, CALIBRATION), settings.scenarios, num_layers, element_bytes
    )
    candidates = candidates_of(read_table(scores, SCORES), settings.search.metric, num_layers)
    return Problem(candidates, model, settings.target)
