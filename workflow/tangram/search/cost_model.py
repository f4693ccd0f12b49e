"""The cost model: predicted time and memory of any architecture, from the tables of costs."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.blocks.base import HEAD, PARENT
from tangram.config import Scenario
from tangram.costs.calibration import steady_seconds, stock_factors
from tangram.costs.llama_layers import STUB_PIECE, excess
from tangram.engines import LLAMA_CPP
from tangram.errors import TangramError

if TYPE_CHECKING:
    import pandas as pd

REST = ("model", PARENT)  # the table's kind and variant of embedding and final norm
FLOAT32 = 4  # bytes
REMEDY = "delete it and run again: only this table and its dependents are rebuilt"


def records(table: pd.DataFrame) -> Iterator[Any]:
    """Yield a table's rows as named tuples."""
    yield from table.itertuples(index=False)


@dataclass(frozen=True)
class Prediction:
    """Predicted costs of one architecture in one scenario at one batch size.

    Attributes:
        batch: sequences.
        throughput: prompt and generated tokens per second of the whole batch.
        latency: seconds from the prompt to the last token, for the whole batch.
        time_to_first_token: seconds of the prefill.
        memory: bytes of parameters and full KV cache.
        parameters: number of weights whatever their precision, embedding included.
        kv_bytes_per_token: bytes per token and sequence.
    """

    batch: int
    throughput: float
    latency: float
    time_to_first_token: float
    memory: float
    parameters: float
    kv_bytes_per_token: float


class Sizes(NamedTuple):
    """Sizes of a piece, or their sums over pieces.

    Attributes:
        parameters: number of stored weights, whatever their precision.
        parameter_bytes: their bytes.
        kv_bytes_per_token: bytes of the KV cache per token and sequence.
    """

    parameters: int
    parameter_bytes: int
    kv_bytes_per_token: int

    def memory(self, tokens: int) -> int:
        """Return the bytes of the weights and of the KV cache of a number of tokens."""
        return self.parameter_bytes + tokens * self.kv_bytes_per_token


class CostModel:
    """Predict time and memory of any architecture as sums over its pieces, in llama.cpp less the stubs it lacks.

    Seconds are `costs.calibration.steady_seconds`: ratios to the parent's subblock timed in the same job, which cancels
    drift between jobs. The calibration's scale multiplies the sum over a whole model. Pieces are measured with
    packed and fused kernels; `stock` returns the costs of the same pieces as stock transformers runs them.

    Args:
        costs: rows of `tables.COSTS`, of one engine.
        calibration: rows of `tables.CALIBRATION`.
        scenarios: workloads by name.

    Raises:
        TangramError: a row appears twice or its seconds are negative or not finite.
    """

    def __init__(self, costs: pd.DataFrame, calibration: pd.DataFrame, scenarios: Mapping[str, Scenario]):
        self.scenarios = dict(scenarios)
        self._times: dict[tuple[Any, ...], float] = {}
        self._sizes: dict[tuple[int, str, str], Sizes] = {}
        for row in records(costs.assign(seconds=steady_seconds(costs))):
            piece = (row.layer_class, row.kind, row.variant)
            key = (*piece, row.scenario, row.phase, row.batch)
            sizes = Sizes(int(row.parameters), int(row.parameter_bytes), int(row.kv_bytes_per_token))
            where = f"costs: {row.kind} '{row.variant}', scenario '{row.scenario}', {row.phase}, batch {row.batch}"
            if key in self._times or self._sizes.setdefault(piece, sizes) != sizes:
                raise TangramError(f"{where} appears twice or with different sizes; {REMEDY}")
            if not 0 <= row.seconds < math.inf:
                raise TangramError(f"{where}: {row.seconds} s against {row.parent_seconds} s of the parent; {REMEDY}")
            self._times[key] = float(row.seconds)
        of_stub = costs[(costs["kind"] == STUB_PIECE[0]) & (costs["variant"] == STUB_PIECE[1])]
        self.counts_stubs = LLAMA_CPP in set(of_stub["engine"])
        self._classes = sorted({piece[0] for piece in self._sizes})
        self._scales: dict[tuple[str, str, int], float] = {}
        for row in records(calibration):
            workload = (row.scenario, row.phase, row.batch)
            if not 0 < row.scale < math.inf or self._scales.setdefault(workload, row.scale) != row.scale:
                raise TangramError(f"calibration: scale {row.scale} of {workload} is unusable or not unique; {REMEDY}")
        self._stock_factors = stock_factors(calibration)

    def stock(self) -> CostModel:
        """Return the costs as stock transformers runs the pieces, by the ratio of both measurements of the parent.

        The costs are the same if the calibration holds no such measurement.
        """
        stock = copy.copy(self)
        stock._scales = {workload: s * self._stock_factors.get(workload, 1.0) for workload, s in self._scales.items()}
        stock._stock_factors = {}
        return stock

    def in_one_type(self, variant: str) -> CostModel:
        """Return the costs of the parent's file in one type: the embedding has the head's type, or is the head.

        The table's embedding is that of a child, a matrix beside that of a head of any type.

        Args:
            variant: the head in that type, such as ``'parent@f16'``.
        """
        head, rest = self.sizes(0, HEAD, variant), self.sizes(0, *REST)
        is_tied = self.sizes(0, HEAD, PARENT).parameters == 0
        stored = Sizes(0, 0, 0) if is_tied else head
        norm = rest.parameters - head.parameters
        other = copy.copy(self)
        sizes = Sizes(norm + stored.parameters, FLOAT32 * norm + stored.parameter_bytes, 0)
        other._sizes = {**self._sizes, self._piece(0, *REST): sizes}
        return other

    def _piece(self, layer: int, kind: str, variant: str) -> tuple[int, str, str]:
        """Return the key of a layer's class: the last class that starts at or before the layer."""
        for first in reversed(self._classes):
            if first <= layer and (first, kind, variant) in self._sizes:
                return first, kind, variant
        raise TangramError(f"costs hold no row of {kind} '{variant}' for layer {layer}; {REMEDY}")

    def sizes(self, layer: int, kind: str, variant: str) -> Sizes:
        """Return a piece's sizes."""
        return self._sizes[self._piece(layer, kind, variant)]

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

    def tokens(self, scenario: str, batch: int) -> int:
        """Return the prompt and generated tokens of a whole batch."""
        workload = self.scenarios[scenario]
        return batch * (workload.prefill + workload.generate)

    def predict(self, architecture: Architecture, scenario: str, batch: int) -> Prediction:
        """Sum the costs of an architecture's pieces; `verify` checks the solver's linear forms against this sum."""
        pieces = [(0, *REST), *architecture.pieces()]
        weights = [1] * len(pieces)
        if stubs := self.excess_stubs(architecture.layers):
            pieces, weights = [*pieces, (0, *STUB_PIECE)], [*weights, -stubs]
        weighted = list(zip(pieces, weights, strict=True))
        prefill, step = (
            self.scale(scenario, phase, batch)
            * math.fsum(weight * self.seconds(*piece, scenario, phase, batch) for piece, weight in weighted)
            for phase in ("prefill", "decode")
        )
        of_pieces = ([weight * size for size in self.sizes(*piece)] for piece, weight in weighted)
        sizes = Sizes(*map(sum, zip(*of_pieces, strict=True)))
        latency = prefill + self.scenarios[scenario].generate * step
        tokens = self.tokens(scenario, batch)
        return Prediction(
            batch=batch,
            throughput=tokens / latency,
            latency=latency,
            time_to_first_token=prefill,
            memory=sizes.memory(tokens),
            parameters=sizes.parameters,
            kv_bytes_per_token=sizes.kv_bytes_per_token,
        )

    def excess_stubs(self, layers: Sequence[LayerChoice]) -> int:
        """Return the number of stubs in the sum over the pieces of layers that the layers do not need."""
        return excess(layers) if self.counts_stubs else 0

    def usage(self, quantity: str, scenario: str, batch: int, layer: int, kind: str, variant: str) -> float:
        """Return one piece's contribution to a quantity; for throughput, its seconds (as for `latency`)."""
        piece = (layer, kind, variant)
        if quantity == "memory":
            return self.sizes(*piece).memory(self.tokens(scenario, batch))
        if quantity in ("parameters", "kv_bytes_per_token"):
            return float(getattr(self.sizes(*piece), quantity))
        prefill = self.scale(scenario, "prefill", batch) * self.seconds(*piece, scenario, "prefill", batch)
        if quantity == "time_to_first_token":
            return prefill
        step = self.scale(scenario, "decode", batch) * self.seconds(*piece, scenario, "decode", batch)
        return prefill + self.scenarios[scenario].generate * step
