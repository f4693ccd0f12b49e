"""Estimate the scores of all pieces by second order, and score the contenders of all targets exactly."""

from typing import Annotated

import typer

from tangram.cli import ONE_THREAD, RuntimeOption, reads, reads_model, run, writes
from tangram.config import Scenario, Scores, Search, Section, Target


class Settings(Section):
    """The slice of the config that this command needs."""

    scores: Scores
    library: dict[str, tuple[str, ...]]
    targets: tuple[Target, ...]
    search: Search
    scenarios: dict[str, Scenario]


def score_screened(
    settings: Annotated[str, typer.Option(help="`scores`, `library`, `targets`, `search` and `scenarios` as JSON")],
    parent: Annotated[str, reads_model("parent")],
    corpus: Annotated[str, reads("score split")],
    library: Annotated[str, typer.Option(help="library folder, {kind}/{variant}/{shard}.safetensors")],
    shards: Annotated[str, typer.Option(help="all shards, e.g. 00-14,15-29")],
    tables: Annotated[str, typer.Option(help="folder of costs/{engine}.parquet and calibration/{engine}.parquet")],
    cache: Annotated[str, typer.Option(help="file of the exact scores, which a later job takes over")],
    output: Annotated[str, writes("SCORES table")],
    activations: Annotated[str | None, reads("cached activations; recomputed if omitted")] = None,
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write an estimate of every piece's KL, and the exact metrics of the pieces in the targets' solutions."""
    runtime.start()
    from pathlib import Path

    from tqdm import tqdm

    from tangram.activations import open_activations
    from tangram.blocks import HEAD, Variant
    from tangram.blocks.registry import modules_of_variants
    from tangram.corpus.tokens import read_tokens
    from tangram.files import check_writable
    from tangram.library.pieces import read_library
    from tangram.models.by_layer import load_by_layer
    from tangram.models.capability import check_capability
    from tangram.models.families import shape_of
    from tangram.models.loading import WEIGHTS, load_model
    from tangram.provenance import provenance
    from tangram.scores.exact import ExactScores, identity_of
    from tangram.scores.replace_one import ReplaceOne
    from tangram.scores.second_order import SecondOrder
    from tangram.search.contenders import Case, score_contenders
    from tangram.search.cost_model import CostModel
    from tangram.tables import CALIBRATION, COSTS, SCORES, read_table, write_table

    section = Settings.model_validate_json(settings)
    check_writable(output)
    variants = [variant for names in section.library.values() for variant in names]
    check_capability([Variant.parse(variant).precision for variant in variants], runtime.device)
    cases = []
    for target in section.targets:
        costs, calibration = (Path(tables) / folder / f"{target.engine}.parquet" for folder in ("costs", "calibration"))
        model_of_costs = CostModel(read_table(costs, COSTS), read_table(calibration, CALIBRATION), section.scenarios)
        cases.append(Case(target, model_of_costs))
    model = (load_by_layer if runtime.by_layer else load_model)(parent, runtime.dtype, runtime.device)
    model.requires_grad_(False)
    input_ids, scores = read_tokens(corpus), section.scores
    states = open_activations(activations, model, input_ids, scores.batch_size, runtime.local_copy)
    pieces, shape = read_library(library, tuple(shards.split(","))), shape_of(parent)
    screening = SecondOrder(model, states, scores.label_samples, scores.batch_size, runtime.seed)
    count = shape.num_layers * sum(len(names) for kind, names in section.library.items() if kind != HEAD)
    rows = screening.rows(section.library, pieces)
    estimates = list(tqdm(rows, desc="score_screened estimates", total=count, mininterval=5))
    options = scores.position_stride, scores.batch_size
    scorer = ReplaceOne(model, states, input_ids, *options, compute=scores.compute)
    modules = modules_of_variants(variants)
    facts = [*options, scores.compute, runtime.device, runtime.dtype]
    identity = identity_of(facts, modules, [Path(parent) / WEIGHTS, corpus])
    exactly = ExactScores(scorer, pieces, shape, Path(cache), identity)
    heads = exactly([(0, HEAD, variant) for variant in section.library.get(HEAD, ())])
    exact = score_contenders(estimates, heads, cases, section.search, shape.num_layers, exactly)
    metadata = provenance("tangram.commands.score_screened", settings, runtime.device, modules)
    write_table([*estimates, *exact], SCORES, output, metadata)


if __name__ == "__main__":
    run(score_screened)
