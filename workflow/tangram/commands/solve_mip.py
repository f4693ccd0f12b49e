"""Choose one variant per subblock: the proven minimum of the sum of scores within a target's limits."""

from typing import Annotated

import typer

from tangram.cli import reads, reads_model, run, writes


def solve_mip(
    settings: Annotated[str, typer.Option(help="the config's `target`, `search` and `scenarios` as JSON")],
    scores: Annotated[str, reads("SCORES table")],
    costs: Annotated[str, reads("COSTS table")],
    calibration: Annotated[str, reads("CALIBRATION table")],
    parent: Annotated[str, reads_model("parent, of which config.json is read")],
    solutions: Annotated[str, writes("layers, bounds, slacks, predicted speeds (JSON)")],
    table: Annotated[str, writes("SOLUTIONS table")],
) -> None:
    """Write a target's diverse solutions, the first of which is proven optimal, and how costs could change that one."""
    import sys
    from pathlib import Path

    from tangram.provenance import provenance
    from tangram.search.problem import Settings, load_problem
    from tangram.search.sensitivity import sensitivity
    from tangram.search.solutions import save_solutions
    from tangram.search.solve import solve
    from tangram.search.summary import beside_parent, solution_rows, solver_entries, speeds
    from tangram.tables import CALIBRATION, COSTS, SOLUTIONS, read_table, write_table

    section = Settings.model_validate_json(settings)
    problem = load_problem(section, *map(Path, (scores, costs, calibration, parent)))
    diverse = solve(problem, section.search)
    entries = solver_entries(problem, diverse)
    for entry in entries:
        print(
            f"solve_mip: solution {entry['solution']}: sum of scores {entry['objective']:.4f}, gap {entry['gap']:.1e}, "
            f"predicted speed-up {speeds(entry)}",
            file=sys.stderr,
        )
    if section.search.sensitivity:
        tables = read_table(costs, COSTS), read_table(calibration, CALIBRATION)
        entries[0]["sensitivity"] = sensitivity(problem, section.search, diverse[0].architecture, *tables)
    metadata = provenance("tangram.commands.solve_mip", settings)
    write_table(solution_rows(problem, diverse), SOLUTIONS, table, metadata)
    save_solutions(beside_parent(problem, entries), solutions, metadata)


if __name__ == "__main__":
    run(solve_mip)
