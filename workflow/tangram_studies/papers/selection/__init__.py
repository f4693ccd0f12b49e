"""Which child is best after all? Policies replayed on a full table of children and prompts; layers ranked online.

No paper's claims: questions of ours about what dueling bandits (arXiv 1405.3396) and online ranking (arXiv 1308.6797)
are worth inside the pipeline. Every child is scored on every prompt once; then each policy chooses by replay, in many
orders of the prompts, and its choice is judged by the full table. Two kinds of cost, never mixed: tokens (a score once
computed is kept, so that a second look is free), and votes of a judge.
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
    """Run the study as the rule asks; ``evidence.npz`` holds the scores for whoever has a policy of their own."""
    job.runtime.start()
    name = Settings.model_validate_json(job.settings).studies.scale
    evidence = measure(job, SCALES[name])
    save_evidence(evidence, job.folder / "evidence.npz")
    study = reproduce(evidence, SCALES[name], job.runtime.seed)
    study.about, study.unfinished = f"scale {name}", list(unfinished(job))
    return study


def reproduce(evidence: Evidence, scale: Scale, seed: int) -> Study:
    """Answer the questions from what was measured.

    Args:
        evidence: scores of candidates and importance of layers.
        scale: the size.
        seed: every random number follows from it.
    """
    replications = scale.replications
    study = Study("selection", "Which child is best after all?", "1405.3396, 1308.6797")
    arms, prompts = evidence.scores.shape
    for name, table in (("table", evidence.scores), ("table, reported", evidence.reported)):
        for arm, row in enumerate(table):
            for prompt, value in enumerate(row):
                study.record(name, f"candidate {arm}", prompt, "kl", value)
    record_table(study, evidence)
    found = replay_tokens(study, evidence, replications, seed)
    report(study, evidence, found)
    replay_votes(study, evidence, scale, seed)
    rank_layers(study, evidence, scale, seed)
    study.notes += [
        f"{arms} diverse solutions of one target, {prompts} prompts of {evidence.prompt_tokens} tokens that the parent "
        f"wrote, {replications} orders of them, candidates under other labels in each; KL(parent ‖ child) per token, "
        "before finetuning.",
        "Regret is how much larger the chosen child's KL is than the best one's, on the full table; eps-best: within "
        "one standard error of the paired difference of the best two.",
        "A pair's k-th duel is on the k-th prompt of the order, so cells are shared between pairs.",
        f"Candidates agree on their first layers: {evidence.shared:.0%} of the layer passes were saved by running "
        "shared ones once. Counted tokens do not know of it.",
        f"The judge is simulated: the lower KL on a prompt wins, and one vote in {1 / FLIP:.0f} is wrong.",
        "A layer's importance is the KL of the parent to itself without it: replace-1-block scores with nothing in its "
        "place.",
    ]
    study.not_reproduced.append(
        NotReproduced(
            "votes of the parent in the replay",
            "every child would have to write a continuation of every prompt, token by token",
            "`selection.metric: judge` under a target: `select_child` asks the parent, within a budget",
        )
    )
    return study
