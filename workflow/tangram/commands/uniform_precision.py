"""The baselines of uniform precision: the parent with every subblock and the head in one precision."""

from typing import Annotated

import typer

from tangram.cli import reads, reads_model, run, writes


def uniform_precision(
    settings: Annotated[str, typer.Option(help="the config's `target`, `search` and `scenarios` as JSON")],
    scores: Annotated[str, reads("SCORES table")],
    costs: Annotated[str, reads("COSTS table")],
    calibration: Annotated[str, reads("CALIBRATION table")],
    parent: Annotated[str, reads_model("parent, of which config.json is read")],
    solutions: Annotated[str, writes("one solution per precision, predicted speeds (JSON)")],
) -> None:
    """Write one architecture for each precision in which the tables hold the parent's attention, FFN and head."""
    from pathlib import Path

    from tangram.search.problem import Settings, load_problem

    load_problem(Settings.model_validate_json(settings), *map(Path, (scores, costs, calibration, parent)))
    raise NotImplementedError


if __name__ == "__main__":
    run(uniform_precision)
