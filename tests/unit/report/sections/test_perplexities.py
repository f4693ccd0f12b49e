# ruff: noqa: RUF001 - typographic signs

import math

import numpy as np
import pytest

from tangram.report.loading import load_results
from tangram.report.sections.perplexities import log_perplexity, perplexity_section
from tangram.tables import SAMPLES, write_table

RNG = np.random.default_rng(0)
COUNTS = RNG.integers(5, 50, size=40).astype(float)
PARENT = COUNTS * (3 + 0.3 * RNG.standard_normal(40))
CHILD = PARENT * 1.02 + 0.2 * RNG.standard_normal(40)


def bootstrap(statistic, draws: int = 2000) -> float:
    rng = np.random.default_rng(1)
    indices = rng.integers(0, 40, size=(draws, 40))
    return float(np.std([statistic(part) for part in indices], ddof=1))


def test_losses_have_the_error_of_a_bootstrap_over_parts():
    found = log_perplexity(PARENT, COUNTS)
    assert found.value == pytest.approx(PARENT.sum() / COUNTS.sum())
    assert found.n == 40
    alone = bootstrap(lambda i: PARENT[i].sum() / COUNTS[i].sum())
    assert found.standard_error == pytest.approx(alone, rel=0.1)
    paired = log_perplexity(CHILD - PARENT, COUNTS).standard_error
    expected = bootstrap(lambda i: CHILD[i].sum() / COUNTS[i].sum() - PARENT[i].sum() / COUNTS[i].sum())
    assert paired == pytest.approx(expected, rel=0.1)
    assert paired < 0.3 * alone
    assert log_perplexity(PARENT[:1], COUNTS[:1]).standard_error == math.inf


def rows(model: str, nats: np.ndarray) -> list[dict]:
    return [
        {"model": model, "task": "wiki", "sample": i, "metric": metric, "value": float(value)}
        for metric, values in (("nats", nats), ("words", COUNTS))
        for i, value in enumerate(values)
    ]


def test_the_section_shows_paired_ratios(tmp_path):
    write_table(rows("parent", PARENT), SAMPLES, tmp_path / "parent_perplexity.parquet")
    write_table(
        rows("child", CHILD) + rows("finetuned", PARENT), SAMPLES, tmp_path / "targets/fast/0/perplexity.parquet"
    )
    section = perplexity_section(load_results(tmp_path))
    (table,) = section.parts
    parent, child, finetuned = table.rows
    loss = PARENT.sum() / COUNTS.sum()
    assert parent[2:4] == ["word", "40"]
    assert float(parent[4].split(" ±")[0]) == pytest.approx(math.exp(loss), rel=0.02)
    assert parent[5:] == ["–", "–"]
    ratio = math.exp((CHILD.sum() - PARENT.sum()) / COUNTS.sum())
    low, high = map(float, child[6].split(" to "))
    assert float(child[5]) == pytest.approx(100 * ratio, abs=0.01)
    assert low < 100 * ratio < high
    assert finetuned[5:] == ["100.00", "100.00 to 100.00"]


def test_a_run_without_texts_has_no_table(tmp_path):
    assert perplexity_section(load_results(tmp_path)).parts == []
