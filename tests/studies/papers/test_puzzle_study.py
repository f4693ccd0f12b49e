"""The study of Puzzle at a tiny size: it runs, resumes, and its parts agree with independent computations."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import write_parent
from tiny_run import task_archive
from torch import nn

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.blocks.base import NO_OP
from tangram.config import Costs, Scenario
from tangram.models.loading import load_model
from tangram.tables import CORPUS, write_table
from tangram_studies.papers.puzzle import laboratory, reproduce, sums, wanda
from tangram_studies.papers.puzzle.common import BASE, Bench, Scale, prepare
from tangram_studies.papers.puzzle.laboratory import Lab
from tangram_studies.papers.puzzle.searches import MIP, arms, shares
from tangram_studies.papers.puzzle.space import plain
from tangram_studies.papers.puzzle.training import adopted
from tangram_studies.papers.puzzle.work import Work
from tangram_studies.study import render_study

LENGTH = 16
TINY = Scale(
    length=LENGTH,
    distill=128,
    score=32,
    finetune=64,
    budgets=(32,),
    bld_budgets=(2, 4),
    passages=4,
    passage_tokens=LENGTH,
    speeds=(1.05, 1.1),
    speed=1.1,
    map_speeds=(1.05, 1.1),
    every=1,
    ranks=(2, 4),
    lengths=(640, 704, 768),
    questions=2,
    tasks=("toy",),
    children=6,
    finetuned=3,
    asked=4,
    answered=6,
    answered_by_many=4,
    rounds=3,
    costs=Costs(repeats=3, max_repeats=3, calibration_repeats=3),
    scenario=Scenario(prefill=8, generate=4, batch_sizes=(2,)),
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("puzzle")
    write_parent(folder / "parent")
    ids = torch.randint(3, 40, (4, 2 * LENGTH), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [
        {"sequence_id": i, "source": "x", "input_ids": row, "documents": ["a"], "document_starts": [0]}
        for i, row in enumerate(ids)
    ]
    write_table(rows, CORPUS, folder / "heldout.parquet", {})
    places = [str(folder / name) for name in ("parent", "heldout.parquet", "work")]
    return Lab(*places, "float32", "cpu", 0, LENGTH, TINY.passages, TINY.passage_tokens)


def work(lab: Lab, name: str) -> Work:
    return Work(Path(lab.folder, f"{name}.jsonl"), "identity", 1, 0, "cpu")


@pytest.fixture(scope="module")
def bench(lab) -> Bench:
    torch.set_num_threads(1)
    return prepare(lab, work(lab, "results"), work(lab, "timed"), TINY)


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("archive")
    examples = [
        {"input": f"What follows {i}?", "target_scores": {str(i + 1): 1, str(i - 1): 0, str(i): 0}} for i in range(60)
    ]
    task_archive(folder, "toy", examples)
    return str(folder / ".downloads" / "bigbench-1.0.0.tar.gz")


@pytest.fixture(scope="module")
def study(bench, archive):
    return reproduce(bench, work(bench.lab, "timed"), archive)


def test_the_study_of_puzzle_gives_every_claim_and_a_page(study):
    names = {claim.claim for claim in study.claims}
    assert {
        "no-op",
        "greedy",
        "parameters",
        "random",
        "lm-loss",
        "lm-loss-gap",
        "cosine",
        "attention-first",
        "middle-kept",
    } <= names
    assert {"lm-alone", "kl-alone", "cosine-alone", "lm-added", "gkd-1.1", "gkd-tokens"} <= names
    assert {"random-gkd", "random-weights", "low-rank", "wanda", "frontier", "bld", "bld-tokens", "narrow"} <= names
    assert {"context-long", "context-twice", "task-scores", "task-margin", "accuracy-kept", "coupled"} <= names
    assert {"sum-order-1.05", "gkd-order-1.1"} <= names
    assert {"answers-order-kl", "answers-order-accuracy", "answers-order-margin"} <= names
    assert {"sum-neighbors", "sum-discount", "sum-calibrated", "sum-shortlist", "sum-text"} <= names
    page = render_study(study)
    assert all(name in page for name in names)
    assert page.count("<svg") >= 3


def test_a_second_study_computes_nothing_again(bench, study, archive, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a kept result is computed again")

    for name in ("train_piece", "score_piece", "measure_child", "write_text"):
        function = getattr(laboratory, name)
        refusing = type(function)(refuse.__code__, refuse.__globals__, function.__name__)
        refusing.__module__, refusing.__qualname__ = function.__module__, function.__qualname__
        monkeypatch.setattr(laboratory, name, refusing)
    again = prepare(bench.lab, work(bench.lab, "results"), work(bench.lab, "timed"), TINY)
    assert reproduce(again, work(bench.lab, "timed"), archive).claims == study.claims


def test_a_line_that_a_kill_cut_off_is_computed_again(tmp_path):
    first = Work(tmp_path / "kept.jsonl", "identity", 1, 0, "cpu")
    assert first.run(divmod_of, [{"a": 7, "b": 2}, {"a": 9, "b": 2}], "x") == [[3, 1], [4, 1]]
    text = (tmp_path / "kept.jsonl").read_text()
    (tmp_path / "kept.jsonl").write_text(text[:-9])
    second = Work(tmp_path / "kept.jsonl", "identity", 1, 0, "cpu")
    assert second.run(divmod_of, [{"a": 7, "b": 2}, {"a": 9, "b": 2}], "x") == [[3, 1], [4, 1]]
    third = Work(tmp_path / "kept.jsonl", "identity", 1, 0, "cpu")
    assert third.run(divmod_of, [{"a": 9, "b": 2}], "x") == [[4, 1]]
    other = Work(tmp_path / "kept.jsonl", "another", 1, 0, "cpu")
    assert not set(other._known) & {other._key(divmod_of, {"a": 9, "b": 2})}


def divmod_of(a: int, b: int) -> list[int]:
    return list(divmod(a, b))


def threads_of(task: int) -> int:
    return torch.get_num_threads()


def test_a_single_task_has_one_thread_as_many_have(tmp_path):
    threads = torch.get_num_threads()
    several = Work(tmp_path / "several.jsonl", "identity", 2, 0, "cpu")
    try:
        torch.set_num_threads(2)
        assert several.run(threads_of, [{"task": 0}], "one") == [1]
        assert several.run(threads_of, [{"task": 0}, {"task": 1}, {"task": 2}], "several") == [1, 1, 1]
    finally:
        torch.set_num_threads(threads)
        several.close()


def test_several_processes_give_the_results_of_one(lab, bench, tmp_path):
    tasks = [
        {"lab": lab, "architecture": plain(architecture), "library": BASE}
        for architecture in arms(bench.space, 1.05, 0).values()
    ]
    alone = bench.work.run(laboratory.measure_child, tasks, "children")
    several = Work(tmp_path / "several.jsonl", "identity", 2, 0, "cpu")
    try:
        together = several.run(laboratory.measure_child, tasks, "children")
    finally:
        several.close()
    assert [part["kl"] for part in together] == [pytest.approx(part["kl"], abs=1e-6) for part in alone]


def test_every_search_is_as_fast_as_the_target(bench):
    for speed, seed in itertools.product(TINY.speeds, range(TINY.seeds)):
        found = arms(bench.space, speed, seed)
        assert MIP in found
        assert all(bench.space.speed(architecture) >= speed * (1 - 1e-6) for architecture in found.values())


def test_a_childs_kl_is_that_of_its_logits(lab, bench):
    architecture = bench.space.solve(1.05)
    measured = laboratory.measure_child(lab, plain(architecture), BASE)["kl"]
    tokens = laboratory.tokens_of(lab, laboratory.HELD_OUT)
    with torch.no_grad():
        child = laboratory.child_of(lab, plain(architecture), BASE)
        logs = [model(tokens).logits[:, 2:-1:4].log_softmax(-1) for model in (load_model(lab.parent), child)]
    expected = (logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean(1)
    assert measured == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-6)


def test_layers_before_the_first_change_need_not_run(lab, bench):
    parent = bench.space.problem(1.0).parent.layers
    architecture = plain(Architecture((*parent[:-1], LayerChoice(ffn=NO_OP))))
    first = laboratory.first_changed(architecture)
    assert first == lab.layers - 1
    child = laboratory.child_of(lab, architecture, BASE)
    assert laboratory.metrics_of(lab, child, first=first) == laboratory.metrics_of(lab, child)
    assert laboratory.first_changed(plain(Architecture(parent))) == lab.layers


def test_a_childs_kl_in_bfloat16_is_nearly_that_in_float32(lab, bench):
    architecture = plain(arms(bench.space, 1.1, 0)[MIP])
    exact, rounded = (
        laboratory.measure_child(dataclasses.replace(lab, compute=compute), architecture, BASE)["kl"]
        for compute in ("float32", "bfloat16")
    )
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.1)


def test_a_kept_child_is_read_and_not_trained_again(lab, bench, study, monkeypatch):
    task = {"lab": lab, "library": BASE, **adopted(arms(bench.space, 1.1, 0)[MIP], 5)}
    trained = laboratory.measure_child(**task)
    assert trained != laboratory.measure_child(**{**task, "training": None})
    monkeypatch.setattr(laboratory, "finetune", None)
    assert laboratory.measure_child(**task) == trained
    with pytest.raises(TypeError):
        laboratory.measure_child(**{**task, "seed": 6})


def test_the_fastest_speed_is_that_of_the_cheapest_options(bench):
    fastest = bench.space.fastest()
    empty = max(bench.space.speed(architecture) for architecture in arms(bench.space, 1.05, 0).values())
    assert fastest >= empty
    bench.space.solve(fastest * (1 - 1e-6))  # it exists
    with pytest.raises(Exception, match=r"target|limit|constraint"):
        bench.space.solve(fastest * 1.01)


def test_shares_of_time_are_1_for_the_parent_and_0_for_no_ops(bench):
    architecture = bench.space.solve(1.1)
    for kind in ("attention", "ffn"):
        values = shares(bench, architecture, kind)
        for layer, value in zip(architecture.layers, values, strict=True):
            expected = {"parent": 1.0, NO_OP: 0.0}.get(getattr(layer, kind))
            assert expected is None or value == pytest.approx(expected)


def test_terms_of_neighbors_give_the_best_by_enumeration(bench):
    problem, generator = bench.space.problem(1.05), np.random.default_rng(0)
    terms = {pair: float(generator.uniform(-1, 2)) for pair in sums.neighbors(bench.lab.layers)}

    def objective(architecture) -> float:
        total = problem.objective(architecture)
        for (first, second), factor in terms.items():
            scores = [
                sums.score_of(problem, each, getattr(architecture.layers[each[0]], each[1])) for each in (first, second)
            ]
            total += factor * np.sqrt(max(scores[0], 0) * max(scores[1], 0))
        return total

    found = sums.solve_with_terms(problem, terms)
    (batches,) = problem.batch_grid()
    choices = itertools.product(*([option.choice for option in group] for group in problem.options))
    feasible = (each for each in map(Architecture.of, choices) if problem.feasible(each, batches))
    best = min(map(objective, feasible))
    assert problem.feasible(found, batches)
    assert objective(found) == pytest.approx(best, rel=2e-3, abs=1e-5)


def test_wanda_keeps_the_two_most_important_of_four():
    generator = torch.Generator().manual_seed(0)
    weight, norms = torch.randn(5, 8, generator=generator), torch.rand(8, generator=generator)
    kept = wanda.mask(weight, norms).numpy()
    for row, start in itertools.product(range(5), (0, 4)):
        importance = (weight[row].abs() * norms).numpy()[start : start + 4]
        best = max(itertools.combinations(range(4), 2), key=lambda pair: importance[list(pair)].sum())
        assert set(np.flatnonzero(kept[row, start : start + 4])) == set(best)


def test_training_keeps_the_zeros_of_a_mask(lab, bench, study):
    child = laboratory.model_of(lab, plain(bench.space.problem(1.0).parent), BASE, weights="wanda")
    matrices = [module.weight for module in child.model.layers.modules() if isinstance(module, nn.Linear)]
    for matrix in matrices:
        assert (matrix == 0).double().mean().item() == pytest.approx(0.5)
    before = [matrix.detach().clone() for matrix in matrices]
    wanda.keep_zeros(child)
    tokens = laboratory.tokens_of(lab, laboratory.HELD_OUT)
    optimizer = torch.optim.AdamW(matrices, lr=1e-2, weight_decay=0)
    child(tokens, labels=tokens).loss.backward()
    optimizer.step()
    for matrix, old in zip(matrices, before, strict=True):
        assert torch.equal(matrix == 0, old == 0)
        assert not torch.equal(matrix, old)
