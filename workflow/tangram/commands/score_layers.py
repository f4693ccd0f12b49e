"""Score whole layers, left out one at a time: the importance by which the baseline drops layers."""

from typing import Annotated

import typer

from tangram.cli import ONE_THREAD, RuntimeOption, reads, reads_model, run, writes
from tangram.config import Scores


def score_layers(
    settings: Annotated[str, typer.Option(help="`batch_size` and `position_stride` of `scores` as JSON")],
    shard: Annotated[str, typer.Option(help="range of layers, e.g. 00-14")],
    parent: Annotated[str, reads_model("parent")],
    corpus: Annotated[str, reads("score split")],
    output: Annotated[str, writes("SCORES table of kind `block`")],
    activations: Annotated[str | None, reads("cached activations; recomputed if omitted")] = None,
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write the metrics of `score_blocks` for the parent without attention and FFN of one layer, for every layer."""
    runtime.start()
    from tqdm import tqdm

    from tangram.activations import open_activations
    from tangram.corpus.tokens import read_tokens
    from tangram.models.by_layer import load_by_layer
    from tangram.models.loading import load_model
    from tangram.provenance import provenance
    from tangram.scores.replace_one import ReplaceOne
    from tangram.tables import SCORES, write_table

    section = Scores.model_validate_json(settings)
    model = (load_by_layer if runtime.by_layer else load_model)(parent, runtime.dtype, runtime.device)
    input_ids = read_tokens(corpus)
    states = open_activations(activations, model, input_ids, section.batch_size, runtime.local_copy)
    options = section.position_stride, section.batch_size
    scorer = ReplaceOne(model, states, input_ids, *options, compute=section.compute)
    rows, (first, last) = [], map(int, shard.split("-"))
    for layer in tqdm(range(first, last + 1), desc="score_layers", mininterval=5):
        rows += scorer.score_dropped(layer)
    write_table(rows, SCORES, output, provenance("tangram.commands.score_layers", settings, runtime.device))


if __name__ == "__main__":
    run(score_layers)
