"""Select one of a target's candidates by their scores on prompts, adaptively, before anything is finetuned."""

from typing import Annotated

import typer

from tangram.cli import run, use_threads
from tangram.config import Selection


def select_child(
    settings: Annotated[str, typer.Option(help="a target's section `selection` as JSON")],
    parent: Annotated[str, typer.Option(help="parent's folder")],
    corpus: Annotated[str, typer.Option(help="score split, which prompts are cut from")],
    library: Annotated[str, typer.Option(help="library folder, {kind}/{variant}/{shard}.safetensors")],
    shards: Annotated[str, typer.Option(help="all shards, e.g. 00-14,15-29")],
    candidates: Annotated[str, typer.Option(help="the candidates' architectures, as `pick_pieces` wrote them")],
    cache: Annotated[str, typer.Option(help="file of the scores that a killed job goes on from")],
    architecture: Annotated[str, typer.Option(help="the selected architecture to write")],
    table: Annotated[str, typer.Option(help="SELECTION table to write")],
    summary: Annotated[str, typer.Option(help="JSON to write: who was selected, at what cost")],
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
    threads: int = 1,
) -> None:
    """Write the selected architecture and the scores that decided."""
    use_threads(threads, seed, device)
    import hashlib
    import json
    import sys
    from pathlib import Path

    import numpy as np

    from tangram.blocks.architecture import LayerChoice, modules_of, save_architecture
    from tangram.child.assemble import WEIGHTS_FILE
    from tangram.corpus.tokens import read_tokens
    from tangram.files import sha256_of, write_text
    from tangram.library.pieces import read_library
    from tangram.models.loading import load_model
    from tangram.provenance import provenance
    from tangram.selection.candidates import CandidateScores, cut_prompts
    from tangram.selection.choose import choose
    from tangram.selection.judge import JudgedScores
    from tangram.tables import SELECTION, write_table

    section = Selection.model_validate_json(settings)
    architectures = [
        tuple(LayerChoice(**layer) for layer in entry["layers"])
        for entry in json.loads(Path(candidates).read_text(encoding="utf-8"))["candidates"]
    ]
    made_by = provenance("tangram.commands.select_child", settings, device, modules_of(*architectures))
    prompts = cut_prompts(read_tokens(corpus), section.prompt_tokens)
    origin = [sha256_of(path) for path in (str(Path(parent, WEIGHTS_FILE)), corpus, candidates)]
    judged = section.metric == "judge"
    written = section.continuation_tokens if judged else 0
    # Not the policy: scores hold for all of them.
    what = [made_by["tangram.code"], section.metric, str(section.prompt_tokens), str(written), dtype, *origin]
    identity = hashlib.sha256(" ".join(what).encode()).hexdigest()
    given = (load_model(parent, dtype, device), prompts, architectures, read_library(library, tuple(shards.split(","))))
    kept = (section.batch_size, Path(cache), identity, section.checkpoint_seconds)
    scores = JudgedScores(*given, written, *kept) if judged else CandidateScores(*given, section.metric, *kept)
    budget = max(len(architectures), round(section.budget * scores.arms * scores.prompts))
    choice = choose(section.policy, scores, budget, np.random.default_rng(seed))
    selected, known = choice.candidate, np.isfinite(scores.values)
    tokens = prompts.shape[1] + 2 * written  # a child writes a continuation, and the judge reads it
    rows = [
        {
            "candidate": int(arm),
            "prompt": int(prompt),
            "metric": section.metric,
            "value": float(scores.values[arm, prompt]),
            "tokens": tokens,
        }
        for arm, prompt in np.argwhere(known)
    ]
    means = [row[np.isfinite(row)].mean() if np.isfinite(row).any() else None for row in scores.values]
    content = {
        "selected": selected,
        "policy": section.policy,
        "candidates": scores.arms,
        "prompts": scores.prompts,
        "evaluated": int(known.sum()),
        "share": float(known.mean()),
        "tokens": int(known.sum()) * tokens,
        "duels": choice.duels,
        "prompts_seen": known.sum(1).tolist(),
        "mean": means,
        "layers_shared": 1 - scores.layers_run / scores.layers_asked if scores.layers_asked else 0.0,
    }
    print(
        f"select_child: candidate {selected} of {scores.arms}, {section.metric} {content['mean'][selected]:.4f}, after "
        f"{content['evaluated']} of {known.size} evaluations ({section.policy})",
        file=sys.stderr,
    )
    save_architecture(architectures[selected], architecture)
    write_table(rows, SELECTION, table, made_by)
    write_text(summary, json.dumps({**content, "provenance": made_by}, indent=2) + "\n")
    Path(cache).unlink(missing_ok=True)


if __name__ == "__main__":
    run(select_child)
