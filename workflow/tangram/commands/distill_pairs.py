"""Distill a pair of an attention and an FFN variant together for a range of layers (coupled BLD)."""

from typing import Annotated

import typer

from tangram.cli import ONE_THREAD, PiecesOption, RuntimeOption, reads, reads_model, run, writes
from tangram.config import BlockDistillation, Pruning


def distill_pairs(
    settings: Annotated[str, typer.Option(help="config section `library.bld` as JSON")],
    pieces: PiecesOption,
    parent: Annotated[str, reads_model("parent")],
    corpus: Annotated[str, reads("distill split")],
    checkpoints: Annotated[str, typer.Option(help="folder of the states that a killed job resumes from")],
    library: Annotated[str, writes("weights (safetensors)")],
    table: Annotated[str, writes("LIBRARY table")],
    curves: Annotated[str, writes("CURVES table")],
    attention: Annotated[str | None, reads("the attention's pieces to start from; fitted if omitted")] = None,
    ffn: Annotated[str | None, reads("the FFN's pieces to start from; fitted if omitted")] = None,
    activations: Annotated[str | None, reads("cached activations; recomputed if omitted")] = None,
    pruning: Annotated[str, typer.Option(help="config section `library.pruning` as JSON")] = "{}",
    checkpoint_seconds: Annotated[float, typer.Option(help="seconds between two saves of the training state")] = 120,
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write the pairs' weights, their held-out losses before and after training, and the training curves."""
    runtime.start()
    import shutil
    import sys
    from pathlib import Path

    import torch
    from tqdm import tqdm

    from tangram.activations import open_activations
    from tangram.blocks.architecture import LayerChoice, pieces_of
    from tangram.blocks.registry import modules_of_variants
    from tangram.corpus.tokens import read_tokens
    from tangram.errors import TangramError
    from tangram.files import write_tensors
    from tangram.library.coupled import distill_pair
    from tangram.library.distill import LayerDistillation
    from tangram.library.pieces import read_piece
    from tangram.library.resume import PieceStore
    from tangram.models.by_layer import load_by_layer
    from tangram.models.loading import WEIGHTS, load_model
    from tangram.provenance import fingerprint, provenance
    from tangram.tables import CURVES, LIBRARY, write_table

    section, prune = BlockDistillation.model_validate_json(settings), Pruning.model_validate_json(pruning)
    if (attention is None) != (ffn is None):
        raise TangramError("--attention and --ffn: a pair starts from pieces of both; give both or none")
    choice, files = LayerChoice.parse(pieces.variant), {"attention": attention, "ffn": ffn}
    model = (load_by_layer if runtime.by_layer else load_model)(parent, runtime.dtype, runtime.device)
    model.requires_grad_(False)
    input_ids = read_tokens(corpus)
    states = open_activations(activations, model, input_ids, section.batch_size, runtime.local_copy)
    modules = modules_of_variants([variant for _, variant in pieces_of(choice)])
    metadata = provenance("tangram.commands.distill_pairs", settings, runtime.device, modules)
    facts = [*metadata.values(), str(pieces), runtime.dtype, str(runtime.seed), pruning]
    starts = {kind: path for kind, path in files.items() if path is not None}
    identity = fingerprint(facts, [Path(parent) / WEIGHTS, corpus, *starts.values()])
    store = PieceStore(Path(checkpoints), checkpoint_seconds, identity)
    tensors: dict[str, torch.Tensor] = {}
    rows, curve_rows = [], []
    outputs = states.hidden(pieces.layers[0])
    for layer in tqdm(pieces.layers, desc=f"distill_pairs {choice.pair}", mininterval=5):
        inputs, outputs = outputs, states.hidden(layer + 1)
        pair = store.load(layer)
        if pair is not None:
            print(f"distill_pairs {choice.pair}: layer {layer} was finished before a kill", file=sys.stderr)
        else:
            problem = LayerDistillation(model, layer, inputs, outputs, section, input_ids, prune)
            initial = {kind: read_piece(path, layer, kind) for kind, path in starts.items()}
            pair = distill_pair(problem, choice, runtime.seed, initial or None, store.training(layer))
            store.save(layer, pair)
        tensors |= {f"model.layers.{layer}.{name}": tensor for name, tensor in pair.weights.items()}
        rows.append(pair.row(layer, pieces.kind, choice.pair))
        curve_rows += pair.curves(layer, pieces.kind, choice.pair, section.batch_size * input_ids.shape[1])
    write_tensors(library, tensors, metadata)
    write_table(curve_rows, CURVES, curves, metadata)
    write_table(rows, LIBRARY, table, metadata)
    shutil.rmtree(checkpoints, ignore_errors=True)


if __name__ == "__main__":
    run(distill_pairs)
