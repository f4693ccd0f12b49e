import numpy as np
import pytest

from tangram.report.loading import load_results
from tangram.report.sections.long_texts import long_context_section
from tangram.tables import CORPUS, LONG_CONTEXT, write_table

RNG = np.random.default_rng(0)
PARENT = RNG.random(60) < 0.8
CHILD = PARENT & (RNG.random(60) < 0.6)


def rows(model: str, right: np.ndarray, length: int = 512) -> list[dict]:
    row = {"model": model, "task": "needle", "length": length, "depth": 0.5}
    return [
        {**row, "sample": i, "metric": metric, "value": value}
        for i, is_right in enumerate(right)
        for metric, value in (("acc", float(is_right)), ("margin", 1.0), ("chance", 0.25))
    ]


def write(folder):
    write_table(
        rows("parent", PARENT) + rows("parent", CHILD, 256), LONG_CONTEXT, folder / "parent_long_context.parquet"
    )
    both = rows("child", CHILD) + rows("finetuned", PARENT)
    write_table(both, LONG_CONTEXT, folder / "targets/fast/0/long_context.parquet")


def test_the_section_shows_paired_differences(tmp_path):
    write(tmp_path)
    sequence = {"sequence_id": 0, "source": "text", "input_ids": [1] * 256, "documents": ["a"], "document_starts": [0]}
    write_table([sequence], CORPUS, tmp_path / "corpus/finetune.parquet")
    (table,) = long_context_section(load_results(tmp_path)).parts
    parent, child, finetuned = (row for row in table.rows if row[1] == "512 (2 ×)")  # noqa: RUF001
    assert parent[3:5] == ["60", "25.0 %"]
    assert float(parent[5].split(" ±")[0]) == pytest.approx(100 * PARENT.mean(), abs=0.1)
    assert parent[6:] == ["–", "–"]  # noqa: RUF001
    differences = 100 * (CHILD.astype(float) - PARENT)
    low, high = (float(end.replace("−", "-")) for end in child[7].split(" to "))  # noqa: RUF001
    half = 1.96 * differences.std(ddof=1) / np.sqrt(60)
    assert (low, high) == pytest.approx((differences.mean() - half, differences.mean() + half), abs=0.06)
    assert finetuned[6:] == ["0", "–"]  # noqa: RUF001
    assert [row[1] for row in table.rows if row not in (parent, child, finetuned)] == ["256 (1 ×)"]  # noqa: RUF001


def test_a_run_without_the_split_shows_lengths_alone(tmp_path):
    write(tmp_path)
    (table,) = long_context_section(load_results(tmp_path)).parts
    assert {row[1] for row in table.rows} == {"256", "512"}


def test_a_run_without_long_context_has_no_table(tmp_path):
    assert long_context_section(load_results(tmp_path)).parts == []
