"""Build the report: one self-contained HTML page from a run's tables."""

from typing import Annotated

import typer

from tangram.cli import run, writes


def build_report(
    settings: Annotated[str, typer.Option(help="`run` and the other fields of `report.data.Settings` as JSON")],
    results: Annotated[str, typer.Option(help="the run's folder")],
    output: Annotated[str, writes("page (HTML)")],
) -> None:
    """Write the page; a note replaces each part whose tables the run lacks."""
    from tangram.files import write_text
    from tangram.report.data import Settings
    from tangram.report.loading import load_results
    from tangram.report.page import render_page

    write_text(output, render_page(load_results(results, Settings.model_validate_json(settings))))


if __name__ == "__main__":
    run(build_report)
