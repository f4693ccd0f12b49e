"""Scores by answers against whole children that answer each choice as a sequence of its own, and against lm-eval."""

import copy
import math

import numpy as np
import pytest
import torch
from replaced import replaced

from tangram.blocks import get_block
from tangram.blocks.calibration import Calibration
from tangram.evaluation.tasks import Benchmark, Question
from tangram.models.families import Shape, decoder_layers
from tangram.models.loading import load_model, load_tokenizer
from tangram.models.replace import replace_head
from tangram.scores.answers import AnswerScores, tree_of
from tangram.scores.questions import Asked

TEXTS = ["What is it?", "The parent is a decoder; what is the child, if the pieces are its own?", "def f(x):", "Hm"]
QUESTIONS = [
    Asked("t", f"Question: {text}\nAnswer:", (f" {i}", " a faster one", f" not {i} seconds"), i % 3)
    for i, text in enumerate(TEXTS * 3)
]


@pytest.fixture(params=["llama", "mistral", "gemma2", "gemma3_text", "granite"])
def family(request, tiny_parent):
    folder = tiny_parent(request.param)
    return load_model(folder, "float32", "cpu").requires_grad_(False), load_tokenizer(folder)


def one_by_one(model, tokenizer, questions=QUESTIONS):
    """Return accuracy and margin of every question from a forward pass per choice."""
    right, margins = [], []
    for question in questions:
        start = len(tokenizer(question.prompt).input_ids)
        scores = []
        for choice in question.choices:
            ids = tokenizer(question.prompt + choice, return_tensors="pt").input_ids
            with torch.no_grad():
                chosen = model(ids).logits[0].double().log_softmax(-1)
            scores.append(sum(chosen[i - 1, ids[0, i]].item() for i in range(start, ids.shape[1])))
        right.append(float(scores.index(max(scores)) == question.label))
        others = [score for i, score in enumerate(scores) if i != question.label]
        margins.append(scores[question.label] - float(np.logaddexp.reduce(others)))
    return {"accuracy": torch.tensor(right), "margin": torch.tensor(margins, dtype=torch.float64)}


def pieces_of(model):
    """Return variants and weights of pieces of every layer, in order."""
    shape = Shape.of(model.config)
    states = torch.randn(40, model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    given = Calibration(inputs=states, outputs=states, weights=torch.ones(40), ridge=1e-3)
    for index, layer in enumerate(decoder_layers(model)):
        block = get_block("attention", f"gqa-{model.config.num_key_value_heads // 2}", shape)
        yield index, block, block.initialize(layer.self_attn, given)
        yield index, get_block("ffn", "no-op", shape), {}


def test_scores_are_those_of_whole_children(family):
    model, tokenizer = family
    scorer, parent = AnswerScores(model, tokenizer, QUESTIONS), one_by_one(model, tokenizer)
    for index, block, weights in pieces_of(model):
        rows = {row["metric"]: row for row in scorer.score_piece(index, block, weights)}
        child = copy.deepcopy(model)
        child.model.layers[index] = replaced(model, index, block.kind, str(block.variant), weights)
        answers = one_by_one(child, tokenizer)
        for metric in ("accuracy", "margin"):
            differences = (parent[metric] - answers[metric]).double()
            assert rows[metric]["value"] == pytest.approx(differences.mean().item(), abs=1e-4)
            error = differences.std(correction=1).item() / math.sqrt(len(QUESTIONS))
            assert rows[metric]["standard_error"] == pytest.approx(error, abs=1e-4)
        assert (rows["margin"]["layer"], rows["margin"]["kind"]) == (index, block.kind)
        assert rows["margin"]["value"] != 0


def test_the_parent_s_own_layer_and_head_change_nothing(tiny_parent):
    folder = tiny_parent("llama")
    model, tokenizer = load_model(folder).requires_grad_(False), load_tokenizer(folder)
    scorer = AnswerScores(model, tokenizer, QUESTIONS)
    states = scorer._run(0, [copy.deepcopy(decoder_layers(model)[0])])
    assert torch.equal(scorer._answers(states, None)["margin"], scorer.answers["margin"])
    head = replace_head(model.lm_head, "bf16", model.lm_head.to(torch.bfloat16).state_dict())
    margins = scorer._answers(scorer._run(0, []), head)["margin"]
    assert torch.allclose(margins, scorer.answers["margin"], atol=0.2)
    assert not torch.equal(margins, scorer.answers["margin"])


def test_the_parent_s_answers_are_those_of_lm_eval(tiny_parent, tmp_path):
    from tangram.evaluation.harness import answer_tasks
    from tangram.evaluation.tasks import write_tasks

    folder = tiny_parent("llama")
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    questions = tuple(
        Question(question.prompt.removeprefix("Question: ").removesuffix("\nAnswer:"), choices, question.label)
        for question in QUESTIONS
        for choices in [tuple(choice[1:] for choice in question.choices)]
    )
    tasks = {"mine": Benchmark(questions, "Question: {{input}}\nAnswer:")}
    write_tasks(tasks, tmp_path)
    expected = answer_tasks(model, tokenizer, tmp_path, tasks, None, "test")["mine"]["acc"]
    ours = AnswerScores(model, tokenizer, QUESTIONS).answers["accuracy"].mean().item()
    assert ours == pytest.approx(float(expected.mean()))
    assert 0 < ours < 1


def test_a_long_question_loses_its_beginning(tiny_parent):
    tokenizer = load_tokenizer(tiny_parent("llama"))
    tree = tree_of(QUESTIONS[1], tokenizer, [], 12)
    sizes = [len(tokenizer(choice).input_ids) for choice in QUESTIONS[1].choices]
    assert tree.branches.count(0) == 12 + 1 - max(sizes)
    whole = tree_of(QUESTIONS[1], tokenizer, [], None)
    assert tree.tokens[: tree.branches.count(0)] == tokenizer(QUESTIONS[1].prompt).input_ids[-tree.branches.count(0) :]
    assert whole.tokens[: whole.branches.count(0)] == tokenizer(QUESTIONS[1].prompt).input_ids
    assert tree.targets == whole.targets
