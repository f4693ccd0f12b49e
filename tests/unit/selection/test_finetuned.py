"""Successive halving by finetunings: equal shares of the tokens, a doubled budget, and training in parts."""

import copy

import numpy as np
import pytest
import torch

from tangram.activations import StreamedActivations
from tangram.config import Finetune
from tangram.errors import TangramError
from tangram.finetune import finetune, part_of
from tangram.models.loading import load_model
from tangram.selection.finetuned import Round, halve, schedule


def test_every_round_has_an_equal_share_and_half_the_candidates():
    assert schedule(16, 120) == [Round(8, range(0, 5)), Round(4, range(5, 15)), Round(2, range(15, 35))]
    assert schedule(2, 10) == [Round(2, range(0, 5))]
    assert schedule(3, 10) == [Round(2, range(0, 5))]
    for candidates in range(2, 40):
        rounds = schedule(candidates, 200)
        assert sum(each.candidates * len(each.steps) for each in rounds) <= 200
        assert rounds[-1].candidates == 2


def test_too_few_tokens_for_a_step_are_an_error():
    schedule(16, 24)
    with pytest.raises(TangramError, match="raise it"):
        schedule(16, 23)


def test_the_winner_has_the_lowest_score_of_the_last_round():
    table = np.array([[5.0, 1.0, 3.0, 4.0, 0.0], [0.0, 2.0, 1.0, 0.0, 0.0]])  # by round and candidate
    trained = []

    def train(number, candidate):
        trained.append((number, candidate))
        return np.full(3, table[number, candidate])

    rounds = [Round(4, range(0, 1)), Round(2, range(1, 3))]
    assert halve([3, 2, 1, 0, 4], rounds, train) == [[1, 2, 3, 0], [2, 1]]
    assert trained == [(0, 3), (0, 2), (0, 1), (0, 0), (1, 1), (1, 2)]


def test_parts_read_the_sequences_of_the_whole_training(tiny_parent):
    parent = load_model(tiny_parent("llama"))
    tokens = torch.randint(0, parent.config.vocab_size, (7, 10), generator=torch.Generator().manual_seed(2))
    settings = Finetune(batch_size=2, micro_batch_size=2, schedule="constant", warmup_fraction=0, learning_rate=1e-4)
    parts = [part_of(settings, 7, 10, number, 3) for number in (1, 2, 3)]
    assert [step for part in parts for step in part] == [0, 1, 2, 3]
    states, child = StreamedActivations(parent, tokens, 4), copy.deepcopy(parent)
    whole = finetune(copy.deepcopy(child), parent, states, tokens, settings, 5)
    counts = [
        finetune(child, parent, states, tokens, settings, 5, steps=part)[-1]["tokens"] for part in parts if len(part)
    ]
    assert sum(counts) == whole[-1]["tokens"] == 70
