"""Print a run's summary: time per stage, and speed and quality of its children."""

from typing import Annotated

import typer

from tangram.cli import run


def print_summary(
    results: Annotated[str, typer.Option(help="the run's folder")],
    settings: Annotated[str | None, typer.Option(help="see `build_report`; without it, all files count")] = None,
) -> None:
    """Print the summary to standard output."""
    from tangram.report.data import Settings
    from tangram.report.loading import load_results
    from tangram.report.summary import summary_text

    print(summary_text(load_results(results, Settings.model_validate_json(settings) if settings else None)))


if __name__ == "__main__":
    run(print_summary)
