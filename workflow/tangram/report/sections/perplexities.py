"""Section on the perplexity of texts by the field's conventions."""

# ruff: noqa: RUF001 - typographic signs

from __future__ import annotations

import math

import numpy as np

from tangram.report.data import Results
from tangram.report.document import Cell, Section, Table
from tangram.report.estimates import CONFIDENCE, PARENT_KEY, Estimate, Key
from tangram.report.names import name_of
from tangram.report.style import estimate

UNITS = ("tokens", "words", "bytes")


def log_perplexity(nats: np.ndarray, counts: np.ndarray) -> Estimate:
    """Return the loss per token, word or byte of a text with the standard error of a ratio of means over its parts.

    Args:
        nats: summed loss of each window or page.
        counts: tokens, words or bytes of each; for a paired difference of losses, the same.
    """
    value = float(nats.sum() / counts.sum())
    n = len(nats)
    residuals = nats - value * counts
    error = math.sqrt(n / (n - 1) * float(residuals @ residuals)) / float(counts.sum()) if n > 1 else math.inf
    return Estimate(value, error, n)


def perplexity_section(results: Results) -> Section:
    """Return the section `perplexity`; without parts if the run measures none."""
    section = Section(
        "perplexity",
        "Perplexity of standard texts",
        "Per token: the text is one sequence, read in windows that move by a stride, as in transformers’ "
        "documentation. Per word or byte: lm-eval’s wikitext, page by page. Held-out text has a section of its own.",
    )
    samples = results.perplexities
    texts = list(dict.fromkeys(task for _, task, _ in samples))
    rows: list[list[Cell | str]] = []
    for text in texts:
        unit = next((unit for unit in UNITS if (PARENT_KEY, text, unit) in samples), None)
        if unit is None:
            continue
        for key in dict.fromkeys(key for key, task, _ in samples if task == text):
            rows.append([text, name_of(results, key), *_cells(results, key, text, unit)])
    if rows:
        section.parts.append(
            Table(
                ["text", "model", "per", "windows or pages", "perplexity", "of the parent’s, %", "95 % interval"],
                rows,
                labels=2,
                caption="± is one standard error over windows or pages. All models read the same ones, so ratios are "
                "paired; neighboring windows are not quite independent.",
            )
        )
    return section


def _cells(results: Results, key: Key, text: str, unit: str) -> list[str]:
    """Return the cells of one model on one text: unit, parts, perplexity, and its paired ratio to the parent's."""
    samples = results.perplexities
    nats, counts = samples[key, text, "nats"], samples[key, text, unit]
    loss = log_perplexity(nats, counts)
    shown = Estimate(math.exp(loss.value), math.exp(loss.value) * (loss.standard_error or 0))
    cells = [unit.removesuffix("s"), str(loss.n), estimate(shown)]
    parent = samples[PARENT_KEY, text, "nats"]
    if key == PARENT_KEY or len(parent) != len(nats):
        return [*cells, "–", "–"]
    ratio = log_perplexity(nats - parent, counts)
    half = CONFIDENCE * (ratio.standard_error or 0)
    interval = f"{100 * math.exp(ratio.value - half):.2f} to {100 * math.exp(ratio.value + half):.2f}"
    return [*cells, f"{100 * math.exp(ratio.value):.2f}", interval if math.isfinite(half) else "–"]
