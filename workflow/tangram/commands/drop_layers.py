"""The baseline of the search: drop as many whole layers as the target's speed allows."""

from typing import Annotated

import typer

from tangram.cli import reads, reads_model, run, writes


def drop_layers(
    settings: Annotated[str, typer.Option(help="the config's `target`, `search` and `scenarios` as JSON")],
    scores: Annotated[str, reads("SCORES table")],
    costs: Annotated[str, reads("COSTS table")],
    calibration: Annotated[str, reads("CALIBRATION table")],
    parent: Annotated[str, reads_model("parent, of which config.json is read")],
    solutions: Annotated[str, writes("layers, dropped layers, predicted speeds (JSON)")],
) -> None:
    """Write the architecture that drops the layers whose two no-op scores have the smallest sums."""
    import sys
    from pathlib import Path

    from tangram.config import LAYERS_DROPPED
    from tangram.provenance import provenance
    from tangram.search.drop_layers import drop_whole_layers
    from tangram.search.problem import Settings, load_problem
    from tangram.search.solutions import save_solutions
    from tangram.search.summary import architecture_summary, beside_parent, speeds

    problem = load_problem(Settings.model_validate_json(settings), *map(Path, (scores, costs, calibration, parent)))
    architecture, batches, dropped = drop_whole_layers(problem)
    entry = {"solution": LAYERS_DROPPED, "layers_dropped": list(dropped)}
    entry |= architecture_summary(problem, architecture, batches)
    print(f"drop_layers: {len(dropped)} layers dropped, predicted speed-up {speeds(entry)}", file=sys.stderr)
    save_solutions(beside_parent(problem, [entry]), solutions, provenance("tangram.commands.drop_layers", settings))


if __name__ == "__main__":
    run(drop_layers)
