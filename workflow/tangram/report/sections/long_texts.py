"""Section on long context: accuracy by task and length, and its paired difference from the parent's."""

# ruff: noqa: RUF001 - typographic signs

from __future__ import annotations

import numpy as np

from tangram.report.data import Results
from tangram.report.document import Cell, Section, Table
from tangram.report.estimates import PARENT_KEY, Estimate, Key
from tangram.report.names import name_of
from tangram.report.samples import mean_of
from tangram.report.style import estimate, percent_interval
from tangram.tables import CORPUS, read_arrow


def long_context_section(results: Results) -> Section:
    """Return the section `long-context`; without parts if the run measures none."""
    section = Section(
        "long-context",
        "Long context",
        "Questions about statements that are hidden in held-out text. The answer is the likeliest choice, and all "
        "choices stand in the text. All models answer the same questions, so the relevant number is their paired "
        "difference.",
    )
    samples = results.long_context
    trained = _trained_length(results)
    rows: list[list[Cell | str]] = []
    for case in dict.fromkeys(case for _, case, _ in samples):
        task, length = case.rsplit(" ", 1)
        shown = f"{int(length):,}" + (f" ({int(length) / trained:g} ×)" if trained else "")
        for key in dict.fromkeys(key for key, of, _ in samples if of == case):
            rows.append([task, shown, name_of(results, key), *_cells(results, key, case)])
    if rows:
        heads = ["questions", "chance", "accuracy, %", "− parent’s, points", "95 % interval"]
        caption = "± is one standard error over questions; intervals are of paired differences; – if no answer differs."
        if trained:
            caption += f" In brackets: the length as a multiple of the {trained} tokens that children are finetuned on."
        section.parts.append(Table(["task", "tokens", "model", *heads], rows, labels=3, caption=caption))
    return section


def _trained_length(results: Results) -> int | None:
    """Return the tokens of a sequence that children are finetuned on; None if the run lacks the split."""
    path = results.folder / "corpus" / "finetune.parquet"
    return len(read_arrow(path, CORPUS)["input_ids"][0]) if path.exists() else None


def paired_difference(values: np.ndarray, parent: np.ndarray | None) -> Estimate | None:
    """Return the mean difference of a model's values from the parent's on the same questions; None without them."""
    return mean_of(values - parent) if parent is not None and len(parent) == len(values) else None


def _cells(results: Results, key: Key, case: str) -> list[str]:
    """Return the cells of one model: questions, chance, accuracy, and its paired difference from the parent's."""
    samples = results.long_context
    values = samples[key, case, "acc"]
    chance = f"{samples[key, case, 'chance'].mean():.1%}".replace("%", " %")
    cells = [str(len(values)), chance, estimate(mean_of(values).times(100), least=1)]
    found = None if key == PARENT_KEY else paired_difference(values, samples.get((PARENT_KEY, case, "acc")))
    if found is None:
        return [*cells, "–", "–"]
    interval = percent_interval(found) if found.standard_error else "–"
    return [*cells, estimate(found.times(100), signed=True, least=1), interval]
