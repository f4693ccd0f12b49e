"""Reproduce a paper: online ranking."""

from typing import Annotated

import typer

from tangram.cli import run
from tangram.config import Studies


def study_online_ranking(
    settings: Annotated[str, typer.Option(help="config section `studies` as JSON")],
    output: Annotated[str, typer.Option(help="folder for claims.parquet, measurements.parquet and report.html")],
    seed: int = 0,
    threads: int = 1,
) -> None:
    """Write claims with verdicts, the measurements behind them, and a page."""
    from tangram.provenance import provenance
    from tangram_studies.papers.online_ranking import run_study
    from tangram_studies.study import write_study

    section = Studies.model_validate_json(settings)
    made_by = provenance("tangram_studies.commands.study_online_ranking", settings)
    write_study(run_study(section, seed, threads), output, f"scale {section.scale}", made_by)


if __name__ == "__main__":
    run(study_online_ranking)
