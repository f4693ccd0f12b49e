"""Study: semi-supervised deep learning by metric embedding (arXiv 1611.01449)."""

from typing import Annotated

import typer

from tangram.cli import run, use_threads
from tangram.config import Studies


def study_metric_embedding(
    settings: Annotated[str, typer.Option(help="config section `studies` as JSON")],
    images: Annotated[str, typer.Option(help="images and labels (npz)")],
    output: Annotated[str, typer.Option(help="folder of claims, measurements and page")],
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Write `claims.parquet`, `measurements.parquet` and `report.html`; ``threads`` trainings run side by side."""
    use_threads(1, device=device)
    from tangram.provenance import provenance
    from tangram_studies.papers.metric_embedding import metric_embedding
    from tangram_studies.study import write_study

    section = Studies.model_validate_json(settings)
    study = metric_embedding(section, images, device, threads)
    made_by = provenance("tangram_studies.commands.study_metric_embedding", settings, device)
    write_study(study, output, f"scale {section.scale}, {section.seeds} seeds", made_by)


if __name__ == "__main__":
    run(study_metric_embedding)
