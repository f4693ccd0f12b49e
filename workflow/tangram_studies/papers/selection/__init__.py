"""Selection of children: policies replayed on a full table of children and prompts, and online ranking of layers.

The questions are ours: do dueling bandits (arXiv 1405.3396) and online ranking (arXiv 1308.6797) help the pipeline?
Every child is scored on every prompt once. Each policy then chooses by replay, in many orders of the prompts, and the
full table evaluates its choice. Costs have two separate units: tokens (scores are cached, so repeated reads are free)
and votes of a judge.
"""

from __future__ import annotations

from tangram_studies.papers.selection.evidence import (
    SCALES,
    Evidence,
    Scale,
    Settings,
    measure,
    save_evidence,
    unfinished,
)
from tangram_studies.papers.selection.layers import rank_layers
from tangram_studies.papers.selection.replay import FLIP, record_table, replay_tokens, replay_votes, report
from tangram_studies.study import Job, NotReproduced, Study


def run_study(job: Job) -> Study:
    """Run the study for the rule, and write all scores to ``evidence.npz``, for replays of other policies."""
    job.runtime.start()
    name = Settings.model_validate_json(job.settings).studies.scale
    evidence = measure(job, SCALES[name])
    save_evidence(evidence, job.folder / "evidence.npz")
    study = reproduce(evidence, SCALES[name], job.runtime.seed)
    study.about, study.unfinished = f"scale {name}", list(unfinished(job))
    return study


def reproduce(evidence: Evidence, scale: Scale, seed: int) -> Study:
    """Return the finished study of the measured evidence.

    Args:
        evidence: scores of candidates and importance of layers.
        scale: size of the study.
        seed: seed of all random numbers.
    """
    replications = scale.replications
    study = Study("selection", "Which child is best after all?", "1405.3396, 1308.6797")
    arms, prompts = evidence.scores.shape
    for name, table in (("table", evidence.scores), ("table, reported", evidence.reported)):
        for arm, row in enumerate(table):
            for prompt, value in enumerate(row):
                study.record(name, f"candidate {arm}", prompt, "kl", value)
    record_table(study, evidence)
    choices = replay_tokens(study, evidence, replications, seed)
    report(study, evidence, choices)
    replay_votes(study, evidence, scale, seed)
    rank_layers(study, evidence, scale, seed)
    study.notes += [
        f"{arms} diverse solutions of one target, {prompts} prompts of {evidence.prompt_tokens} tokens sampled from "
        f"the parent, {replications} orders of them with shuffled labels of candidates; KL(parent ‖ child) per token, "
        "before finetuning.",
        "Regret is the chosen child's KL minus the best one's, on the full table; eps-best: a regret of at most one "
        "standard error of the paired difference of the best two.",
        "The k-th duel of every pair is on the k-th prompt of the order, so that pairs share cells.",
        f"Candidates agree on their first layers: {evidence.shared:.0%} of the layer passes were saved by running "
        "shared ones once. Counted tokens ignore this.",
        f"The judge is simulated: the lower KL on a prompt wins, and one vote in {1 / FLIP:.0f} is wrong.",
        "A layer's importance is the KL of the parent to the parent without that layer.",
    ]
    study.not_reproduced.append(
        NotReproduced(
            "votes of the parent in the replay",
            "every child would have to generate a continuation of every prompt",
            "`selection.metric: judge` under a target: `select_child` asks the parent, within a budget",
        )
    )
    return study
