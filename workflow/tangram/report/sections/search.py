"""Sections on the search: architectures and solver."""

# ruff: noqa: RUF001 - typographic signs

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
        "architectures", "Architectures of all targets", "Variants of every solution, by layer and kind.", parts
    )


def solver_section(results: Results) -> Section:
    """Return the section `solver`."""
    section = Section(
        "solver",
        "Solver",
        "A mixed-integer program chooses one variant per subblock; solution 0 has the proven minimal sum of scores.",
    )
    rows = constraint_facts(results)
    if rows:
        section.parts.append(
            Table(
                ["solution", "constraint", "limit", "value", "slack", "price of 1 %", "Σ score", "bound", "gap"],
                rows,
                labels=2,
                caption="Slack is relative to the limit. The price is the decrease of the LP relaxation’s Σ score when "
                "the limit is loosened by 1 %. The bound is a proven lower bound of Σ score, and the gap is their "
                "relative distance.",
            )
        )
    selected = [
        [
            target,
            selection["policy"],
            str(selection["candidates"]),
            str(selection["selected"]),
            number(selection["mean"][selection["selected"]]),
            f"{selection['evaluated']:,} of {selection['candidates'] * selection['prompts']:,}",
            f"{selection['tokens']:,}",
            f"{selection['duels']:,}",
        ]
        for target, selection in results.selections.items()
    ]
    if selected:
        columns = ["target", "policy", "candidates", "selected", "its score", "evaluations", "tokens", "duels"]
        caption = (
            "One of the solver’s solutions was selected on prompts of the score split before finetuning. A duel "
            "compares two candidates on a prompt; with the parent as judge, it is a vote."
        )
        section.parts.append(Table(columns, selected, labels=2, title="Selected candidates", caption=caption))
    children = scored_children(results)
    drawn = figures.score_against_truth(children)
    if drawn:
        correlation = rank_correlation([c.score for c in children], [c.kl.value for c in children])
        solved = [c for c in children if c.solution != LAYERS_DROPPED]
        solved_correlation = rank_correlation([c.score for c in solved], [c.kl.value for c in solved])
        caption = "Σ score ranks architectures; it does not predict their KL."
        if correlation is not None:
            caption += f" Spearman’s ρ over all {len(children)} models is {correlation:.2f}"
            caption += (
                f", over the solver’s {len(solved)} children {solved_correlation:.2f}."
                if solved_correlation is not None
                else "."
            )
        section.parts.append(Figure(drawn, caption, title="Σ score against the true KL"))
    return section
