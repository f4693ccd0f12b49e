"""Reproduce what can be reproduced of the fixed-butterfly paper (arXiv 2007.08864), and try it on a language model."""

from pathlib import Path
from typing import Annotated

import typer

from tangram.cli import run, use_threads
from tangram.config import Studies


def study_butterfly(
    settings: Annotated[str, typer.Option(help="config section `studies` as JSON")],
    images: Annotated[Path, typer.Option(help="Fashion-MNIST (npz)")],
    parent: Annotated[Path, typer.Option(help="parent's folder")],
    distil: Annotated[Path, typer.Option(help="distil split")],
    score: Annotated[Path, typer.Option(help="score split")],
    output: Annotated[Path, typer.Option(help="folder to write claims, measurements and the page into")],
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
    threads: int = 1,
) -> None:
    """Write claims with verdicts, the measurements behind them, and a page with figures."""
    use_threads(threads, seed, device)
    import sys

    from tangram.blocks.registry import modules_of_variants
    from tangram.corpus.tokens import read_tokens
    from tangram.images import load_images
    from tangram.models.families import shape_of
    from tangram.provenance import provenance
    from tangram.studies.butterfly import butterfly_study
    from tangram.studies.butterfly.language_model import language_model
    from tangram.studies.study import write_study

    def tell(name: str) -> None:
        print(f"study_butterfly: {name}", file=sys.stderr, flush=True)

    section = Studies.model_validate_json(settings)
    study = butterfly_study(load_images(images), section.scale, section.seeds, tell)
    depth = shape_of(parent).num_layers
    layers = range(depth) if section.scale == "full" else sorted({depth * (2 * i + 1) // 10 for i in range(5)})
    sequences = None if section.scale == "full" else 12
    tokens = read_tokens(distil)[:sequences]
    language_model(study, parent, tokens, read_tokens(score), list(layers), device, dtype, tell)
    about = f"scale {section.scale}, {section.seeds} seeds"
    made_by = provenance("tangram.commands.study_butterfly", settings, device, modules_of_variants())
    write_study(study, output, about, made_by)


if __name__ == "__main__":
    run(study_butterfly)
