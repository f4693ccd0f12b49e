"""The pieces of a round: all for the parent's subblocks, cheaper ones for others, and feasibility by brute force."""

import itertools

import pytest
from synthetic_library import CHAT, library, limit

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.config import Search
from tangram.rounds.options import in_child, replaceable
from tangram.search.solve import solve

VARIANTS = {"attention": {"gqa-1": 0.7, "no-op": 0.0}, "ffn": {"width-0.5": 0.6, "width-0.25": 0.35, "no-op": 0.0}}
TABLES = library(3, 2, **VARIANTS, scenarios={"chat": CHAT}, head={"parent@int8": 0.4})
CHILD = Architecture((LayerChoice("parent", "width-0.25"), LayerChoice("no-op", "width-0.5")), "parent@int8")


def test_only_cheaper_pieces_replace_a_replaced_subblock():
    problem = TABLES.problem({"constraints": [limit("parameters", 0.5, None)]})
    assert replaceable(problem, CHILD) == [
        (0, "ffn", "no-op"),
        (0, "attention", "gqa-1"),
        (0, "attention", "no-op"),
        (1, "ffn", "no-op"),
        (1, "ffn", "width-0.25"),
    ]


def test_a_childs_subblocks_score_zero_and_pairs_are_sums():
    problem = TABLES.problem({"constraints": [limit("parameters", 0.5, None)]})
    scores = {piece: 0.1 * number for number, piece in enumerate(replaceable(problem, CHILD), start=1)}
    there = in_child(problem, CHILD, scores)
    assert there.objective(CHILD) == 0
    first = {option.choice: option.score for option in there.options[0]}
    assert first == pytest.approx(
        {
            LayerChoice("parent", "width-0.25"): 0.0,
            LayerChoice("parent", "no-op"): 0.1,
            LayerChoice("gqa-1", "width-0.25"): 0.2,
            LayerChoice("gqa-1", "no-op"): 0.3,
            LayerChoice("no-op", "width-0.25"): 0.3,
            LayerChoice("no-op", "no-op"): 0.4,
        }
    )
    assert [option.choice for option in there.options[2]] == ["parent@int8"]
    cheapest = min((o for o in itertools.product(*there.options)), key=lambda o: sum(each.score for each in o))
    assert sum(option.score for option in cheapest) == 0


@pytest.mark.parametrize(
    "limits", [[limit("throughput", 2.2)], [limit("latency", 0.6), limit("kv_bytes_per_token", 0.7, None)]]
)
@pytest.mark.parametrize("seed", range(3))
def test_a_child_can_always_reach_a_feasible_target(limits, seed):
    tables = library(seed, 2, **VARIANTS, scenarios={"chat": CHAT})
    problem = tables.problem({"constraints": limits})
    solve(problem, Search())  # it is feasible
    for choices in itertools.product(*problem.options):
        child = Architecture.of(option.choice for option in choices)
        there = in_child(problem, child, dict.fromkeys(replaceable(problem, child), 0.1))
        reachable = any(
            there.feasible(Architecture.of(option.choice for option in group), batches)
            for batches in problem.batch_grid()
            for group in itertools.product(*there.options)
        )
        assert reachable, child
