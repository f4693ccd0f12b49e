"""The optimum by trying everything, without any code of the search."""

import itertools
import re

import numpy as np
from synthetic_library import Library


class BruteForce:
    """Every architecture at every combination of batch sizes, straight from the tables' rows."""

    def __init__(self, tables: Library):
        self.tables = tables
        scores = {(r.layer, r.kind, r.variant): r.value for r in tables.scores.itertuples()}
        names = [["parent", *sorted({v for _, k, v in scores if k == kind})] for kind in ("attention", "ffn")]
        self.pairs = list(itertools.product(*names))  # the parent's first
        self.heads = ["parent", *sorted({v for _, k, v in scores if k == "head"})]
        options = [range(len(self.pairs))] * tables.num_layers
        chosen = np.array(list(itertools.product(*options, range(len(self.heads)))))
        self.chosen, self.head = chosen[:, :-1], chosen[:, -1]
        self.objectives = np.array([scores.get((0, "head", head), 0.0) for head in self.heads])[self.head]
        for layer in range(tables.num_layers):
            parts = [
                scores.get((layer, "attention", a), 0.0) + scores.get((layer, "ffn", f), 0.0) for a, f in self.pairs
            ]
            whole = [
                scores.get((layer, "block", f"{a}+{f}"), part) for (a, f), part in zip(self.pairs, parts, strict=True)
            ]
            self.objectives += np.array(whole)[self.chosen[:, layer]]
        clock, self.steady, self.sizes = {}, {}, {}
        for r in tables.costs.itertuples():
            clock.setdefault((r.kind, r.scenario, r.phase, r.batch), []).append(r.parent_seconds)
        for r in tables.costs.itertuples():
            workload = (r.scenario, r.phase, r.batch)
            seconds = r.seconds / r.parent_seconds * np.median(clock[r.kind, *workload])
            self.steady[r.kind, r.variant, *workload] = seconds
            self.sizes[r.kind, r.variant] = np.array([r.parameters, r.parameter_bytes, r.kv_bytes_per_token])
        self.stubs = np.zeros(len(self.chosen))
        if set(tables.costs["engine"]) == {"llama.cpp"}:
            self.stubs = np.array([self.stubs_too_many([self.pairs[i] for i in layers]) for layers in self.chosen])
        self.scale = {(r.scenario, r.phase, r.batch): r.scale for r in tables.calibration.itertuples()}

    def total(self, value) -> np.ndarray:
        """Sum ``value(kind, variant)`` over the pieces of every architecture."""
        by_pair = np.array([value("attention", a) + value("ffn", f) for a, f in self.pairs])
        by_head = np.array([value("head", head) for head in self.heads])
        stubs = np.multiply.outer(self.stubs, value("ffn", "no-op")) if self.stubs.any() else 0
        return by_pair[self.chosen].sum(1) + by_head[self.head] + value("model", "parent") - stubs

    @staticmethod
    def stubs_too_many(layers) -> int:
        """Compare the stubs in the costs of subblocks with those of the model: of a linear map with bias (M), and of an
        attention (A) or a map without bias (U) that no FFN (F) follows."""
        letters = {"no-op": "", "linear": "M", "linear-unbiased": "U"}
        counted = {"attention": {"linear": 1}, "ffn": {"no-op": 1, "linear": 2, "linear-unbiased": 2}}
        pieces = [(kind, variant) for pair in layers for kind, variant in zip(("attention", "ffn"), pair, strict=True)]
        model = "".join(letters.get(variant, kind[0].upper()) for kind, variant in pieces)
        return sum(counted[kind].get(variant, 0) for kind, variant in pieces) - len(re.findall("M|[AU](?!F)", model))

    def values(self, scenario: str, batch: int) -> dict[str, np.ndarray]:
        prefill, step = (
            self.scale[scenario, phase, batch]
            * self.total(lambda kind, variant, phase=phase: self.steady[kind, variant, scenario, phase, batch])
            for phase in ("prefill", "decode")
        )
        parameters, parameter_bytes, kv_bytes = self.total(lambda kind, variant: self.sizes[kind, variant]).T
        workload = self.tables.scenarios[scenario]
        tokens = batch * (workload.prefill + workload.generate)
        latency = prefill + workload.generate * step
        return {
            "throughput": tokens / latency,
            "latency": latency,
            "time_to_first_token": prefill,
            "memory": parameter_bytes + tokens * kv_bytes,
            "parameters": parameters,
            "kv_bytes_per_token": kv_bytes,
        }

    def best(self, constraints: list[dict], earlier=(), max_shared: float = 1.0) -> float:
        """Return the smallest sum of scores, or infinity; ``earlier`` are architectures to share few layers with."""
        names = list(self.tables.scenarios)
        grids = [self.tables.scenarios[name].batch_sizes for name in names]
        values = {(n, b): self.values(n, b) for n, grid in zip(names, grids, strict=True) for b in grid}
        allowed = np.full(len(self.chosen), True)
        for architecture in earlier:
            other = [self.pairs.index((choice.attention, choice.ffn)) for choice in architecture.layers]
            allowed &= (self.chosen == other).sum(1) <= max_shared * len(other) + 1e-9
        found = np.inf
        for batches in itertools.product(*grids):
            size = dict(zip(names, batches, strict=True))
            feasible = allowed.copy()
            for c in constraints:
                name = c["scenario"] or names[0]
                mine = values[name, size[name]][c["quantity"]]
                reference = mine[0] if c["relative_to_parent"] else 1.0
                if c["quantity"] == "throughput":
                    if c["relative_to_parent"]:
                        reference = self.parent_throughput(constraints, name, values)
                    feasible &= mine >= c["min"] * reference * (1 - 1e-9)
                else:
                    feasible &= mine <= c["max"] * reference * (1 + 1e-9)
            found = min(found, self.objectives[feasible].min(initial=np.inf))
        return found

    def parent_throughput(self, constraints, name, values) -> float:
        absolute = [c for c in constraints if c["scenario"] == name and not c["relative_to_parent"]]
        caps = [c["max"] for c in absolute if c["quantity"] == "memory"]
        grid = [values[name, b] for b in self.tables.scenarios[name].batch_sizes]
        return max(v["throughput"][0] for v in grid if all(v["memory"][0] <= cap for cap in caps))
