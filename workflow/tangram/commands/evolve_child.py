"""The evolutionary search on the true score of assembled children, as a rival of the mixed-integer program."""

from typing import Annotated

import typer

from tangram.cli import ONE_THREAD, RuntimeOption, reads, reads_model, run, writes


def evolve_child(
    settings: Annotated[str, typer.Option(help="the config's `target`, `search` and `scenarios` as JSON")],
    text: Annotated[str, typer.Option(help="the config section `scores` as JSON")],
    scores: Annotated[str, reads("SCORES table")],
    costs: Annotated[str, reads("COSTS table")],
    calibration: Annotated[str, reads("CALIBRATION table")],
    parent: Annotated[str, reads_model("parent")],
    corpus: Annotated[str, reads("score split")],
    library: Annotated[str, typer.Option(help="library folder, {kind}/{variant}/{shard}.safetensors")],
    shards: Annotated[str, typer.Option(help="all shards, e.g. 00-14,15-29")],
    solutions: Annotated[str, writes("layers, the course of the search, predicted speeds (JSON)")],
    activations: Annotated[str | None, reads("cached activations; recomputed if omitted")] = None,
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write the architecture of the smallest true score that level switches reach within the budget."""
    runtime.start()
    import sys
    from pathlib import Path

    from tangram.activations import open_activations
    from tangram.blocks.architecture import pieces_of
    from tangram.blocks.registry import modules_of_variants
    from tangram.config import EVOLUTIONARY, Scores
    from tangram.corpus.tokens import read_tokens
    from tangram.library.pieces import read_library
    from tangram.models.loading import load_model
    from tangram.provenance import provenance
    from tangram.search import rivals
    from tangram.search.evolutionary import evolve
    from tangram.search.objective import objective_of
    from tangram.search.problem import Settings, load_problem
    from tangram.search.solutions import save_solutions
    from tangram.search.solve import solve
    from tangram.search.summary import architecture_summary, beside_parent, speeds
    from tangram.selection.assembled import AssembledScores

    section, of_text = Settings.model_validate_json(settings), Scores.model_validate_json(text)
    problem = load_problem(section, *map(Path, (scores, costs, calibration, parent)))
    if section.search.evolution.start == "mip":
        solution = solve(problem, section.search)[0]
        start, batches = solution.architecture, solution.batches
    else:
        start, batches = rivals.run("random", problem, section.search, runtime.seed)
    model, input_ids = load_model(parent, runtime.dtype, runtime.device), read_tokens(corpus)
    states = open_activations(activations, model, input_ids, of_text.batch_size, runtime.local_copy)
    truth = AssembledScores(
        model,
        states,
        input_ids,
        read_library(library, tuple(shards.split(","))),
        of_text.batch_size,
        of_text.position_stride,
        objective_of(section.target, section.search),
    )
    evolved = evolve(problem, batches, start, truth.look, truth.sequences, section.search.evolution, runtime.seed)
    entry = {"solution": EVOLUTIONARY, "curve": [list(point) for point in evolved.curve]}
    entry |= architecture_summary(problem, evolved.architecture, batches)
    (_, first), (evaluations, last) = evolved.curve[0], evolved.curve[-1]
    print(
        f"evolve_child: true objective on the score split {first:.4f} to {last:.4f} in "
        f"{evaluations:.0f} evaluations, predicted speed-up {speeds(entry)}",
        file=sys.stderr,
    )
    options = {option.choice for group in problem.options for option in group}
    modules = modules_of_variants({variant for choice in options for _, variant in pieces_of(choice)})
    metadata = provenance("tangram.commands.evolve_child", settings, runtime.device, modules)
    save_solutions(beside_parent(problem, [entry]), solutions, metadata)


if __name__ == "__main__":
    run(evolve_child)
