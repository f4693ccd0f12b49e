"""Another search on the solver's problem, such as the greedy one, as a rival of the mixed-integer program."""

from typing import Annotated

import typer

from tangram.cli import ONE_THREAD, RuntimeOption, reads, reads_model, run, writes


def search_rival(
    settings: Annotated[str, typer.Option(help="the config's `target`, `search` and `scenarios` as JSON")],
    rival: Annotated[str, typer.Option(help="name of the search, such as greedy")],
    scores: Annotated[str, reads("SCORES table")],
    costs: Annotated[str, reads("COSTS table")],
    calibration: Annotated[str, reads("CALIBRATION table")],
    parent: Annotated[str, reads_model("parent, of which config.json is read")],
    solutions: Annotated[str, writes("layers, predicted speeds (JSON)")],
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write the architecture that another search finds within the target's limits."""
    import sys
    from pathlib import Path

    from tangram.errors import TangramError, nearest
    from tangram.provenance import provenance
    from tangram.search import rivals
    from tangram.search.problem import Settings, load_problem
    from tangram.search.solutions import save_solutions
    from tangram.search.summary import architecture_summary, beside_parent, speeds

    if rival not in rivals.ALGORITHMS:
        raise TangramError(f"--rival: '{rival}' is not a search{nearest(rival, list(rivals.ALGORITHMS))}")
    section = Settings.model_validate_json(settings)
    problem = load_problem(section, *map(Path, (scores, costs, calibration, parent)))
    architecture, batches = rivals.run(rival, problem, section.search, runtime.seed)
    entry = {"solution": rival, **architecture_summary(problem, architecture, batches)}
    print(
        f"search_rival: {rival}: sum of scores {entry['sum_of_scores']:.4f}, predicted speed-up {speeds(entry)}",
        file=sys.stderr,
    )
    save_solutions(beside_parent(problem, [entry]), solutions, provenance("tangram.commands.search_rival", settings))


if __name__ == "__main__":
    run(search_rival)
