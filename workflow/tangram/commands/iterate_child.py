"""Compress in rounds: solve for a part of the way, finetune for a part of the tokens, score in that child, go on."""

from typing import Annotated

import typer

from tangram.cli import ONE_THREAD, RuntimeOption, reads, reads_model, run, writes


def iterate_child(
    settings: Annotated[str, typer.Option(help="the config's `target`, `search` and `scenarios` as JSON")],
    text: Annotated[str, typer.Option(help="the config section `scores` as JSON")],
    finetune: Annotated[str, typer.Option(help="the config section `finetune` as JSON")],
    scores: Annotated[str, reads("SCORES table, of pieces in the parent")],
    costs: Annotated[str, reads("COSTS table")],
    calibration: Annotated[str, reads("CALIBRATION table")],
    parent: Annotated[str, reads_model("parent")],
    corpus: Annotated[str, reads("score split")],
    finetune_corpus: Annotated[str, reads("finetune split")],
    library: Annotated[str, typer.Option(help="library folder, {kind}/{variant}/{shard}.safetensors")],
    shards: Annotated[str, typer.Option(help="all shards, e.g. 00-14,15-29")],
    checkpoints: Annotated[str, typer.Option(help="folder of the states that a killed job resumes from")],
    solutions: Annotated[str, writes("file of solutions with the last round's, named 0")],
    folder: Annotated[str, typer.Option(help="folder of the child of the last round but one, after its training")],
    curves: Annotated[str, writes("CURVES table of all rounds but the last")],
    activations: Annotated[str | None, reads("cached activations; recomputed if omitted")] = None,
    finetune_activations: Annotated[str | None, reads("cached activations; recomputed if omitted")] = None,
    checkpoint_seconds: Annotated[float, typer.Option(help="seconds between two saves of the training state")] = 120,
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write the last round's solution, and the trained child from which its child is assembled."""
    runtime.start()
    import shutil
    import sys
    from dataclasses import asdict
    from pathlib import Path

    from tangram.activations import open_activations
    from tangram.blocks.architecture import pieces_of
    from tangram.blocks.registry import modules_of_variants
    from tangram.child.assemble import WEIGHTS_FILE, build_config, load_parent, save_child
    from tangram.config import Finetune, Scores
    from tangram.corpus.tokens import read_tokens
    from tangram.files import sha256_of
    from tangram.library.pieces import read_library
    from tangram.models.loading import load_model
    from tangram.provenance import fingerprint, provenance
    from tangram.rounds.iterate import Rounds, Text
    from tangram.search.problem import Settings, load_problem
    from tangram.search.solutions import save_solutions
    from tangram.search.summary import beside_parent, solver_entries, speeds
    from tangram.tables import CURVES, write_table
    from tangram.training.loop import Checkpointing

    section, training = Settings.model_validate_json(settings), Finetune.model_validate_json(finetune)
    scoring = Scores.model_validate_json(text)
    problem = load_problem(section, *map(Path, (scores, costs, calibration, parent)))
    options = {option.choice for group in problem.options for option in group}
    modules = modules_of_variants({variant for choice in options for _, variant in pieces_of(choice)})
    recorded = {"settings": settings, "scores": text, "finetune": finetune}
    metadata = provenance("tangram.commands.iterate_child", recorded, runtime.device, modules)
    model = load_model(parent, runtime.dtype, runtime.device)

    def split(path: str, cache: str | None, batch_size: int) -> Text:
        input_ids = read_tokens(path)
        return Text(path, input_ids, open_activations(cache, model, input_ids, batch_size, runtime.local_copy), cache)

    weights = Path(parent) / WEIGHTS_FILE
    facts = [*metadata.values(), str(runtime.seed), runtime.dtype, shards]
    rounds = Rounds(
        parent=model,
        parent_state=load_parent(parent)[1],
        problem=problem,
        settings=section,
        library=read_library(library, tuple(shards.split(","))),
        score=split(corpus, activations, scoring.batch_size),
        scoring=scoring,
        text=split(finetune_corpus, finetune_activations, training.micro_batch_size),
        training=training,
        seed=runtime.seed,
        state=Checkpointing(
            Path(checkpoints),
            checkpoint_seconds,
            fingerprint(facts, [weights, scores, costs, calibration, corpus, finetune_corpus]),
        ),
    )
    last, solution, progress = rounds.run()
    assert progress.child is not None  # more than one round
    (entry,) = solver_entries(last, [solution])
    print(
        f"iterate_child: KL {', '.join(format(each['kl_after'], '.4f') for each in progress.rounds)} after each round "
        f"but the last, whose predicted speed-up is {speeds(entry)}",
        file=sys.stderr,
    )
    save_solutions({**beside_parent(last, [entry]), "rounds": progress.rounds}, solutions, metadata)
    write_table(progress.rows, CURVES, curves, metadata)
    architecture = progress.child.architecture
    record = {
        "architecture": asdict(architecture),
        "sources": {"parent": sha256_of(weights)},
        "rounds": progress.rounds,
    }
    save_child(progress.child.state, build_config(model.config, architecture), parent, folder, metadata, record)
    shutil.rmtree(checkpoints, ignore_errors=True)


if __name__ == "__main__":
    run(iterate_child)
