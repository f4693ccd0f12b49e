"""Tables whose numbers can be added up on paper."""

import pandas as pd
import pytest
from synthetic_library import Library, cost, score

from tangram.config import Scenario


@pytest.fixture
def by_hand() -> Library:
    """Two layers, numbers that can be added up on paper; the job of 'gqa-1' ran while the machine was twice as slow."""
    costs = []
    for phase, unit in (("prefill", 1.0), ("decode", 0.1)):
        for kind, variant, seconds, parent, size, kv in (
            ("attention", "parent", 2.0, 2.0, 400, 8),
            ("attention", "gqa-1", 2.0, 4.0, 200, 4),
            ("attention", "no-op", 0.0, 2.0, 0, 0),
            ("ffn", "parent", 3.0, 3.0, 800, 0),
            ("ffn", "no-op", 0.0, 3.0, 0, 0),
            ("model", "parent", 1.0, 1.0, 400, 0),
            ("head", "parent", 4.0, 4.0, 600, 0),
        ):
            sizes = {"parameters": size // 4, "parameter_bytes": size, "kv_bytes_per_token": kv}
            costs.append(cost(kind, variant, "chat", phase, 2, seconds * unit, parent * unit, **sizes))
    rows = [
        {"model": "parent", "scenario": "chat", "phase": phase, "batch": 2, "scale": scale}
        | dict.fromkeys(("subblock_seconds", "fixed_seconds", "measured_seconds"), 1.0)
        for phase, scale in (("prefill", 1.0), ("decode", 2.0))
    ]
    scores = [
        score(layer, kind, variant, value + layer)
        for layer in (0, 1)
        for kind, variant, value in (("attention", "gqa-1", 0.1), ("attention", "no-op", 0.2), ("ffn", "no-op", 0.4))
    ]
    scenarios = {"chat": Scenario(prefill=6, generate=10, batch_sizes=(2,))}
    return Library(pd.DataFrame(scores), pd.DataFrame(costs), pd.DataFrame(rows), scenarios, 2)
