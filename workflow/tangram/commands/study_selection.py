"""Measure how well policies choose among children of this run: a full table of scores, and replays of it."""

from collections.abc import Iterable
from typing import Annotated

import typer

from tangram.cli import run, use_threads
from tangram.config import Scenario, Search, Section, Studies, Target


class Settings(Section):
    """The slices of config that this command takes."""

    studies: Studies
    target: Target
    search: Search
    scenarios: dict[str, Scenario]


BATCH = 32
REPORTED = 64  # prompts of each of the splits that are only reported
CALIBRATION = 16  # prompts of each domain on which layers are left out one by one


def study_selection(
    settings: Annotated[str, typer.Option(help="config: `studies`, `search`, `scenarios` and a target, as JSON")],
    parent: Annotated[str, typer.Option(help="parent's folder")],
    heldout: Annotated[str, typer.Option(help="held-out split, for reporting")],
    scores: Annotated[str, typer.Option(help="SCORES table")],
    costs: Annotated[str, typer.Option(help="COSTS table")],
    calibration: Annotated[str, typer.Option(help="CALIBRATION table")],
    library: Annotated[str, typer.Option(help="library folder, {kind}/{variant}/{shard}.safetensors")],
    shards: Annotated[str, typer.Option(help="all shards, e.g. 00-14,15-29")],
    cache: Annotated[str, typer.Option(help="file of the scores that a killed job goes on from")],
    output: Annotated[str, typer.Option(help="folder for the study's tables and page, and for evidence.npz")],
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
    threads: int = 1,
) -> None:
    """Write claims with verdicts, the measurements behind them, and a page."""
    use_threads(threads, seed, device)
    import hashlib
    import sys
    import sysconfig
    from pathlib import Path

    import numpy as np
    import torch
    from tqdm import tqdm

    from tangram.blocks.registry import modules_of_variants
    from tangram.child.assemble import WEIGHTS_FILE
    from tangram.config import ParentSamples, PythonDocs
    from tangram.corpus.documents import documents
    from tangram.corpus.packing import pack
    from tangram.corpus.sampling import parent_samples
    from tangram.corpus.tokens import read_tokens
    from tangram.files import sha256_of
    from tangram.library.pieces import read_library
    from tangram.models.loading import load_model, load_tokenizer
    from tangram.provenance import provenance
    from tangram.search.problem import Settings as ProblemSettings
    from tangram.search.problem import load_problem
    from tangram.search.solve import solve
    from tangram.selection.candidates import CandidateScores, cut_prompts, layer_importance, shared_layers
    from tangram.studies.selection import Evidence, run_study, save_evidence
    from tangram.studies.study import write_study

    section = Settings.model_validate_json(settings)
    made_by = provenance("tangram.commands.study_selection", settings, device, modules_of_variants())
    full = section.studies.scale == "full"
    candidates, count, length, replications = (32, 2048, 64, 1000) if full else (16, 512, 16, 200)
    target = section.target.model_copy(update={"solutions": candidates, "selection": None})
    wanted = ProblemSettings(target=target, search=section.search, scenarios=section.scenarios)
    found = solve(load_problem(wanted, Path(scores), Path(costs), Path(calibration), Path(parent)), section.search)
    print(f"study_selection: {len(found)} solutions", file=sys.stderr)

    model, tokenizer = load_model(parent, dtype, device), load_tokenizer(parent)

    def packed(texts: Iterable[str], number: int) -> torch.Tensor:
        sequences = pack(texts, tokenizer, length, False)
        return torch.tensor([sequence.input_ids for sequence, _ in zip(sequences, range(number), strict=False)])

    source = ParentSamples(type="parent-samples", batch_size=128)
    written = parent_samples(source, model, tokenizer, "score", count, length, seed)
    own = torch.tensor([sequence.input_ids for sequence in written])
    docs = packed(documents(PythonDocs(type="python-docs"), "heldout", seed), REPORTED)
    passages = cut_prompts(read_tokens(heldout), length)[:REPORTED]
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    code = packed((path.read_text(encoding="utf-8", errors="replace") for path in modules), CALIBRATION)

    architectures = [solution.architecture for solution in found]
    origin = [sha256_of(path) for path in (str(Path(parent, WEIGHTS_FILE)), heldout, scores, costs, calibration)]
    identity = hashlib.sha256("".join([made_by["tangram.code"], settings, str(seed), *origin]).encode()).hexdigest()
    pieces = read_library(library, tuple(shards.split(",")))
    prompts = torch.cat([own, passages, docs])
    table = CandidateScores(model, prompts, architectures, pieces, "kl", BATCH, Path(cache), identity)
    order = range(0, table.prompts, BATCH)
    for start in tqdm(order, desc="study_selection: all candidates on all prompts", mininterval=5):
        table.look(np.arange(table.arms), np.arange(start, min(start + BATCH, table.prompts)))
    table.save()
    domains = {"parent's own": own, "passages": passages, "documentation": docs, "code": code}
    domains = {name: part[:CALIBRATION] for name, part in domains.items()}
    layers_cache = Path(cache).with_suffix(".layers.npz")
    print("study_selection: the parent without each of its layers", file=sys.stderr)
    importance = layer_importance(model, torch.cat(list(domains.values())), BATCH, layers_cache, identity)
    evidence = Evidence(
        scores=table.values[:, : len(own)],
        reported=table.values[:, len(own) :],
        objectives=np.array([solution.objective for solution in found]),
        prompt_tokens=length,
        importance=importance,
        domains=np.repeat(list(domains), [len(part) for part in domains.values()]),
        shared=shared_layers(architectures),
    )
    save_evidence(evidence, Path(output) / "evidence.npz")
    study = run_study(evidence, replications, seed)
    write_study(study, output, f"scale {section.studies.scale}", made_by)
    for path in (Path(cache), layers_cache):
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    run(study_selection)
