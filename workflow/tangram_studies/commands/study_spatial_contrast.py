"""Study: deep unsupervised learning through spatial contrasting (arXiv 1610.00243)."""

from typing import Annotated

import typer

from tangram.cli import run, use_threads
from tangram.config import Studies


def study_spatial_contrast(
    settings: Annotated[str, typer.Option(help="config section `studies` as JSON")],
    images: Annotated[str, typer.Option(help="natural images and labels (npz)")],
    digits: Annotated[str, typer.Option(help="digits and labels (npz)")],
    output: Annotated[str, typer.Option(help="folder of claims, measurements and page")],
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Write `claims.parquet`, `measurements.parquet` and `report.html`; ``threads`` trainings run side by side."""
    use_threads(1, device=device)
    from tangram.provenance import provenance
    from tangram_studies.papers.spatial_contrast import spatial_contrast
    from tangram_studies.study import write_study

    section = Studies.model_validate_json(settings)
    study = spatial_contrast(section, images, digits, device, threads)
    made_by = provenance("tangram_studies.commands.study_spatial_contrast", settings, device)
    write_study(study, output, f"scale {section.scale}, {section.seeds} seeds", made_by)


if __name__ == "__main__":
    run(study_spatial_contrast)
