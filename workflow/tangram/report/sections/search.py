"""Sections on the search: what was chosen, and what the solver says."""

# ruff: noqa: RUF001 - the typographic signs are meant

from __future__ import annotations

from tangram.config import LAYERS_DROPPED
from tangram.report import figures, tiles
from tangram.report.comparison import rank_correlation, scored_children
from tangram.report.data import BEST, Results
from tangram.report.document import Figure, Part, Section, Table
from tangram.report.prediction import constraint_facts
from tangram.report.style import number


def architectures_section(results: Results, colors: dict[str, str]) -> Section:
    """Return the section `architectures`."""
    rows = []
    for target, solution in results.children:
        architecture = results.architectures.get((target, solution))
        if architecture is None:
            continue
        final = results.final(target, solution)
        speed, divergence = (results.speedup(final), results.heldout(final, "kl")) if final else (None, None)
        notes = (f"{speed.value:.2f} ×" if speed else "", f"KL {number(divergence.value)}" if divergence else "")
        label = "layers dropped" if solution == LAYERS_DROPPED else target if solution == BEST else f"#{solution}"
        rows.append((label, notes, architecture, solution == BEST))
    parts: list[Part] = []
    if rows:
        parts.append(
            Figure(
                tiles.architecture_rows(rows, colors),
                "Attention above, FFN below; layer 0 at the left. Speed-up and KL as measured.",
            )
        )
    return Section(
        "architectures", "Every architecture, side by side", "What the solver gave up first, and last.", parts
    )


def solver_section(results: Results) -> Section:
    """Return the section `solver`."""
    section = Section(
        "solver",
        "What the solver says",
        "A mixed-integer program picks one variant per subblock; solution 0 is proven optimal for the sum of scores.",
    )
    rows = constraint_facts(results)
    if rows:
        section.parts.append(
            Table(
                ["solution", "constraint", "limit", "value", "slack", "price of 1 %", "Σ score", "bound", "gap"],
                rows,
                labels=2,
                caption="Slack is relative to the limit. The price is by how much Σ score, in the LP relaxation, falls "
                "when the limit is loosened by one per cent; no Σ score below the bound is possible, and the gap is "
                "what is left between the two.",
            )
        )
    selected = [
        [
            target,
            found["policy"],
            str(found["candidates"]),
            str(found["selected"]),
            number(found["mean"][found["selected"]]),
            f"{found['evaluated']:,} of {found['candidates'] * found['prompts']:,}",
            f"{found['tokens']:,}",
            f"{found['duels']:,}",
        ]
        for target, found in results.selections.items()
    ]
    if selected:
        columns = ["target", "policy", "candidates", "selected", "its score", "evaluations", "tokens", "duels"]
        caption = (
            "One of the solver’s solutions was selected on prompts of the score split before anything was finetuned. "
            "A duel compares two candidates on a prompt: a vote, where the parent is the judge."
        )
        section.parts.append(Table(columns, selected, labels=2, title="Selected candidates", caption=caption))
    children = scored_children(results)
    drawn = figures.score_against_truth(children)
    if drawn:
        everything = rank_correlation([c.score for c in children], [c.kl.value for c in children])
        own = [c for c in children if c.solution != LAYERS_DROPPED]
        alone = rank_correlation([c.score for c in own], [c.kl.value for c in own])
        said = "Σ score is a ranking signal, not a prediction."
        if everything is not None:
            said += f" Spearman’s ρ over all {len(children)} models {everything:.2f}"
            said += f", over the solver’s {len(own)} children {alone:.2f}." if alone is not None else "."
        section.parts.append(Figure(drawn, said, title="Σ score against the true KL"))
    return section
