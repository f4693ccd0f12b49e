"""Reproduce what can be reproduced of "Efficient NTK using Dimensionality Reduction" (arXiv 2210.04807)."""

from pathlib import Path
from typing import Annotated

import typer

from tangram.cli import run, use_threads
from tangram.config import Studies


def study_ntk(
    settings: Annotated[str, typer.Option(help="config section `studies` as JSON")],
    images: Annotated[Path, typer.Option(help="Fashion-MNIST (npz)")],
    output: Annotated[Path, typer.Option(help="folder to write claims, measurements and the page into")],
    seed: int = 0,
    threads: int = 1,
) -> None:
    """Write claims with verdicts, the measurements behind them, and a page with figures."""
    use_threads(threads, seed)
    import sys

    from tangram.provenance import provenance
    from tangram_studies.data.fashion_mnist import load_images
    from tangram_studies.papers.ntk import ntk_study
    from tangram_studies.study import write_study

    section = Studies.model_validate_json(settings)
    study = ntk_study(
        load_images(images),
        section.scale,
        section.seeds,
        lambda name: print(f"study_ntk: {name}", file=sys.stderr, flush=True),
    )
    about = f"scale {section.scale}, {section.seeds} seeds"
    write_study(study, output, about, provenance("tangram_studies.commands.study_ntk", settings))


if __name__ == "__main__":
    run(study_ntk)
