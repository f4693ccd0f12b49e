"""Score one variant of one kind for a range of layers by the parent's answers with one subblock replaced."""

from typing import Annotated

from tangram.cli import ONE_THREAD, PiecesOption, RuntimeOption, reads, reads_model, run, writes


def score_tasks(
    pieces: PiecesOption,
    questions: Annotated[str, reads("questions of train halves (JSON)")],
    parent: Annotated[str, reads_model("parent")],
    library: Annotated[str, reads("the pieces' weights (safetensors)")],
    output: Annotated[str, writes("SCORES table")],
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write the decrease of accuracy and of the right choice's log-odds with every layer's piece."""
    runtime.start()
    from tqdm import tqdm

    from tangram.blocks import Variant
    from tangram.blocks.registry import get_block, modules_of_variants
    from tangram.config.limits import positions
    from tangram.library.pieces import read_piece
    from tangram.models.by_layer import load_by_layer
    from tangram.models.capability import check_capability
    from tangram.models.families import shape_of
    from tangram.models.loading import load_model, load_tokenizer
    from tangram.provenance import provenance
    from tangram.scores.answers import AnswerScores
    from tangram.scores.questions import load_questions
    from tangram.tables import SCORES, write_table

    check_capability([Variant.parse(pieces.variant).precision], runtime.device)
    model = (load_by_layer if runtime.by_layer else load_model)(parent, runtime.dtype, runtime.device)
    asked = load_questions(questions)
    scorer = AnswerScores(model, load_tokenizer(parent), asked, positions(model.config.to_dict()))
    kind, variant = pieces.kind, pieces.variant
    block = get_block(kind, variant, shape_of(parent))
    rows = []
    for layer in tqdm(pieces.layers, desc=f"score_tasks {kind} {variant}", mininterval=5):
        rows += scorer.score_piece(layer, block, read_piece(library, layer, kind))
    modules = modules_of_variants([variant])
    write_table(rows, SCORES, output, provenance("tangram.commands.score_tasks", "", runtime.device, modules))


if __name__ == "__main__":
    run(score_tasks)
