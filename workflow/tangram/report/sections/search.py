"""Sections on the search: architectures and solver."""

# ruff: noqa: RUF001 - typographic signs

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tangram.config import RANDOM_WEIGHTS
from tangram.report import figures, tiles
from tangram.report.comparison import Scored, rank_correlation, scored_children
from tangram.report.data import BEST, Results
from tangram.report.document import Figure, Part, Section, Table
from tangram.report.estimates import Key
from tangram.report.names import SEARCH_NAMES, short_name, solution_name
from tangram.report.prediction import constraint_facts, predicted_speedup
from tangram.report.style import estimate, number

CORRELATED = 4  # smallest number of models whose rank correlation is shown


def architectures_section(results: Results, colors: dict[str, str]) -> Section:
    """Return the section `architectures`."""
    rows = []
    for target, solution in results.children:
        architecture = results.architectures.get((target, solution))
        if architecture is None:
            continue
        final = results.final(target, solution)
        speed, divergence = (results.speedup(final), results.heldout(final, "kl")) if final else (None, None)
        notes = (f"{speed.value:.2f} ×" if speed else "", f"KL {number(divergence.value, 2)}" if divergence else "")
        rows.append((short_name(results, target, solution), notes, architecture, solution == BEST))
    parts: list[Part] = []
    if rows:
        parts.append(
            Figure(
                tiles.architecture_rows(rows, colors),
                "Attention above, FFN below, the LM head at the right; layer 0 at the left. Color: structure; texture: "
                "precision. Measured speed-up over the stock parent, and measured KL.",
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
            number(_score_of_selected(selection)),
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
            "compares two candidates on a prompt; with the parent as judge, it is a vote. Evaluations are those before "
            "any training; the score of a candidate that was finetuned for the selection is its KL after that."
        )
        section.parts.append(Table(columns, selected, labels=2, title="Selected candidates", caption=caption))
    section.parts.extend(_rounds_table(results))
    section.parts.extend(_searches_table(results))
    section.parts.extend(_score_parts(results, scored_children(results)))
    return section


def _rounds_table(results: Results) -> list[Table]:
    """Return the table of the rounds before the last one; no table if no target has several rounds."""
    rows = [
        [
            target,
            str(each["round"]),
            "; ".join(each["limits"]),
            number(each["kl_before"]),
            number(each["kl_after"]),
            f"{each['finetune_tokens']:,}",
            each["kept"],
        ]
        for target, rounds in results.rounds.items()
        for each in rounds
    ]
    heads = ["target", "round", "limits", "KL before training", "KL after", "tokens", "weights kept"]
    caption = (
        "The child was compressed in rounds. These are the ones before the last, whose child is solution 0: it goes on "
        "from their weights, so its KL before finetuning is that of a child with some training. KL is measured on the "
        "score split, in nats per token."
    )
    return [Table(heads, rows, labels=2, title="Rounds", caption=caption)] if rows else []


def _score_of_selected(selection: Mapping[str, Any]) -> float:
    """Return the selected candidate's mean score: of finetuned ones the KL after their last training."""
    selected = selection["selected"]
    trainings = selection.get("finetuned")
    return float(trainings[-1]["kl"][str(selected)] if trainings else selection["mean"][selected])


def _searches_table(results: Results) -> list[Table]:
    """Return the table of the searches that targets compare with the solver's; no table without any."""
    compared = {target for target, solution in results.children if solution in SEARCH_NAMES}
    rows = []
    for target, solution in results.children:
        architecture = results.architectures.get((target, solution))
        if target not in compared or architecture is None or solution not in (BEST, *SEARCH_NAMES):
            continue
        speed = predicted_speedup(results, target, solution)
        rows.append(
            [
                target,
                SEARCH_NAMES.get(solution, "Tangram"),
                f"{speed:.3f} ×" if speed else "–",
                number(None if solution == RANDOM_WEIGHTS else results.sum_of_scores(architecture)),
                *(estimate(results.heldout(Key(target, solution, model), "kl")) for model in ("child", "finetuned")),
            ]
        )
    heads = ["target", "search", "predicted speed-up", "Σ score", "KL before finetuning", "KL after finetuning"]
    caption = (
        "All searches have the same options, costs and limits. KL is measured on held-out text, in nats per token, "
        "± one standard error."
    )
    return [Table(heads, rows, labels=2, title="Beside other searches", caption=caption)] if rows else []


def _score_parts(results: Results, children: list[Scored]) -> list[Part]:
    """Return figure and table of the sums of scores beside the true KL."""
    drawn = figures.score_against_truth(results, children)
    if not drawn:
        return []
    caption = "Σ score ranks architectures; it does not predict their KL."
    solved = [child for child in children if child.solution.isdigit()]
    for models, words in ((children, f"all {len(children)} models"), (solved, f"the solver’s {len(solved)} children")):
        correlation = rank_correlation([c.score for c in models], [c.kl.value for c in models])
        if len(models) >= CORRELATED and correlation is not None:
            caption += f" Spearman’s ρ over {words} is {correlation:.2f}."
    rows = [
        [
            solution_name(results, child.target, child.solution),
            number(child.score),
            estimate(child.kl),
            number(child.kl.value / child.score) if child.score > 0 else "–",
        ]
        for child in children
    ]
    heads = ["model", "Σ score, nats/token", "KL before finetuning, nats/token", "KL / Σ score"]
    return [Figure(drawn, caption, title="Σ score against the true KL"), Table(heads, rows)]
