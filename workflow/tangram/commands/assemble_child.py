"""Assemble a child's checkpoint from its architecture, the parent and the library."""

from typing import Annotated

import typer

from tangram.cli import ONE_THREAD, RuntimeOption, reads, reads_model, run


def assemble_child(
    parent: Annotated[str, reads_model("parent")],
    architecture: Annotated[str, reads("architecture.json: a variant per layer and kind, and of the head")],
    library: Annotated[str, typer.Option(help="library folder, {kind}/{variant}/{shard}.safetensors")],
    shards: Annotated[str, typer.Option(help="all shards, e.g. 00-14,15-29")],
    folder: Annotated[str, typer.Option(help="folder of the child")],
    base: Annotated[str | None, reads("weights of a trained child, which equal subblocks keep")] = None,
    random_weights: Annotated[str, typer.Option(help="seed of a random order of all entries, or none")] = "none",
    corpus: Annotated[str | None, reads("tokens of the text for the compensation of removed subblocks")] = None,
    ridge: Annotated[str, typer.Option(help="ridge of that compensation, or none")] = "none",
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write the child as a Hugging Face checkpoint."""
    runtime.start()
    from dataclasses import asdict
    from pathlib import Path

    import torch

    from tangram.blocks.architecture import load_architecture, modules_of
    from tangram.child.assemble import (
        WEIGHTS_FILE,
        assemble_state,
        build_config,
        cast_state,
        load_parent,
        save_child,
        shuffle_matrices,
    )
    from tangram.child.compensation import compensate
    from tangram.child.reassemble import load_child, reassemble_state
    from tangram.corpus.tokens import read_tokens
    from tangram.files import sha256_of
    from tangram.library.pieces import read_library, shard_file
    from tangram.models.by_layer import load_by_layer
    from tangram.models.loading import load_model
    from tangram.provenance import provenance

    choices = load_architecture(architecture)
    ranges = tuple(shards.split(","))
    parent_config, parent_state = load_parent(parent)
    config = build_config(parent_config, choices)
    pieces, kept, sources = read_library(library, ranges), set[tuple[int, str, str]](), dict[str, str]()
    if base is None:
        state = assemble_state(parent_state, choices, pieces)
    else:
        trained = load_child(Path(base).parent)
        state, kept = reassemble_state(parent_state, trained, choices, pieces), set(trained.architecture.pieces())
        sources["base"] = sha256_of(base)
    used = {
        shard_file(library, ranges, kind, name, layer)
        for layer, kind, variant, name in choices.stored()
        if (layer, kind, variant) not in kept
    }
    sources |= {f"library/{path.relative_to(library)}": sha256_of(path) for path in sorted(used)}
    if random_weights != "none":
        state = shuffle_matrices(state, int(random_weights))
    if corpus is not None:
        model = (load_by_layer if runtime.by_layer else load_model)(parent, runtime.dtype, runtime.device)
        state = compensate(state, choices, model, read_tokens(corpus), float(ridge))
        sources["corpus"] = sha256_of(corpus)
    settings = {"dtype": runtime.dtype, "shards": shards, "random_weights": random_weights, "ridge": ridge}
    metadata = provenance("tangram.commands.assemble_child", settings, others=modules_of(choices))
    save_child(
        cast_state(state, choices, getattr(torch, runtime.dtype)),
        config,
        parent,
        folder,
        metadata,
        {
            "architecture": asdict(choices),
            "sources": {"parent": sha256_of(Path(parent) / WEIGHTS_FILE), **sources},
        },
    )


if __name__ == "__main__":
    run(assemble_child)
