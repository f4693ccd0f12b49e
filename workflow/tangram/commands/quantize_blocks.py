"""Quantize one variant of one kind for a range of layers, or the LM head."""

from typing import Annotated

import typer

from tangram.cli import ONE_THREAD, PiecesOption, RuntimeOption, reads, reads_model, run, writes
from tangram.config import BlockDistillation


class Settings(BlockDistillation):
    """The slice of the config that this command needs."""

    shared_smoothing: bool = False


def quantize_blocks(
    settings: Annotated[
        str,
        typer.Option(
            help="`batch_size`, `holdout_fraction`, `ridge`, `normalize` of `library.bld` as JSON; `shared_smoothing`"
        ),
    ],
    pieces: PiecesOption,
    parent: Annotated[str, reads_model("parent")],
    corpus: Annotated[str, reads("distill split")],
    library: Annotated[str, writes("quantized weights (safetensors)")],
    table: Annotated[str, writes("LIBRARY table")],
    source: Annotated[str | None, reads("the trained pieces (safetensors); the parent's weights if omitted")] = None,
    activations: Annotated[str | None, reads("cached activations; recomputed if omitted")] = None,
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write the pieces' weights in the variant's precision, and their held-out losses before and after quantization."""
    runtime.start()
    import time

    import torch
    from tqdm import tqdm

    from tangram.activations import open_activations
    from tangram.blocks import HEAD, Variant
    from tangram.blocks.registry import modules_of_variants
    from tangram.corpus.tokens import read_tokens
    from tangram.files import write_tensors
    from tangram.library.distill import LayerDistillation
    from tangram.library.pieces import read_piece, tensor_name
    from tangram.library.quantize import quantize_head, quantize_subblock
    from tangram.models.by_layer import load_by_layer
    from tangram.models.capability import check_capability
    from tangram.models.loading import load_model
    from tangram.provenance import provenance
    from tangram.tables import LIBRARY, write_table

    section = Settings.model_validate_json(settings)
    kind, variant = pieces.kind, pieces.variant
    check_capability([Variant.parse(variant).precision], runtime.device)
    model = (load_by_layer if runtime.by_layer else load_model)(parent, runtime.dtype, runtime.device)
    model.requires_grad_(False)
    input_ids = read_tokens(corpus)
    states = open_activations(activations, model, input_ids, section.batch_size, runtime.local_copy)
    tensors: dict[str, torch.Tensor] = {}
    rows = []
    for layer in tqdm(pieces.layers, desc=f"quantize_blocks {kind} {variant}", mininterval=5):
        begin = time.monotonic()
        if kind == HEAD:
            piece = quantize_head(model, states, variant, section.holdout_fraction)
        else:
            problem = LayerDistillation(model, layer, states.hidden(layer), states.hidden(layer + 1), section)
            float_piece = None if source is None else read_piece(source, layer, kind)
            piece = quantize_subblock(problem, kind, variant, float_piece, section.shared_smoothing)
        tensors |= {tensor_name(layer, kind, name): tensor.contiguous() for name, tensor in piece.weights.items()}
        rows.append(
            {
                "layer": layer,
                "kind": kind,
                "variant": variant,
                "parameters": sum(tensor.numel() for tensor in piece.weights.values()),
                "bld_loss_before": piece.loss_before,
                "bld_loss_after": piece.loss_after,
                "kept": piece.rounding,
                "tokens": 0,
                "seconds": time.monotonic() - begin,
            }
        )
    metadata = provenance("tangram.commands.quantize_blocks", settings, runtime.device, modules_of_variants([variant]))
    write_tensors(library, tensors, metadata)
    write_table(rows, LIBRARY, table, metadata)


if __name__ == "__main__":
    run(quantize_blocks)
