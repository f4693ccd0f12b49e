"""Measure the moments of the activations of one kind of subblock in a range of layers."""

from typing import Annotated

import typer

from tangram.cli import ONE_THREAD, RuntimeOption, reads, reads_model, run, writes
from tangram.config import BlockDistillation


def measure_moments(
    settings: Annotated[
        str, typer.Option(help="`batch_size`, `holdout_fraction`, `normalize` of `library.bld` as JSON")
    ],
    kind: Annotated[str, typer.Option(help="attention or ffn")],
    shard: Annotated[str, typer.Option(help="range of layers, e.g. 00-14")],
    parent: Annotated[str, reads_model("parent")],
    corpus: Annotated[str, reads("distill split")],
    output: Annotated[str, writes("the moments (safetensors)")],
    activations: Annotated[str | None, reads("cached activations; recomputed if omitted")] = None,
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write the weighted means and second moments from which all variants of the kind are fitted in closed form."""
    runtime.start()
    from tqdm import tqdm

    from tangram.activations import open_activations
    from tangram.corpus.tokens import read_tokens
    from tangram.files import check_writable
    from tangram.library.distill import LayerDistillation
    from tangram.library.moments import write_moments
    from tangram.models.by_layer import load_by_layer
    from tangram.models.loading import load_model
    from tangram.provenance import provenance

    check_writable(output)
    section = BlockDistillation.model_validate_json(settings)
    model = (load_by_layer if runtime.by_layer else load_model)(parent, runtime.dtype, runtime.device)
    model.requires_grad_(False)
    input_ids = read_tokens(corpus)
    states = open_activations(activations, model, input_ids, section.batch_size, runtime.local_copy)
    moments, (first, last) = {}, map(int, shard.split("-"))
    outputs = states.hidden(first)
    for layer in tqdm(range(first, last + 1), desc=f"measure_moments {kind}", mininterval=5):
        inputs, outputs = outputs, states.hidden(layer + 1)
        moments[layer] = LayerDistillation(model, layer, inputs, outputs, section).measure(kind)
    write_moments(output, moments, provenance("tangram.commands.measure_moments", settings, runtime.device))


if __name__ == "__main__":
    run(measure_moments)
