"""The fast path against lm-eval's own model, on lm-eval's own requests."""

import json
import random
from pathlib import Path

import pytest
import torch

from tangram.errors import TangramError
from tangram.evaluation.benchmarks import read_questions
from tangram.evaluation.harness import answer_rows, answer_tasks, load
from tangram.evaluation.tasks import Benchmark, write_tasks
from tangram.models.loading import load_model, load_tokenizer

WORDS = [
    "the",
    "water",
    "of",
    "a",
    "river",
    "flows",
    "down",
    "from",
    "hills",
    "to",
    "seas",
    "while",
    "birds",
    "and",
    "people",
    "rest",
    "at",
    "its",
    "cold",
    "long",
    "banks",
]


def text(rng: random.Random, most: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Questions and choices of one to 30 words, and questions with a written answer."""
    folder, rng = tmp_path_factory.mktemp("tasks"), random.Random(0)
    lines = [
        {"question": text(rng, 30), "choices": [text(rng, 12) for _ in range(rng.randint(2, 5))], "label": 1}
        for _ in range(8)
    ]
    (folder / "choose.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    lines = [{"question": text(rng, 20), "answer": text(rng, 2)} for _ in range(5)]
    (folder / "write.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder


def responses(lm, leaf) -> list:
    from lm_eval.evaluator import evaluate

    loaded = {"tasks": {"task": leaf}, "groups": {}, "group_map": {}}
    samples = evaluate(lm, loaded, bootstrap_iters=0)["samples"]["task"]
    return [response for sample in sorted(samples, key=lambda s: s["doc_id"]) for response in sample["resps"]]


@pytest.mark.parametrize("num_fewshot", [0, 3])
@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {}),
        ("llama", {"max_position_embeddings": 64}),  # cuts most questions
        ("qwen3", {"max_position_embeddings": 200}),  # cuts some
        ("mistral", {"sliding_window": 8}),
    ],
)
def test_answers_are_those_of_lm_eval_s_own_model(tiny_parent, folder, tmp_path, family, overrides, num_fewshot):
    from lm_eval.models.huggingface import HFLM

    from tangram.evaluation.shared_prefix import SharedPrefixLM

    checkpoint = tiny_parent(family, **overrides)
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    read = read_questions(folder / "choose.jsonl")
    task = Benchmark(read.questions, read.prompt, num_fewshot=num_fewshot)
    write_tasks({"choose": task}, tmp_path)
    stock = responses(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1), load("choose", task, tmp_path)[0])
    found = responses(SharedPrefixLM(model, tokenizer, "test"), load("choose", task, tmp_path)[0])
    assert [pair[0][0] for pair in found] == pytest.approx([pair[0][0] for pair in stock], rel=1e-4)
    assert [pair[0][1] for pair in found] == [pair[0][1] for pair in stock]
    assert len(found) == sum(len(question.choices) for question in read.questions)


def test_long_questions_are_reported(tiny_parent, folder, tmp_path, capsys):
    checkpoint = tiny_parent("llama", max_position_embeddings=64)
    tasks = {"choose": read_questions(folder / "choose.jsonl")}
    write_tasks(tasks, tmp_path)
    answer_tasks(load_model(checkpoint), load_tokenizer(checkpoint), tmp_path, tasks, None, "test")
    assert "questions with a choice exceed the model's 64 tokens and lose their beginning" in capsys.readouterr().err


def test_written_answers_are_those_of_lm_eval_s_own_model(tiny_parent, folder, tmp_path):
    from lm_eval.models.huggingface import HFLM

    from tangram.evaluation.shared_prefix import SharedPrefixLM

    checkpoint = tiny_parent("llama")
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    read = read_questions(folder / "write.jsonl")
    task = Benchmark(read.questions, read.prompt, num_fewshot=2)
    write_tasks({"write": task}, tmp_path)
    stock = responses(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1), load("write", task, tmp_path)[0])
    assert responses(SharedPrefixLM(model, tokenizer, "test"), load("write", task, tmp_path)[0]) == stock
    assert any(text for (text,) in stock)
    # The answers that the model writes count as exact matches, whatever their case and punctuation.
    right = [{"question": q.input, "answer": f"{a[0].strip().upper()}!"} for q, a in zip(read.questions, stock)]  # noqa: B905
    path = tmp_path / "right.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in right))
    tasks = {"right": read_questions(path), "wrong": read}
    write_tasks(tasks, tmp_path)
    answers = answer_tasks(model, tokenizer, tmp_path, tasks, None, "test")
    assert set(answers["right"]) == {"exact_match", "chance:exact_match"}
    assert answers["wrong"]["chance:exact_match"].tolist() == [0.0] * 5
    rows = answer_rows("parent", answers)
    assert [row["value"] for row in rows if (row["task"], row["metric"]) == ("wrong", "exact_match")] == [0.0] * 5


def test_generation_longer_than_the_context_is_one_line(tiny_parent, folder, tmp_path):
    checkpoint = tiny_parent("llama", max_position_embeddings=64)
    tasks = {"write": read_questions(folder / "write.jsonl")}
    write_tasks(tasks, tmp_path)
    with pytest.raises(TangramError, match="'write' writes up to 64 tokens, the model reads 64; leave it out"):
        answer_tasks(load_model(checkpoint), load_tokenizer(checkpoint), tmp_path, tasks, None, "test")


GROUP = """\
group: both
task: [first, second]
"""
LEAF = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: label
metric_list: [{{metric: acc, aggregation: mean}}, {{metric: acc_norm, aggregation: mean}}]
"""


def yaml_tasks(folder: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        content = LEAF.format(name=name, data=folder / "choose.jsonl", cache=tmp_path / "cache")
        (tmp_path / f"{name}.yaml").write_text(content)
    (tmp_path / "both.yaml").write_text(GROUP)


def test_a_group_is_one_task_and_another_metric_may_count(tiny_parent, folder, tmp_path):
    yaml_tasks(folder, tmp_path)
    checkpoint = tiny_parent("llama")
    tasks = {
        "both": Benchmark(source=str(tmp_path / "both.yaml"), metric="acc_norm"),
        "first": Benchmark(source=str(tmp_path / "first.yaml")),
    }
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    answers = answer_tasks(model, tokenizer, tmp_path, tasks, 3, "test")
    assert set(answers["both"]) == {"acc", "acc_norm", "chance:acc_norm"}
    assert set(answers["first"]) == {"acc", "acc_norm", "chance"}
    assert torch.equal(answers["both"]["acc"], answers["first"]["acc"].repeat(2))
    questions = read_questions(folder / "choose.jsonl").questions[:3]
    assert answers["first"]["chance"].tolist() == pytest.approx([1 / len(q.choices) for q in questions])


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ({"metric": "f1"}, "'first' has no metric 'f1'; it has acc, acc_norm"),
        ({"num_fewshot": 8}, "'first' has too few examples for num_fewshot: 8; lower it"),
        ({"source": "missing.yaml"}, "'first' cannot be loaded"),
    ],
)
def test_settings_that_do_not_fit_stop_before_long_work(folder, tmp_path, task, expected):
    yaml_tasks(folder, tmp_path)
    with pytest.raises(TangramError) as caught:
        load("first", Benchmark(**{"source": str(tmp_path / "first.yaml"), **task}), tmp_path)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
