"""Score one variant of one kind for a range of layers: the parent with one subblock replaced."""

from typing import Annotated

import typer

from tangram.cli import run, use_threads
from tangram.config import Scores


def score_blocks(
    settings: Annotated[str, typer.Option(help="config section `scores` as JSON")],
    kind: Annotated[str, typer.Option(help="attention or ffn")],
    variant: Annotated[str, typer.Option(help="e.g. gqa-1, width-0.5, linear, no-op")],
    layers: Annotated[str, typer.Option(help="first-last layer, e.g. 00-14")],
    parent: Annotated[str, typer.Option(help="parent's folder")],
    corpus: Annotated[str, typer.Option(help="score split")],
    library: Annotated[str, typer.Option(help="the pieces' weights (safetensors)")],
    output: Annotated[str, typer.Option(help="SCORES table to write")],
    activations: Annotated[str | None, typer.Option(help="cached activations; streamed without")] = None,
    by_layer: Annotated[int, typer.Option(help="1: hold one layer's weights at a time")] = 0,
    local_copy: Annotated[int, typer.Option(help="1: read the cache from a copy in $TMPDIR")] = 0,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int = 1,
) -> None:
    """Write KL(parent ‖ child), LM loss increase and token agreement of every layer's piece."""
    use_threads(threads, device=device)
    from tqdm import tqdm

    from tangram.activations import open_activations
    from tangram.corpus.tokens import read_tokens
    from tangram.library.pieces import read_piece
    from tangram.models.by_layer import load_by_layer
    from tangram.models.loading import load_model
    from tangram.models.replace import build_layer
    from tangram.provenance import provenance
    from tangram.scores.replace_one import ReplaceOne
    from tangram.tables import SCORES, write_table

    section = Scores.model_validate_json(settings)
    model = (load_by_layer if by_layer else load_model)(parent, dtype, device)
    input_ids = read_tokens(corpus)
    states = open_activations(activations, model, input_ids, section.batch_size, bool(local_copy))
    scorer = ReplaceOne(model, states, input_ids, section.position_stride, section.batch_size)
    first, last = (int(part) for part in layers.split("-"))
    rows = []
    for layer in tqdm(range(first, last + 1), desc=f"score_blocks {kind} {variant}", mininterval=5):
        candidate = build_layer(model, layer, kind, variant, read_piece(library, layer, kind))
        for row in scorer.score(layer, candidate):
            rows.append({"layer": layer, "kind": kind, "variant": variant, **row})
    write_table(rows, SCORES, output, provenance("tangram.commands.score_blocks", settings, device))


if __name__ == "__main__":
    run(score_blocks)
