import copy
import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.child.assemble import build_config
from tangram.errors import TangramError
from tangram.evaluation.harness import answer_rows, answer_tasks
from tangram.evaluation.tasks import Benchmark, Question, load_tasks, parse_task, read_tasks, save_tasks, write_tasks
from tangram.models.loading import load_model, load_tokenizer
from tangram.models.modeling_tangram import TangramLlamaForCausalLM
from tangram.models.packed import pack
from tangram.tables import SAMPLES, read_table, write_table

QUESTIONS = [
    Question("How many legs do horses have?", ("two", "four", "six", "none"), 1),
    Question("What is rain made of?", ("water", "air", "a great many cats"), 0),
    Question("Sky: what color?", ("it is green", "it is blue"), 1),
    Question("Opposite of 'hot'?", ("warm", "cold", "h"), 1),
    Question("Zeile\nzwei — which {{language}}?", ("Deutsch", "français", "日本語"), 0),
    Question("2 + 2 =", ("4", "5", "22", "fish"), 0),
]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({"<eos>": 0} | {char: i + 1 for i, char in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", bos_token="<eos>", pad_token="<eos>")


@pytest.fixture
def child() -> PreTrainedModel:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    stock = LlamaConfig(**sizes, num_hidden_layers=3, vocab_size=257, initializer_range=0.3)
    architecture = Architecture((LayerChoice("no-op", "linear"), LayerChoice("gqa-1", "width-0.5"), LayerChoice()))
    return TangramLlamaForCausalLM(build_config(stock, architecture)).eval()


@torch.no_grad()
def log_likelihoods(model, tokenizer, question: Question) -> list[float]:
    """The independent scorer: question and choice as one sequence, one choice at a time."""
    prompt = tokenizer.encode(f"Q: {question.input}\nA:")
    found = []
    for choice in question.choices:
        ids = torch.tensor([prompt + tokenizer.encode(f" {choice}")])
        scores = model(ids).logits[0, :-1].double().log_softmax(-1).gather(-1, ids[0, 1:, None])
        found.append(scores[len(prompt) - 1 :].sum().item())
    return found


def test_lm_eval_answers_as_one_forward_pass_per_choice_does(child, tokenizer, tmp_path):
    tasks = {"made/up": Benchmark(tuple(QUESTIONS)), "more": Benchmark(tuple(QUESTIONS[:3]))}
    write_tasks(tasks, tmp_path)
    answers = answer_tasks(child, tokenizer, tmp_path, tasks, None, "test")
    scores = [log_likelihoods(child, tokenizer, question) for question in QUESTIONS]
    right = [float(np.argmax(s) == q.label) for s, q in zip(scores, QUESTIONS, strict=True)]
    norms = [np.array(s) / [len(c) for c in q.choices] for s, q in zip(scores, QUESTIONS, strict=True)]
    right_norm = [float(np.argmax(s) == q.label) for s, q in zip(norms, QUESTIONS, strict=True)]
    assert 0 < sum(right) < 6  # a scorer that cannot tell choices apart would not pass
    assert right != right_norm
    assert answers["made/up"]["acc"].tolist() == right
    assert answers["made/up"]["acc_norm"].tolist() == right_norm
    assert answers["more"]["acc"].tolist() == right[:3]
    assert answers["made/up"]["chance"].tolist() == pytest.approx([1 / 4, 1 / 3, 1 / 2, 1 / 3, 1 / 3, 1 / 4])

    from lm_eval.api.instance import Instance

    from tangram.evaluation.shared_prefix import SharedPrefixLM

    requests = [
        Instance("loglikelihood", {}, (f"Q: {question.input}\nA:", f" {choice}"), index)
        for question in QUESTIONS
        for index, choice in enumerate(question.choices)
    ]
    found = SharedPrefixLM(child, tokenizer, "test").loglikelihood(requests, disable_tqdm=True)
    expected = [score for question in scores for score in question]
    assert [score for score, _ in found] == pytest.approx(expected, rel=1e-5)
    packed = SharedPrefixLM(pack(copy.deepcopy(child)), tokenizer, "test").loglikelihood(requests, disable_tqdm=True)
    assert [score for score, _ in packed] == pytest.approx(expected, rel=1e-5)

    with torch.no_grad():
        child.model.norm.weight[0] = torch.nan
    with pytest.raises(TangramError, match=r"^test: the model's outputs are not finite; [^\n]*$"):
        answer_tasks(child, tokenizer, tmp_path, {"more": tasks["more"]}, 1, "test")


CONTEXTS = [
    ("mistral", {"sliding_window": 8}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}),
    ("llama", {"max_position_embeddings": 64}),
    ("mistral", {"sliding_window": 8, "max_position_embeddings": 64}),
    ("qwen3", {}),
    ("granite", {"logits_scaling": 4.0, "embedding_multiplier": 3.0}),
    ("gemma2", {"sliding_window": 8, "final_logit_softcapping": 0.5}),
]


@pytest.mark.parametrize(("family", "overrides"), CONTEXTS)
@pytest.mark.parametrize("repetitions", [1, 9])
def test_windows_and_contexts_are_those_of_lm_eval_s_own_model(tiny_parent, family, overrides, repetitions):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from tangram.evaluation.shared_prefix import SharedPrefixLM

    folder = tiny_parent(family, **overrides)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    question = "Q: " + "Which of the two is it, and what comes after that? " * repetitions + "\nA:"
    choices = (" the first", " the second one, which is much longer than the other", " none")
    requests = [Instance("loglikelihood", {}, (question, choice), i) for i, choice in enumerate(choices)]
    stock = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1).loglikelihood(requests, disable_tqdm=True)
    found = SharedPrefixLM(model, tokenizer, "test").loglikelihood(requests, disable_tqdm=True)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in stock], rel=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in stock]


def test_a_choice_that_no_context_holds_is_one_line(tiny_parent):
    from lm_eval.api.instance import Instance

    from tangram.evaluation.shared_prefix import SharedPrefixLM

    folder = tiny_parent("llama", max_position_embeddings=8)
    lm = SharedPrefixLM(load_model(folder), load_tokenizer(folder), "test")
    with pytest.raises(TangramError, match=r"test: a choice has \d+ tokens, the model reads 8; leave its task out"):
        lm.loglikelihood([Instance("loglikelihood", {}, ("Q: a\nA:", " word" * 12), 0)], disable_tqdm=True)


def bigbench(*examples: dict) -> bytes:
    return json.dumps({"canary": "…", "examples": list(examples)}).encode()


def test_only_questions_with_one_right_choice_are_kept():
    content = bigbench(
        {"input": "a?", "target_scores": {"x": 0, "y": 1}},
        {"input": "b?", "target_scores": {"x": 1, "y": 1, "z": 0}},
        {"input": "c?", "target_scores": {"x": 0, "y": 0}},
        {"input": "d?", "target_scores": {"x": 1}},
    )
    assert parse_task("made_up", content) == [Question("a?", ("x", "y"), 1)]


def test_a_task_that_is_not_multiple_choice_is_refused():
    with pytest.raises(TangramError, match=r"config\.evaluation\.tasks: 'free' is not multiple choice"):
        parse_task("free", bigbench({"input": "a?", "target": "b"}))


def test_tasks_are_read_from_the_archive_in_the_order_asked_for(tmp_path):
    import io
    import tarfile

    archive = tmp_path / "bigbench-1.0.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("first", "group/first", "second", "unwanted"):
            content = bigbench({"input": f"{name}?", "target_scores": {"x": 0, "y": 1}})
            info = tarfile.TarInfo(f"bigbench-1.0.0/bigbench/benchmark_tasks/{name}/task.json")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    found = read_tasks(archive, ["second", "first", "group/first"])
    assert [(name, questions[0].input) for name, questions in found.items()] == [
        ("second", "second?"),
        ("first", "first?"),
        ("group/first", "group/first?"),
    ]


def test_saved_questions_are_loaded_unchanged(tmp_path):
    tasks = {"b": Benchmark(tuple(QUESTIONS)), "group/a": Benchmark((), "{{input}}", "arc_easy", 5, "acc_norm")}
    save_tasks(tasks, tmp_path / "questions.json")
    assert list(load_tasks(tmp_path / "questions.json").items()) == list(tasks.items())


def test_every_answer_is_a_row_of_the_table(tmp_path):
    values = {"acc": [1.0, 0.0], "acc_norm": [0.0, 0.0], "chance": [1 / 2, 1 / 4]}
    outcomes = {metric: torch.tensor(of_questions) for metric, of_questions in values.items()}
    write_table(answer_rows("child", {"a": outcomes}), SAMPLES, tmp_path / "tasks.parquet")
    found = read_table(tmp_path / "tasks.parquet", SAMPLES).set_index(["model", "task", "metric", "sample"]).value
    assert found["child", "a", "acc"].tolist() == [1.0, 0.0]
    assert found["child", "a", "acc_norm"].tolist() == [0.0, 0.0]
    assert found["child", "a", "chance"].tolist() == [0.5, 0.25]
