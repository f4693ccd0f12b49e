"""The plain alternative to the search: drop whole layers, until the child would be faster than its target asks."""

from pathlib import Path
from typing import Annotated

import typer

from tangram.cli import run


def drop_layers(
    settings: Annotated[str, typer.Option(help="the config's `target`, `search` and `scenarios` as JSON")],
    scores: Annotated[Path, typer.Option(help="SCORES table")],
    costs: Annotated[Path, typer.Option(help="COSTS table")],
    calibration: Annotated[Path, typer.Option(help="CALIBRATION table")],
    parent: Annotated[Path, typer.Option(help="parent's folder; only its config.json is read")],
    architecture: Annotated[Path, typer.Option(help="architecture to write, JSON")],
    summary: Annotated[Path, typer.Option(help="JSON to write: layers dropped, predicted speeds")],
) -> None:
    """Write the architecture that drops the layers whose two no-op scores have the smallest sums."""
    import json
    import sys

    from tangram.blocks.architecture import save_architecture
    from tangram.files import write_text
    from tangram.provenance import provenance
    from tangram.search.baselines import drop_whole_layers
    from tangram.search.problem import Settings, load_problem
    from tangram.search.summary import architecture_summary

    problem = load_problem(Settings.model_validate_json(settings), scores, costs, calibration, parent)
    chosen, batches, dropped = drop_whole_layers(problem)
    content = {"layers_dropped": list(dropped), **architecture_summary(problem, chosen, batches)}
    speeds = ", ".join(f"{name} {numbers['speedup']:.3f} x" for name, numbers in content["scenarios"].items())
    print(f"drop_layers: {len(dropped)} layers dropped, predicted speed-up {speeds}", file=sys.stderr)
    save_architecture(chosen, architecture)
    made_by = provenance("tangram.commands.drop_layers", settings)
    write_text(summary, json.dumps({**content, "provenance": made_by}, indent=2) + "\n")


if __name__ == "__main__":
    run(drop_layers)
