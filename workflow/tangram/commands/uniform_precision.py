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
    import sys
    from pathlib import Path

    from tangram.errors import TangramError
    from tangram.provenance import provenance
    from tangram.search.problem import Settings, load_problem
    from tangram.search.solutions import save_solutions
    from tangram.search.summary import architecture_summary, beside_parent, speeds
    from tangram.search.uniform import uniform_precisions

    problem = load_problem(Settings.model_validate_json(settings), *map(Path, (scores, costs, calibration, parent)))
    entries = []
    for name, architecture in uniform_precisions(problem).items():
        batches = problem.usual_batches(architecture)
        entries.append({"solution": name, **architecture_summary(problem, architecture, batches)})
        print(f"uniform_precision: {name}, predicted speed-up {speeds(entries[-1])}", file=sys.stderr)
    if not entries:
        raise TangramError(
            "scores hold no precision of the parent for every subblock and the head; add one, such as parent@int8, to "
            "library.attention, library.ffn and library.head"
        )
    metadata = provenance("tangram.commands.uniform_precision", settings)
    save_solutions(beside_parent(problem, entries), solutions, metadata)


if __name__ == "__main__":
    run(uniform_precision)
