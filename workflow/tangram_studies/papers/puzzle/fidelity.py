"""Is the sum of scores true? Sums beside the true losses of many children per target, before and after a short GKD.

The paper shows no such comparison. Children are the program's diverse solutions, random choices within the limit, and
random walks of an evolutionary search from the program's best.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tangram.blocks.architecture import Architecture, from_json
from tangram.config import Evolution
from tangram.report.document import Table
from tangram.selection.agreement import Fidelity, fidelity
from tangram_studies.papers.puzzle.common import Bench, add_claim, record_child
from tangram_studies.papers.puzzle.space import SEARCH, Space, plain
from tangram_studies.papers.puzzle.training import ADOPTED, weights
from tangram_studies.search_fidelity import SOURCES, Settings
from tangram_studies.search_fidelity import children_of as children_by_source
from tangram_studies.study import Interval, Study

OBJECTIVES = {"kl": "kl", "lm_loss_increase": "loss"}  # metric of the scores: metric of a child


def children_of(space: Space, speed: float, count: int) -> list[Architecture]:
    """Return distinct children within a limit: the program's, random ones and walks; more random ones for missing."""
    problem = space.problem(speed)
    (batches,) = problem.batch_grid()
    settings = Settings(SEARCH, -(-count // len(SOURCES)), Evolution(), 0)
    found = [child for group in children_by_source(problem, batches, settings).values() for child in group]
    for draw in range(settings.per_source, 2 * count):
        if len(found) < count and (architecture := space.rival("random", speed, 0, draw)) not in found:
            found.append(architecture)
    return found


def compared(space: Space, speed: float, count: int) -> list[dict[str, Any]]:
    """Return the result of `children_of` as JSON."""
    return [plain(architecture) for architecture in children_of(space, speed, count)]


def fidelity_experiment(bench: Bench, study: Study) -> None:
    """Measure children per target, finetune some of them shortly, and compare sums with losses."""
    scale, rows = bench.scale, list[list[str]]()
    tasks = [{"space": bench.space, "speed": speed, "count": scale.children} for speed in scale.speeds]
    for speed, found in zip(scale.speeds, bench.work.run(compared, tasks, "children to compare"), strict=True):
        children = [from_json(architecture) for architecture in found]
        before = bench.children(children)
        step = max(1, len(children) // scale.finetuned)
        chosen = list(range(0, len(children), step))
        settings = {**weights(ADOPTED), "budget": {"tokens": scale.budgets[0]}}
        trained = [{"architecture": plain(children[i]), "training": settings, "seed": 0} for i in chosen]
        after = bench.finetuned(trained, "short global distillation")
        problems = {metric: bench.space.problem(speed, 0, metric) for metric in OBJECTIVES}
        sums = {metric: np.array([each.objective(child) for child in children]) for metric, each in problems.items()}
        for number, metrics in enumerate(before):
            record_child(study, "fidelity", f"child {number}", 0, metrics, speed)
            study.record("fidelity", f"child {number}", 0, "sum of KL scores", sums["kl"][number], speed)
        for number, metrics in zip(chosen, after, strict=True):
            record_child(study, "fidelity after GKD", f"child {number}", 0, metrics, speed)
        true = {name: np.array([np.mean(m[name]) for m in before]) for name in ("kl", "loss")}
        finetuned = np.array([np.mean(m["kl"]) for m in after])
        pairs = {
            "sum of KL, true KL": (sums["kl"], true["kl"]),
            "sum of LM loss, true LM loss": (sums["lm_loss_increase"], true["loss"]),
            "sum of KL, true LM loss": (sums["kl"], true["loss"]),
            "sum of KL, KL after GKD": (sums["kl"][chosen], finetuned),
            "true KL, KL after GKD": (true["kl"][chosen], finetuned),
        }
        results = {name: fidelity(*values) for name, values in pairs.items()}
        rows += [[f"{speed:g}", name, *_cells(result)] for name, result in results.items()]
        _claim(study, speed, results)
    columns = ["target", "prediction and truth", "children", "tau (95 %)", "rho", "regret 1, 5, 10", "sum / true"]
    caption = (
        "tau: Kendall's, with a bootstrap interval over children; rho: Spearman's; regret: how much worse the best of "
        "the k children of smallest prediction truly is than the best of all, in nats; sum / true: median."
    )
    study.figures.append(Table(columns, rows, 2, caption, "Sums and true losses"))


def _cells(result: Fidelity) -> list[str]:
    regret = ", ".join(f"{value:.3f}" for value in result.regret.values())
    tau = f"{result.tau:.2f} ({result.tau_low:.2f} to {result.tau_high:.2f})"
    return [str(result.children), tau, f"{result.rho:.2f}", regret, f"{result.ratio:.2f}"]


def _claim(study: Study, speed: float, found: dict[str, Fidelity]) -> None:
    for claim, name, statement in (
        ("sum-order", "sum of KL, true KL", "the sum of scores orders assembled children (tau above 0.5)"),
        ("gkd-order", "true KL, KL after GKD", "a short GKD keeps the order of children (tau above 0.5)"),
    ):
        result = found[name]
        add_claim(
            study,
            Interval(result.tau, result.tau_low, result.tau_high),
            above=0.5,
            claim=f"{claim}-{speed:g}",
            statement=statement,
            where="section 4; not shown in the paper",
            seeds=result.children,
            unit="Kendall's tau",
            note=f"at {speed:g} times the speed; seeds are children; the interval is a bootstrap over them",
        )
