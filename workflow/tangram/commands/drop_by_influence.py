"""Whole layers dropped by block influence, as a rival of the search."""

from typing import Annotated

import typer

from tangram.cli import ONE_THREAD, RuntimeOption, reads, reads_model, run, writes


def drop_by_influence(
    settings: Annotated[str, typer.Option(help="the config's `target`, `search` and `scenarios` as JSON")],
    scores: Annotated[str, reads("SCORES table")],
    costs: Annotated[str, reads("COSTS table")],
    calibration: Annotated[str, reads("CALIBRATION table")],
    parent: Annotated[str, reads_model("parent")],
    corpus: Annotated[str, reads("score split")],
    batch_size: Annotated[int, typer.Option(help="sequences per forward pass")],
    solutions: Annotated[str, writes("layers, dropped layers and influences, predicted speeds (JSON)")],
    activations: Annotated[str | None, reads("cached activations; recomputed if omitted")] = None,
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write the architecture that drops the layers that change the parent's hidden states least."""
    runtime.start()
    import sys
    from pathlib import Path

    from tangram.activations import open_activations
    from tangram.config import BLOCK_INFLUENCE
    from tangram.corpus.tokens import read_tokens
    from tangram.models.by_layer import load_by_layer
    from tangram.models.loading import load_model
    from tangram.provenance import provenance
    from tangram.scores.influence import block_influence
    from tangram.search.drop_layers import drop_whole_layers
    from tangram.search.problem import Settings, load_problem
    from tangram.search.solutions import save_solutions
    from tangram.search.summary import architecture_summary, beside_parent, speeds

    problem = load_problem(Settings.model_validate_json(settings), *map(Path, (scores, costs, calibration, parent)))
    model = (load_by_layer if runtime.by_layer else load_model)(parent, runtime.dtype, runtime.device)
    states = open_activations(activations, model, read_tokens(corpus), batch_size, runtime.local_copy)
    influence = block_influence(states, problem.num_layers)
    architecture, batches, dropped = drop_whole_layers(problem, influence)
    entry = {"solution": BLOCK_INFLUENCE, "layers_dropped": list(dropped), "influence": influence}
    entry |= architecture_summary(problem, architecture, batches)
    print(f"drop_by_influence: {len(dropped)} layers dropped, predicted speed-up {speeds(entry)}", file=sys.stderr)
    metadata = provenance("tangram.commands.drop_by_influence", settings, runtime.device)
    save_solutions(beside_parent(problem, [entry]), solutions, metadata)


if __name__ == "__main__":
    run(drop_by_influence)
