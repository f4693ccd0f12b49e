"""Time per stage of a run."""

from __future__ import annotations

from tangram.report.data import Results

STAGES = (
    "fetch_parent",
    "build_corpus",
    "capture_activations",
    "measure_moments",
    "distill_blocks",
    "distill_pairs",
    "quantize_blocks",
    "score_blocks",
    "extract_score_tasks",
    "score_tasks",
    "score_layers",
    "collect_scores",
    "measure_costs",
    "collect_costs",
    "calibrate_costs",
    "solve_mip",
    "drop_layers",
    "uniform_precision",
    "search_rival",
    "drop_by_influence",
    "evolve_child",
    "pin_candidates",
    "select_child",
    "iterate_child",
    "pin_architecture",
    "assemble_child",
    "finetune_child",
    "evaluate_parent",
    "evaluate_model",
    "measure_speed",
    "extract_tasks",
    "evaluate_parent_tasks",
    "evaluate_tasks",
    "evaluate_parent_perplexity",
    "evaluate_perplexity",
    "evaluate_parent_long_context",
    "evaluate_long_context",
    "export_gguf",
    "export_parent",
    "evaluate_parent_engine",
    "evaluate_engine",
)


def stage_order(rule: str) -> tuple[int, str]:
    """Return a sort key that puts rules in the order of the data flow, unknown rules last."""
    return (STAGES.index(rule) if rule in STAGES else len(STAGES)), rule


def stage_seconds(results: Results) -> list[tuple[str, int, float]]:
    """Return rule, number of jobs and sum of seconds by stage, in the order of the data flow, without the report."""
    groups = results.benchmarks[results.benchmarks["rule"] != "build_report"].groupby("rule")["seconds"]
    stages = [(str(rule), len(part), float(part.sum())) for rule, part in groups]
    return sorted(stages, key=lambda stage: stage_order(stage[0]))
