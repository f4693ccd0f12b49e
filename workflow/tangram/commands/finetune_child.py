"""Finetune an assembled child end to end against the parent (GKD)."""

from typing import Annotated

import typer

from tangram.cli import check_device, run, use_threads
from tangram.config import Finetune, Parallel


def finetune_child(
    settings: Annotated[str, typer.Option(help="config section `finetune` as JSON")],
    parent: Annotated[str, typer.Option(help="parent's folder")],
    child: Annotated[str, typer.Option(help="assembled child's folder")],
    corpus: Annotated[str, typer.Option(help="finetune split")],
    checkpoints: Annotated[str, typer.Option(help="folder of the state that a killed job resumes from")],
    output: Annotated[str, typer.Option(help="folder of the finetuned child")],
    curves: Annotated[str, typer.Option(help="CURVES table to write")],
    activations: Annotated[str | None, typer.Option(help="cached activations; streamed without")] = None,
    parallel: Annotated[str, typer.Option(help="config section `finetune.parallel` as JSON")] = "{}",
    checkpoint_seconds: Annotated[float, typer.Option(help="time between two states of a training")] = 120,
    local_copy: Annotated[int, typer.Option(help="1: read the cache from a copy in $TMPDIR")] = 0,
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
    threads: int = 1,
) -> None:
    """Write the finetuned checkpoint and the training curves; in several processes where `parallel` says so."""
    layout = Parallel.model_validate_json(parallel)
    check_device(device, layout.processes_per_node)
    if layout.nodes * layout.processes_per_node > 1:
        from tangram.training.parallel import launch

        launch(layout.nodes, layout.processes_per_node)
    use_threads(max(1, threads // layout.processes_per_node), seed, device)
    import hashlib
    import shutil
    from pathlib import Path

    import torch

    from tangram.activations import open_activations
    from tangram.child.assemble import save_child
    from tangram.corpus.tokens import read_tokens
    from tangram.files import sha256_of
    from tangram.finetune import finetune
    from tangram.models.by_layer import skeleton
    from tangram.models.loading import load_model
    from tangram.provenance import provenance
    from tangram.tables import CURVES, write_table
    from tangram.training.loop import Checkpointing
    from tangram.training.parallel import join

    section = Finetune.model_validate_json(settings)
    with join(device, layout.strategy) as world:
        teacher = world.teacher(parent, dtype, runs=activations is None)
        student = skeleton(child, dtype) if world.sharded else load_model(child, dtype, world.device)
        input_ids = read_tokens(corpus)
        states = open_activations(activations, teacher, input_ids, section.micro_batch_size, bool(local_copy))
        made_by = provenance("tangram.commands.finetune_child", settings, device)
        origin = [sha256_of(Path(folder) / "model.safetensors") for folder in (parent, child)]
        facts = [*made_by.values(), *origin, sha256_of(corpus), str(seed)]
        identity = hashlib.sha256("".join(facts).encode()).hexdigest()
        checkpointing = Checkpointing(Path(checkpoints), checkpoint_seconds, identity)
        label = f"finetune_child {Path(child).parent.parent.name} {Path(child).parent.name}"
        folder = child if world.sharded else None
        rows = finetune(student, teacher, states, input_ids, section, seed, label, checkpointing, world, folder)
        weights = world.gather(student, getattr(torch, dtype))
        if world.rank == 0:
            per_step = section.batch_size * input_ids.shape[1]
            rows = [{"series": "finetune", "tokens": (row["step"] + 1) * per_step, **row} for row in rows]
            write_table(rows, CURVES, curves, made_by)
            save_child(weights, student.config, parent, output, made_by)
            shutil.rmtree(checkpoints, ignore_errors=True)
        world.wait()


if __name__ == "__main__":
    run(finetune_child)
