"""Select one of a target's candidates adaptively by their scores on prompts, or by short finetunings."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tangram.cli import ONE_THREAD, Runtime, RuntimeOption, reads, reads_model, run, writes
from tangram.config import Selection

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from tangram.blocks.architecture import Architecture
    from tangram.library.pieces import Library
    from tangram.selection.candidates import CandidateScores
    from tangram.selection.choose import Choice
    from tangram.selection.finetuned import FinetunedCandidates


def select_child(
    settings: Annotated[str, typer.Option(help="a target's section `selection` as JSON")],
    parent: Annotated[str, reads_model("parent")],
    corpus: Annotated[str, reads("score split, the source of the prompts")],
    library: Annotated[str, typer.Option(help="library folder, {kind}/{variant}/{shard}.safetensors")],
    shards: Annotated[str, typer.Option(help="all shards, e.g. 00-14,15-29")],
    candidates: Annotated[str, reads("the candidates' architectures, written by `pin_candidates`")],
    cache: Annotated[str, typer.Option(help="file of the scores that a killed job resumes from")],
    solutions: Annotated[str, writes("file of solutions with the selected one, named 0")],
    table: Annotated[str, writes("SELECTION table")],
    summary: Annotated[str, writes("the selected candidate and the cost of the selection (JSON)")],
    finetune: Annotated[str, typer.Option(help="config section `finetune` as JSON; metric `finetuned` needs it")] = "",
    finetune_corpus: Annotated[str | None, reads("finetune split; metric `finetuned` needs it")] = None,
    finetune_activations: Annotated[str | None, reads("its cached activations; recomputed if omitted")] = None,
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write the selected solution and the scores behind the selection."""
    runtime.start()
    import json
    import shutil
    import sys
    from dataclasses import asdict
    from pathlib import Path

    import numpy as np

    from tangram.blocks.architecture import from_json, modules_of
    from tangram.corpus.tokens import read_tokens
    from tangram.files import write_text
    from tangram.library.pieces import read_library
    from tangram.models.loading import load_model
    from tangram.provenance import provenance
    from tangram.search.solutions import save_solutions
    from tangram.selection.candidates import cut_prompts
    from tangram.selection.choose import Choice, choose, shortlist
    from tangram.selection.finetuned import halve
    from tangram.tables import SELECTION, write_table

    section = Selection.model_validate_json(settings)
    entries = json.loads(Path(candidates).read_text(encoding="utf-8"))["candidates"]
    architectures, text = [from_json(entry) for entry in entries], read_tokens(corpus)
    recorded = json.dumps([settings, finetune]) if finetune else settings
    metadata = provenance("tangram.commands.select_child", recorded, runtime.device, modules_of(*architectures))
    compared = len(text) // 2 if finetune else 0  # the first sequences compare finetuned candidates
    prompts = cut_prompts(text[compared:], section.prompt_tokens)
    pieces, files = read_library(library, tuple(shards.split(","))), (parent, corpus, candidates, cache)
    model = load_model(parent, runtime.dtype, runtime.device)
    scores = _scores(section, model, prompts, architectures, pieces, files, metadata["tangram.code"])
    budget = max(len(architectures), round(section.budget * scores.arms * scores.prompts))
    rng = np.random.default_rng(runtime.seed)
    trained: FinetunedCandidates | None = None
    if finetune and finetune_corpus is not None:
        order = shortlist(scores, budget, rng)
        scores.save()
        of_training = (finetune, finetune_corpus, finetune_activations, text[:compared])
        trained = _finetuned(section, model, of_training, architectures, pieces, files, metadata, runtime)
        choice = Choice(halve(order, trained.rounds, trained.train)[-1][0], 0)
    else:
        choice = choose(section.policy, scores, budget, rng)
    content, selected = _summary(section, scores, choice, prompts.shape[1], trained), choice.candidate
    value = content["mean"][selected] if trained is None else trained.summary()[-1]["kl"][str(selected)]
    print(
        f"select_child: candidate {selected} of {scores.arms}, {section.metric} {value:.4f}, after "
        f"{content['evaluated']} of {scores.values.size} evaluations ({section.policy})",
        file=sys.stderr,
    )
    entry = {"solution": "0", "candidate": selected, **asdict(architectures[selected])}
    save_solutions({"solutions": [entry]}, solutions, metadata)
    write_table(_rows(section, scores, prompts.shape[1], trained), SELECTION, table, metadata)
    write_text(summary, json.dumps({**content, "provenance": metadata}, indent=2) + "\n")
    Path(cache).unlink(missing_ok=True)
    shutil.rmtree(_folder(cache), ignore_errors=True)


def _folder(cache: str) -> str:
    """Return the folder of the states of finetunings, beside the file of scores."""
    return cache.removesuffix(".npz")


def _scores(
    section: Selection,
    model: "PreTrainedModel",
    prompts: "torch.Tensor",
    architectures: "list[Architecture]",
    library: "Library",
    files: tuple[str, str, str, str],
    code: str,
) -> "CandidateScores":
    """Return the scores of candidates as they are assembled; finetuned ones are first compared by KL."""
    import functools
    from pathlib import Path

    from tangram.child.assemble import WEIGHTS_FILE
    from tangram.provenance import fingerprint
    from tangram.selection.candidates import CandidateScores
    from tangram.selection.judge import JudgedScores

    parent, corpus, candidates, cache = files
    judged = section.metric == "judge"
    continuation = section.continuation_tokens if judged else 0
    # Without the policy: scores do not depend on it.
    facts = [code, section.metric, str(section.prompt_tokens), str(continuation), str(model.dtype)]
    metric = "kl" if section.metric == "finetuned" else section.metric
    create = (
        functools.partial(JudgedScores, continuation_tokens=continuation)
        if judged
        else functools.partial(CandidateScores, metric=metric)
    )
    return create(
        model=model,
        prompts=prompts,
        architectures=architectures,
        library=library,
        batch_size=section.batch_size,
        cache=Path(cache),
        identity=fingerprint(facts, [Path(parent, WEIGHTS_FILE), corpus, candidates]),
        checkpoint_seconds=section.checkpoint_seconds,
    )


def _finetuned(
    section: Selection,
    model: "PreTrainedModel",
    of_training: "tuple[str, str, str | None, torch.Tensor]",
    architectures: "list[Architecture]",
    library: "Library",
    files: tuple[str, str, str, str],
    metadata: dict[str, str],
    runtime: Runtime,
) -> "FinetunedCandidates":
    """Return the candidates to finetune; the first sequences of the score split compare them."""
    from pathlib import Path

    from tangram.activations import StreamedActivations, open_activations
    from tangram.child.assemble import WEIGHTS_FILE, load_parent
    from tangram.config import Finetune
    from tangram.corpus.tokens import read_tokens
    from tangram.provenance import fingerprint
    from tangram.selection.finetuned import FinetunedCandidates, schedule
    from tangram.training.loop import Checkpointing

    settings, corpus, activations, compared = of_training
    parent, score, candidates, cache = files
    training, input_ids = Finetune.model_validate_json(settings), read_tokens(corpus)
    final = StreamedActivations(model, compared, training.micro_batch_size).hidden(len(architectures[0].layers))
    assert section.tokens is not None  # checked by the config
    steps = section.tokens // (training.batch_size * input_ids.shape[1])
    inputs: list[str | Path] = [Path(parent, WEIGHTS_FILE), corpus, score, candidates]
    identity = fingerprint([*metadata.values(), str(runtime.seed), runtime.dtype], inputs)
    return FinetunedCandidates(
        parent=model,
        parent_state=load_parent(parent)[1],
        architectures=architectures,
        library=library,
        input_ids=input_ids,
        activations=open_activations(activations, model, input_ids, training.micro_batch_size, runtime.local_copy),
        compared=(compared, final),
        settings=training,
        seed=runtime.seed,
        rounds=schedule(len(architectures), steps),
        state=Checkpointing(Path(_folder(cache)), section.checkpoint_seconds, identity),
    )


def _rows(
    section: Selection, scores: "CandidateScores", length: int, trained: "FinetunedCandidates | None"
) -> list[dict[str, Any]]:
    """Return the SELECTION table's rows: all computed scores, and of finetuned candidates the last ones."""
    import numpy as np

    first = 0 if trained is None else trained.first_prompt(length)
    metric = section.metric if trained is None else "kl"
    rows = [
        {
            "candidate": int(arm),
            "prompt": first + int(prompt),
            "metric": metric,
            "value": float(scores.values[arm, prompt]),
            "tokens": _tokens(section, length),
        }
        for arm, prompt in np.argwhere(np.isfinite(scores.values))
    ]
    return rows if trained is None else [*rows, *trained.rows()]


def _tokens(section: Selection, length: int) -> int:
    """Return the tokens of one evaluation: a child writes the judge's continuation, and the judge reads it."""
    return length + (2 * section.continuation_tokens if section.metric == "judge" else 0)


def _summary(
    section: Selection,
    scores: "CandidateScores",
    choice: "Choice",
    length: int,
    trained: "FinetunedCandidates | None",
) -> dict[str, Any]:
    """Return the selected candidate and the cost of the selection."""
    import numpy as np

    evaluated = np.isfinite(scores.values)
    return {
        "selected": choice.candidate,
        "policy": section.policy,
        "candidates": scores.arms,
        "prompts": scores.prompts,
        "evaluated": int(evaluated.sum()),
        "share": float(evaluated.mean()),
        "tokens": int(evaluated.sum()) * _tokens(section, length),
        "duels": choice.duels,
        "prompts_seen": evaluated.sum(1).tolist(),
        "mean": [row[np.isfinite(row)].mean() if np.isfinite(row).any() else None for row in scores.values],
        "layers_shared": 1 - scores.layers_run / scores.layers_asked if scores.layers_asked else 0.0,
        **({} if trained is None else {"finetuned": trained.summary()}),
    }


if __name__ == "__main__":
    run(select_child)
