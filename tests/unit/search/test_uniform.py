"""The rivals of one precision, and the reference that all limits are relative to."""

import json

import pytest
from synthetic_library import CHAT, PRECISIONS, library, limit, with_stock_parent

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.commands.uniform_precision import uniform_precision
from tangram.config import Search, Target, slice_of
from tangram.errors import TangramError
from tangram.search.solutions import load_solutions
from tangram.search.solve import solve
from tangram.search.summary import beside_parent, predictions
from tangram.search.uniform import uniform_precisions
from tangram.tables import CALIBRATION, COSTS, SCORES, write_table

TARGET = {"constraints": [limit("throughput", 1.2)]}


def of(variant: str, layers: int) -> Architecture:
    return Architecture((LayerChoice(variant, variant),) * layers, variant)


def test_every_precision_of_all_subblocks_is_a_rival():
    problem = library(0, 4, PRECISIONS, PRECISIONS, head=PRECISIONS).problem(TARGET)
    rivals = uniform_precisions(problem)
    assert rivals == {"uniform-bf16": of("parent@bf16", 4), "uniform-int8": of("parent@int8", 4)}


@pytest.mark.parametrize("kind", ["attention", "ffn", "head"])
def test_a_precision_that_one_kind_lacks_is_no_rival(kind):
    variants = {"attention": PRECISIONS, "ffn": PRECISIONS, "head": PRECISIONS} | {kind: {"parent@bf16": 0.6}}
    assert list(uniform_precisions(library(0, 4, **variants).problem(TARGET))) == ["uniform-bf16"]


def test_a_precision_without_a_score_in_one_layer_is_no_rival():
    tables = library(0, 4, PRECISIONS, PRECISIONS, head=PRECISIONS)
    tables.scores = tables.scores.query("not (kind == 'ffn' and layer == 2 and variant == 'parent@int8')")
    assert list(uniform_precisions(tables.problem(TARGET))) == ["uniform-bf16"]


def test_the_command_writes_every_rival_by_name(tmp_path):
    def write(**variants) -> dict:
        tables = library(0, 4, **variants)
        for name, schema in (("scores", SCORES), ("costs", COSTS), ("calibration", CALIBRATION)):
            write_table(getattr(tables, name), schema, tmp_path / f"{name}.parquet")
        (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 4, "dtype": "float32"}))
        paths = {name: str(tmp_path / f"{name}.parquet") for name in ("scores", "costs", "calibration")}
        target = Target.model_validate(TARGET)
        settings = slice_of({"target": target, "search": Search(), "scenarios": tables.scenarios})
        return {**paths, "settings": settings, "parent": str(tmp_path), "solutions": str(tmp_path / "uniform.json")}

    uniform_precision(**write(attention=PRECISIONS, ffn=PRECISIONS, head=PRECISIONS))
    assert load_solutions(tmp_path / "uniform.json") == {
        "uniform-bf16": of("parent@bf16", 4),
        "uniform-int8": of("parent@int8", 4),
    }
    entries = json.loads((tmp_path / "uniform.json").read_text())["solutions"]
    assert 1 < entries[0]["scenarios"]["chat"]["speedup"] < entries[1]["scenarios"]["chat"]["speedup"]
    with pytest.raises(TangramError, match=r"no precision of the parent .* library\.head$"):
        uniform_precision(**write(attention=PRECISIONS, ffn=PRECISIONS))


def test_limits_are_relative_to_the_parent_in_stock_transformers():
    tables = library(1, 3, scenarios={"chat": CHAT})
    constraints = [limit(quantity, 1.0) for quantity in ("throughput", "latency", "time_to_first_token", "memory")]
    plain = tables.problem({"constraints": constraints})
    factors = {"prefill": 1.5, "decode": 2.0}
    problem = with_stock_parent(tables, factors).problem({"constraints": constraints})
    generate, parent = CHAT.generate, problem.parent
    for batch in CHAT.batch_sizes:
        packed = plain.costs.predict(parent, "chat", batch)
        assert problem.costs.predict(parent, "chat", batch) == packed
        prefill = packed.time_to_first_token
        step = (packed.latency - prefill) / generate
        latency = 1.5 * prefill + generate * 2.0 * step
        _, slow, first, memory = (problem.reference(c, {"chat": batch}) for c in problem.target.constraints)
        assert (slow, first) == (pytest.approx(latency), pytest.approx(1.5 * prefill))
        assert memory == packed.memory
    fastest = problem.reference(problem.target.constraints[0], {})
    tokens = CHAT.prefill + generate
    assert fastest == pytest.approx(
        max(b * tokens / problem.stock.costs.predict(parent, "chat", b).latency for b in CHAT.batch_sizes)
    )
    assert fastest < plain.reference(plain.target.constraints[0], {})


def test_limits_can_be_relative_to_the_packed_parent():
    tables, quantities = library(1, 3, scenarios={"chat": CHAT}), ("throughput", "latency", "memory")
    constraints = [{**limit(quantity, 1.0), "reference": "packed"} for quantity in quantities]
    plain = tables.problem({"constraints": [limit(quantity, 1.0) for quantity in quantities]})
    problem = with_stock_parent(tables, {"prefill": 1.5, "decode": 2.0}).problem({"constraints": constraints})
    batches = {"chat": CHAT.batch_sizes[0]}
    for ours, theirs in zip(problem.target.constraints, plain.target.constraints, strict=True):
        assert problem.reference(ours, batches) == plain.reference(theirs, batches)
    assert str(problem.target.constraints[0]) == "throughput in 'chat' >= 1 x the packed parent's"


def test_children_as_fast_as_a_rival_are_no_worse():
    tables = library(2, 4, PRECISIONS, PRECISIONS, head=PRECISIONS)
    constraints = [{**limit(quantity, 1.0), "reference": "uniform-int8"} for quantity in ("throughput", "memory")]
    problem = with_stock_parent(tables, {"prefill": 1.5, "decode": 2.0}).problem({"constraints": constraints})
    rival = of("parent@int8", 4)
    batches = problem.usual_batches(rival)
    for constraint in problem.target.constraints:
        assert problem.reference(constraint, batches) == problem.predict(constraint, rival, batches)
    assert problem.feasible(rival, batches)
    best = solve(problem, Search())[0].architecture
    assert problem.feasible(best, batches)
    assert problem.objective(best) <= problem.objective(rival)
    assert str(problem.target.constraints[0]) == "throughput in 'chat' >= 1 x that of uniform-int8"


def test_speedups_are_over_the_parent_in_stock_transformers():
    problem = with_stock_parent(library(1, 3), {"prefill": 1.6, "decode": 1.6}).problem(TARGET)
    assert predictions(problem, problem.parent, {})["chat"]["speedup"] == pytest.approx(1.6)
    stock = beside_parent(problem, [])["parent"]["scenarios"]["chat"]
    assert stock["speedup"] == 1.0
    assert stock["throughput"] == pytest.approx(problem.costs.predict(problem.parent, "chat", 4).throughput / 1.6)
