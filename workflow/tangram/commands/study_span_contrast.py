"""Study: does a span-contrastive term help distillation, after spatial contrasting (arXiv 1610.00243)?"""

from typing import Annotated

import typer

from tangram.cli import run, use_threads
from tangram.config import Finetune, PackageFile, Section, Studies


class Settings(Section):
    """The slices of config that this command takes."""

    studies: Studies
    finetune: Finetune
    archive: PackageFile | None


def study_span_contrast(
    settings: Annotated[str, typer.Option(help="`studies`, `finetune` and the `archive` of tasks as JSON")],
    parent: Annotated[str, typer.Option(help="parent's folder")],
    child: Annotated[str, typer.Option(help="assembled child's folder")],
    corpus: Annotated[str, typer.Option(help="finetune split")],
    score: Annotated[str, typer.Option(help="score split, to tune on")],
    heldout: Annotated[str, typer.Option(help="held-out split")],
    output: Annotated[str, typer.Option(help="folder of claims, measurements and page")],
    activations: Annotated[str | None, typer.Option(help="the parent's, of the finetune split")] = None,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int = 1,
) -> None:
    """Write `claims.parquet`, `measurements.parquet` and `report.html`; ``threads`` trainings run side by side."""
    use_threads(1, device=device)
    from tangram.archives import fetch_archive
    from tangram.evaluation.readout import read_classification
    from tangram.provenance import provenance
    from tangram.studies.span_contrast import Files, span_contrast
    from tangram.studies.study import write_study

    sections = Settings.model_validate_json(settings)
    texts = None
    if sections.archive is not None:
        texts = read_classification(fetch_archive(sections.archive), "intent_recognition")
    files = Files(parent, child, corpus, score, heldout, device, dtype, activations)
    study = span_contrast(sections.studies, sections.finetune, files, texts, threads)
    made_by = provenance("tangram.commands.study_span_contrast", settings, device)
    write_study(study, output, f"scale {sections.studies.scale}, {sections.studies.seeds} seeds", made_by)


if __name__ == "__main__":
    run(study_span_contrast)
