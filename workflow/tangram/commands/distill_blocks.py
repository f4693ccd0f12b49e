"""Distil one variant of one kind for a range of layers (BLD)."""

from typing import Annotated

import typer

from tangram.cli import run, use_threads
from tangram.config import BlockDistillation


def distill_blocks(
    settings: Annotated[str, typer.Option(help="config section `library.bld` as JSON")],
    kind: Annotated[str, typer.Option(help="attention or ffn")],
    variant: Annotated[str, typer.Option(help="e.g. gqa-1, width-0.5, linear, no-op")],
    layers: Annotated[str, typer.Option(help="first-last layer, e.g. 00-14")],
    parent: Annotated[str, typer.Option(help="parent's folder")],
    corpus: Annotated[str, typer.Option(help="distil split")],
    checkpoints: Annotated[str, typer.Option(help="folder of what a killed job goes on from")],
    library: Annotated[str, typer.Option(help="weights to write (safetensors)")],
    table: Annotated[str, typer.Option(help="LIBRARY table to write")],
    curves: Annotated[str, typer.Option(help="CURVES table to write")],
    activations: Annotated[str | None, typer.Option(help="cached activations; streamed without")] = None,
    checkpoint_seconds: Annotated[float, typer.Option(help="time between two states of a training")] = 120,
    by_layer: Annotated[int, typer.Option(help="1: hold one layer's weights at a time")] = 0,
    local_copy: Annotated[int, typer.Option(help="1: read the cache from a copy in $TMPDIR")] = 0,
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
    threads: int = 1,
) -> None:
    """Write the pieces' weights, their held-out losses before and after training, and the training curves."""
    use_threads(threads, seed, device)
    import hashlib
    import shutil
    import sys
    from pathlib import Path

    import torch
    from tqdm import tqdm

    from tangram.activations import open_activations
    from tangram.blocks import get_block
    from tangram.corpus.tokens import read_tokens
    from tangram.files import sha256_of, write_tensors
    from tangram.library.distill import LocalProblem
    from tangram.library.pieces import tensor_name
    from tangram.models.by_layer import load_by_layer
    from tangram.models.families import shape_of
    from tangram.models.loading import load_model
    from tangram.provenance import provenance
    from tangram.tables import CURVES, LIBRARY, write_table
    from tangram.training.resume import PieceStore

    section = BlockDistillation.model_validate_json(settings)
    get_block(kind, variant).overrides(shape_of(parent))  # stops here if the variant is no smaller than the parent's
    model = (load_by_layer if by_layer else load_model)(parent, dtype, device).requires_grad_(False)
    input_ids = read_tokens(corpus)
    states = open_activations(activations, model, input_ids, section.batch_size, bool(local_copy))
    first, last = (int(part) for part in layers.split("-"))
    made_by = provenance("tangram.commands.distill_blocks", settings, device)
    origin = [sha256_of(path) for path in (Path(parent) / "model.safetensors", corpus)]
    facts = [*made_by.values(), *origin, kind, variant, layers, dtype, str(seed)]
    identity = hashlib.sha256("\n".join(facts).encode()).hexdigest()
    store = PieceStore(Path(checkpoints), checkpoint_seconds, identity)
    tensors: dict[str, torch.Tensor] = {}
    rows, curve_rows = [], []
    outputs = states.hidden(first)
    for layer in tqdm(range(first, last + 1), desc=f"distill_blocks {kind} {variant}", mininterval=5):
        inputs, outputs = outputs, states.hidden(layer + 1)
        piece = store.load(layer)
        if piece is not None:
            print(f"distill_blocks {kind} {variant}: layer {layer} was finished before a kill", file=sys.stderr)
        else:
            problem = LocalProblem(model, layer, inputs, outputs, section, input_ids)
            piece = problem.distil(kind, variant, seed, store.training(layer))
            store.save(layer, piece)
        tensors |= {tensor_name(layer, kind, name): tensor for name, tensor in piece.weights.items()}
        rows.append(
            {
                "layer": layer,
                "kind": kind,
                "variant": variant,
                "parameters": sum(tensor.numel() for tensor in piece.weights.values()),
                "bld_loss_before": piece.loss_before,
                "bld_loss_after": piece.loss_after,
                "kept": piece.kept,
                "tokens": piece.tokens,
                "seconds": piece.seconds,
            }
        )
        per_step = section.batch_size * input_ids.shape[1]
        curve_rows += [
            {"series": f"{kind} {variant} layer {layer}", "tokens": (row["step"] + 1) * per_step, **row}
            for row in piece.curve
        ]
    write_tensors(library, tensors, made_by)
    write_table(curve_rows, CURVES, curves, made_by)
    write_table(rows, LIBRARY, table, made_by)
    shutil.rmtree(checkpoints, ignore_errors=True)


if __name__ == "__main__":
    run(distill_blocks)
