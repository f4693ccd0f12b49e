"""Select one of a target's candidates adaptively by their scores on prompts, before finetuning."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tangram.cli import ONE_THREAD, RuntimeOption, reads, reads_model, run, writes
from tangram.config import Selection

if TYPE_CHECKING:
    from tangram.selection.candidates import CandidateScores
    from tangram.selection.choose import Choice


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
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write the selected solution and the scores behind the selection."""
    runtime.start()
    import functools
    import json
    import sys
    from dataclasses import asdict
    from pathlib import Path

    import numpy as np

    from tangram.blocks.architecture import from_json, modules_of
    from tangram.child.assemble import WEIGHTS_FILE
    from tangram.corpus.tokens import read_tokens
    from tangram.files import write_text
    from tangram.library.pieces import read_library
    from tangram.models.loading import load_model
    from tangram.provenance import fingerprint, provenance
    from tangram.search.solutions import save_solutions
    from tangram.selection.candidates import CandidateScores, cut_prompts
    from tangram.selection.choose import choose
    from tangram.selection.judge import JudgedScores
    from tangram.tables import SELECTION, write_table

    section = Selection.model_validate_json(settings)
    entries = json.loads(Path(candidates).read_text(encoding="utf-8"))["candidates"]
    architectures = [from_json(entry) for entry in entries]
    metadata = provenance("tangram.commands.select_child", settings, runtime.device, modules_of(*architectures))
    prompts = cut_prompts(read_tokens(corpus), section.prompt_tokens)
    judged = section.metric == "judge"
    continuation = section.continuation_tokens if judged else 0
    # Without the policy: scores do not depend on it.
    facts = [metadata["tangram.code"], section.metric, str(section.prompt_tokens), str(continuation), runtime.dtype]
    create_scores = (
        functools.partial(JudgedScores, continuation_tokens=continuation)
        if judged
        else functools.partial(CandidateScores, metric=section.metric)
    )
    scores = create_scores(
        model=load_model(parent, runtime.dtype, runtime.device),
        prompts=prompts,
        architectures=architectures,
        library=read_library(library, tuple(shards.split(","))),
        batch_size=section.batch_size,
        cache=Path(cache),
        identity=fingerprint(facts, [Path(parent, WEIGHTS_FILE), corpus, candidates]),
        checkpoint_seconds=section.checkpoint_seconds,
    )
    budget = max(len(architectures), round(section.budget * scores.arms * scores.prompts))
    choice = choose(section.policy, scores, budget, np.random.default_rng(runtime.seed))
    tokens = prompts.shape[1] + 2 * continuation  # the child writes the continuation, and the judge reads it
    content = _summary(section, scores, choice, tokens)
    selected = choice.candidate
    print(
        f"select_child: candidate {selected} of {scores.arms}, {section.metric} {content['mean'][selected]:.4f}, after "
        f"{content['evaluated']} of {scores.values.size} evaluations ({section.policy})",
        file=sys.stderr,
    )
    entry = {"solution": "0", "candidate": selected, **asdict(architectures[selected])}
    save_solutions({"solutions": [entry]}, solutions, metadata)
    write_table(_rows(section, scores, tokens), SELECTION, table, metadata)
    write_text(summary, json.dumps({**content, "provenance": metadata}, indent=2) + "\n")
    Path(cache).unlink(missing_ok=True)


def _rows(section: Selection, scores: "CandidateScores", tokens: int) -> list[dict[str, Any]]:
    """Return the SELECTION table's rows: all computed scores."""
    import numpy as np

    return [
        {
            "candidate": int(arm),
            "prompt": int(prompt),
            "metric": section.metric,
            "value": float(scores.values[arm, prompt]),
            "tokens": tokens,
        }
        for arm, prompt in np.argwhere(np.isfinite(scores.values))
    ]


def _summary(section: Selection, scores: "CandidateScores", choice: "Choice", tokens: int) -> dict[str, Any]:
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
        "tokens": int(evaluated.sum()) * tokens,
        "duels": choice.duels,
        "prompts_seen": evaluated.sum(1).tolist(),
        "mean": [row[np.isfinite(row)].mean() if np.isfinite(row).any() else None for row in scores.values],
        "layers_shared": 1 - scores.layers_run / scores.layers_asked if scores.layers_asked else 0.0,
    }


if __name__ == "__main__":
    run(select_child)
