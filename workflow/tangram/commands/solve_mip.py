"""Choose one subblock per layer and kind: the least sum of scores that keeps a target's limits, proven so."""

from pathlib import Path
from typing import Annotated

import typer

from tangram.cli import run


def solve_mip(
    settings: Annotated[str, typer.Option(help="the config's `target`, `search` and `scenarios` as JSON")],
    scores: Annotated[Path, typer.Option(help="SCORES table")],
    costs: Annotated[Path, typer.Option(help="COSTS table")],
    calibration: Annotated[Path, typer.Option(help="CALIBRATION table")],
    parent: Annotated[Path, typer.Option(help="parent's folder; only its config.json is read")],
    solutions: Annotated[Path, typer.Option(help="SOLUTIONS table to write")],
    summary: Annotated[Path, typer.Option(help="JSON to write: bounds, slacks, predicted speeds")],
    architectures: Annotated[Path, typer.Option(help="folder to write {rank}/architecture.json into")],
) -> None:
    """Write a target's diverse solutions, rank 0 proven best."""
    import json
    import sys

    from tangram.blocks.architecture import save_architecture
    from tangram.files import write_text
    from tangram.provenance import provenance
    from tangram.search.mip import solve
    from tangram.search.problem import Settings, load_problem
    from tangram.search.summary import solution_rows, solutions_summary
    from tangram.tables import SOLUTIONS, write_table

    section = Settings.model_validate_json(settings)
    problem = load_problem(section, scores, costs, calibration, parent)
    found = solve(problem, section.search)
    made_by = provenance("tangram.commands.solve_mip", settings)
    content = solutions_summary(problem, found)
    for entry, solution in zip(content["solutions"], found, strict=True):
        save_architecture(solution.architecture, architectures / str(entry["rank"]) / "architecture.json")
        speeds = ", ".join(f"{name} {numbers['speedup']:.3f} x" for name, numbers in entry["scenarios"].items())
        print(
            f"solve_mip: rank {entry['rank']}: sum of scores {entry['objective']:.4f}, gap {entry['gap']:.1e}, "
            f"predicted speed-up {speeds}",
            file=sys.stderr,
        )
    write_table(solution_rows(problem, found), SOLUTIONS, solutions, made_by)
    write_text(summary, json.dumps({**content, "provenance": made_by}, indent=2) + "\n")


if __name__ == "__main__":
    run(solve_mip)
