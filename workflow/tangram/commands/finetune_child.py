"""Finetune an assembled child end to end against the parent (GKD)."""

from typing import Annotated

import typer

from tangram.cli import ONE_THREAD, RuntimeOption, check_device, reads, reads_model, run, use_threads, writes
from tangram.config import Finetune, Parallel


def finetune_child(
    settings: Annotated[str, typer.Option(help="config section `finetune` as JSON")],
    parent: Annotated[str, reads_model("parent")],
    child: Annotated[str, reads_model("assembled child")],
    corpus: Annotated[str, reads("finetune split")],
    checkpoints: Annotated[str, typer.Option(help="folder of the state that a killed job resumes from")],
    folder: Annotated[str, typer.Option(help="folder of the finetuned child")],
    curves: Annotated[str, writes("CURVES table")],
    activations: Annotated[str | None, reads("cached activations; recomputed if omitted")] = None,
    score: Annotated[str | None, reads("score split, which decides whether the trained weights are better")] = None,
    score_activations: Annotated[str | None, reads("its cached activations; recomputed if omitted")] = None,
    parallel: Annotated[str, typer.Option(help="config section `finetune.parallel` as JSON")] = "{}",
    checkpoint_seconds: Annotated[float, typer.Option(help="seconds between two saves of the training state")] = 120,
    part: Annotated[str, typer.Option(help="which of how many equal parts of the budget, such as 3/3")] = "1/1",
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write the finetuned checkpoint and the training curves, in as many processes as `parallel` sets.

    The assembled child's weights are written again if training has raised KL on the score split, which it was not
    trained on. A sharded child is not compared.
    """
    layout = Parallel.model_validate_json(parallel)
    check_device(runtime.device, layout.processes_per_node)
    if layout.nodes * layout.processes_per_node > 1:
        from tangram.training.parallel import launch

        launch(layout.nodes, layout.processes_per_node)
    use_threads(max(1, runtime.threads // layout.processes_per_node), runtime.seed, runtime.device)
    import shutil
    import sys
    from pathlib import Path

    import torch

    from tangram.activations import open_activations
    from tangram.child.assemble import load_weights, save_child
    from tangram.corpus.tokens import read_tokens
    from tangram.finetune import TextKL, finetune, part_of
    from tangram.gguf_types import round_pieces
    from tangram.models.by_layer import meta_model
    from tangram.models.loading import WEIGHTS, load_model
    from tangram.provenance import fingerprint, provenance
    from tangram.tables import CURVES, write_table
    from tangram.training.loop import Checkpointing
    from tangram.training.parallel import process_group

    section = Finetune.model_validate_json(settings)
    with process_group(runtime.device, layout.strategy) as world:
        teacher = world.load_teacher(parent, runtime.dtype, runs=activations is None)
        student = meta_model(child, runtime.dtype) if world.sharded else load_model(child, runtime.dtype, world.device)
        input_ids = read_tokens(corpus)
        states = open_activations(activations, teacher, input_ids, section.micro_batch_size, runtime.local_copy)
        metadata = provenance("tangram.commands.finetune_child", settings, runtime.device)
        weights_files = [Path(model) / WEIGHTS for model in (parent, child)]
        identity = fingerprint([*metadata.values(), str(runtime.seed), part], [*weights_files, corpus])
        checkpointing = Checkpointing(Path(checkpoints), checkpoint_seconds, identity)
        label = f"finetune_child {Path(child).parent.parent.name} {Path(child).parent.name}"
        source = child if world.sharded else None
        kl = None
        if score is not None and not world.sharded and world.rank == 0:
            kl = TextKL(student, teacher, score, score_activations, section.micro_batch_size)
        before = kl.by_sequence() if kl else None
        number, parts = map(int, part.split("/"))
        steps = part_of(section, len(input_ids), input_ids.shape[1], number, parts) if parts > 1 else None
        training = (section, runtime.seed, label, checkpointing, world, source, kl, steps)
        rows = finetune(student, teacher, states, input_ids, *training)
        if not world.sharded:  # pieces with a precision are never sharded
            round_pieces(student)
        weights = world.gather(student, getattr(torch, runtime.dtype))
        taken, tokens = rows[-1]["step"] + 1, rows[-1]["tokens"]
        record: dict[str, object] = {"kept": "trained", "finetune_steps": taken, "finetune_tokens": tokens}
        if kl is not None and before is not None:
            after = kl.by_sequence()
            record |= {"kl_before": before.mean().item(), "kl_after": after.mean().item()}
            if not after.mean() < before.mean():
                record["kept"], weights = "initial", load_weights(child)
            change = f"KL {before.mean():.4f} -> {after.mean():.4f} on the score split"
            print(f"{label}: {change}, {record['kept']} kept", file=sys.stderr)
        if world.rank == 0:
            write_table([{"series": "finetune", **row} for row in rows], CURVES, curves, metadata)
            save_child(weights, student.config, parent, folder, metadata, record)
            shutil.rmtree(checkpoints, ignore_errors=True)
        world.barrier()


if __name__ == "__main__":
    run(finetune_child)
