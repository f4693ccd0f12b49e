"""The baseline of the search: drop as many whole layers as the target's speed allows."""

from typing import Annotated

import typer

from tangram.cli import reads, reads_each, reads_model, run, writes


def drop_layers(
    settings: Annotated[str, typer.Option(help="the config's `target`, `search` and `scenarios` as JSON")],
    scores: Annotated[str, reads("SCORES table")],
    costs: Annotated[str, reads("COSTS table")],
    calibration: Annotated[str, reads("CALIBRATION table")],
    parent: Annotated[str, reads_model("parent, of which config.json is read")],
    solutions: Annotated[str, writes("layers, dropped layers and importances, predicted speeds (JSON)")],
    layers: Annotated[
        list[str] | None,
        reads_each("SCORES tables of dropped layers, of all shards; sums of no-ops' scores if omitted"),
    ] = None,
) -> None:
    """Write the architecture that drops the layers without which, one at a time, the parent loses least."""
    import sys
    from pathlib import Path

    import pandas as pd

    from tangram.config import LAYERS_DROPPED
    from tangram.provenance import provenance
    from tangram.search.drop_layers import drop_whole_layers, joint_importance
    from tangram.search.objective import objective_of
    from tangram.search.problem import Settings, load_problem
    from tangram.search.solutions import save_solutions
    from tangram.search.summary import architecture_summary, beside_parent, speeds
    from tangram.tables import SCORES, read_table

    section = Settings.model_validate_json(settings)
    problem = load_problem(section, *map(Path, (scores, costs, calibration, parent)))
    importance = None
    if layers:
        table = pd.concat([read_table(path, SCORES) for path in layers], ignore_index=True)
        importance = joint_importance(table, objective_of(section.target, section.search), problem.num_layers)
    architecture, batches, dropped = drop_whole_layers(problem, importance)
    entry = {"solution": LAYERS_DROPPED, "layers_dropped": list(dropped)}
    entry |= {} if importance is None else {"importance": importance}
    entry |= architecture_summary(problem, architecture, batches)
    print(f"drop_layers: {len(dropped)} layers dropped, predicted speed-up {speeds(entry)}", file=sys.stderr)
    save_solutions(beside_parent(problem, [entry]), solutions, provenance("tangram.commands.drop_layers", settings))


if __name__ == "__main__":
    run(drop_layers)
