"""Distill one variant of one kind for a range of layers (BLD)."""

from typing import Annotated

import typer

from tangram.cli import ONE_THREAD, PiecesOption, RuntimeOption, reads, reads_model, run, writes
from tangram.config import BlockDistillation, Pruning


def distill_blocks(
    settings: Annotated[str, typer.Option(help="config section `library.bld` as JSON")],
    pieces: PiecesOption,
    parent: Annotated[str, reads_model("parent")],
    corpus: Annotated[str, reads("distill split")],
    checkpoints: Annotated[str, typer.Option(help="folder of the states that a killed job resumes from")],
    library: Annotated[str, writes("weights (safetensors)")],
    table: Annotated[str, writes("LIBRARY table")],
    curves: Annotated[str, writes("CURVES table")],
    activations: Annotated[str | None, reads("cached activations; recomputed if omitted")] = None,
    moments: Annotated[str | None, reads("moments of the layers' activations; measured if omitted")] = None,
    pruning: Annotated[str, typer.Option(help="config section `library.pruning` as JSON")] = "{}",
    checkpoint_seconds: Annotated[float, typer.Option(help="seconds between two saves of the training state")] = 120,
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write the pieces' weights, their held-out losses before and after training, and the training curves."""
    runtime.start()
    import shutil
    import sys
    from pathlib import Path

    import torch
    from tqdm import tqdm

    from tangram.activations import open_activations
    from tangram.blocks.registry import get_block, modules_of_variants
    from tangram.corpus.tokens import read_tokens
    from tangram.files import write_tensors
    from tangram.library.distill import LayerDistillation
    from tangram.library.moments import read_moments
    from tangram.library.pieces import tensor_name
    from tangram.library.resume import PieceStore
    from tangram.models.by_layer import load_by_layer
    from tangram.models.families import shape_of
    from tangram.models.loading import WEIGHTS, load_model
    from tangram.provenance import fingerprint, provenance
    from tangram.tables import CURVES, LIBRARY, write_table

    section = BlockDistillation.model_validate_json(settings)
    prune = Pruning.model_validate_json(pruning)
    kind, variant = pieces.kind, pieces.variant
    get_block(kind, variant, shape_of(parent)).overrides()  # raises if it is no smaller than the parent's subblock
    model = (load_by_layer if runtime.by_layer else load_model)(parent, runtime.dtype, runtime.device)
    model.requires_grad_(False)
    input_ids = read_tokens(corpus)
    states = open_activations(activations, model, input_ids, section.batch_size, runtime.local_copy)
    metadata = provenance("tangram.commands.distill_blocks", settings, runtime.device, modules_of_variants([variant]))
    facts = [*metadata.values(), str(pieces), runtime.dtype, str(runtime.seed), pruning]
    identity = fingerprint(facts, [Path(parent) / WEIGHTS, corpus])
    store = PieceStore(Path(checkpoints), checkpoint_seconds, identity)
    tensors: dict[str, torch.Tensor] = {}
    rows, curve_rows = [], []
    outputs, of_layer = states.hidden(pieces.layers[0]), read_moments(moments, runtime.device)
    for layer in tqdm(pieces.layers, desc=f"distill_blocks {kind} {variant}", mininterval=5):
        inputs, outputs = outputs, states.hidden(layer + 1)
        piece = store.load(layer)
        if piece is not None:
            print(f"distill_blocks {kind} {variant}: layer {layer} was finished before a kill", file=sys.stderr)
        else:
            problem = LayerDistillation(model, layer, inputs, outputs, section, input_ids, prune)
            piece = problem.distill(kind, variant, runtime.seed, store.training(layer), of_layer(layer))
            store.save(layer, piece)
        tensors |= {tensor_name(layer, kind, name): tensor for name, tensor in piece.weights.items()}
        rows.append(piece.row(layer, kind, variant))
        curve_rows += piece.curves(layer, kind, variant, section.batch_size * input_ids.shape[1])
    write_tensors(library, tensors, metadata)
    write_table(curve_rows, CURVES, curves, metadata)
    write_table(rows, LIBRARY, table, metadata)
    shutil.rmtree(checkpoints, ignore_errors=True)


if __name__ == "__main__":
    run(distill_blocks)
