"""Score a variant or pair for a range of layers: the parent with one subblock, a whole layer or the head replaced."""

from typing import Annotated

import typer

from tangram.cli import ONE_THREAD, PiecesOption, RuntimeOption, reads, reads_model, run, writes
from tangram.config import Scores


def score_blocks(
    settings: Annotated[str, typer.Option(help="config section `scores` as JSON")],
    pieces: PiecesOption,
    parent: Annotated[str, reads_model("parent")],
    corpus: Annotated[str, reads("score split")],
    library: Annotated[str, reads("the weights of the pieces or pairs (safetensors)")],
    output: Annotated[str, writes("SCORES table")],
    activations: Annotated[str | None, reads("cached activations; recomputed if omitted")] = None,
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write KL(parent ‖ child), LM loss increase, cosine distance and token agreement of every piece or pair."""
    runtime.start()
    from tqdm import tqdm

    from tangram.activations import open_activations
    from tangram.blocks import Variant
    from tangram.blocks.architecture import LayerChoice, pieces_of
    from tangram.blocks.base import PAIR
    from tangram.blocks.registry import get_block, modules_of_variants
    from tangram.corpus.tokens import read_tokens
    from tangram.library.pieces import read_piece
    from tangram.models.by_layer import load_by_layer
    from tangram.models.capability import check_capability
    from tangram.models.families import shape_of
    from tangram.models.loading import load_model
    from tangram.provenance import provenance
    from tangram.scores.replace_one import ReplaceOne
    from tangram.tables import SCORES, write_table

    section = Scores.model_validate_json(settings)
    kind, variant = pieces.kind, pieces.variant
    members = pieces_of(LayerChoice.parse(variant)) if kind == PAIR else [(kind, variant)]
    names = [name for _, name in members]
    check_capability([Variant.parse(name).precision for name in names], runtime.device)
    model = (load_by_layer if runtime.by_layer else load_model)(parent, runtime.dtype, runtime.device)
    input_ids = read_tokens(corpus)
    states = open_activations(activations, model, input_ids, section.batch_size, runtime.local_copy)
    options = section.position_stride, section.batch_size
    scorer = ReplaceOne(model, states, input_ids, *options, compute=section.compute)
    rows = []
    for layer in tqdm(pieces.layers, desc=f"score_blocks {kind} {variant}", mininterval=5):
        tensors = {of_kind: read_piece(library, layer, of_kind) for of_kind, _ in members}
        if kind == PAIR:
            rows += scorer.score_pair(layer, LayerChoice.parse(variant), tensors)
        else:
            rows += scorer.score_piece(layer, get_block(kind, variant, shape_of(parent)), tensors[kind])
    modules = modules_of_variants(names)
    write_table(rows, SCORES, output, provenance("tangram.commands.score_blocks", settings, runtime.device, modules))


if __name__ == "__main__":
    run(score_blocks)
