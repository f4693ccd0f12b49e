"""Questions about long texts: what a reader of the prompt finds there, and the answers of models."""

import re

import pytest
import torch

from tangram.config import LongContext
from tangram.config import evaluation as limits
from tangram.errors import TangramError
from tangram.evaluation.long_context import (
    NAMES,
    NEEDLE,
    NOISE,
    TRACKING,
    Generator,
    LongQuestion,
    margins,
    question_rows,
    read_sentences,
)
from tangram.models.loading import load_model, load_tokenizer
from tangram.models.packed import pack
from tangram.tables import CORPUS, LONG_CONTEXT, read_table, write_table

SENTENCES = [f"Sentence {i} tells of the day on which {i * 37} birds came back, and of the rain." for i in range(90)]


@pytest.fixture
def tokenizer(tiny_parent):
    return load_tokenizer(tiny_parent("llama"))


def drawn(tokenizer, task, length, sentences=SENTENCES, seed=0, **settings):
    section = LongContext(**{"lengths": (length,), "questions": 12, **settings})
    return Generator(section, tokenizer, sentences, seed).questions(task, length)


def solved(question: LongQuestion) -> str:
    """Return the answer that a reader of the prompt gives, by rules of his own."""
    text, asked = question.prompt.rsplit("\n\n", 1)
    name = re.fullmatch(r"The number of the (\w+) is", asked)[1]
    known = re.findall(r"The number of the (\w+) is (?:the number of the )?(\w+)\.", text)
    assert len(known) == len(dict(known)), "no name has two numbers"
    answer = ""
    while True:
        source = dict(known)[name]
        if source.isdigit():
            return f"{answer} {source}"
        assert text.index(f"The number of the {source} is") < text.index(f"The number of the {name} is")
        answer += f" the number of the {source}. The number of the {source} is"
        name = source


@pytest.mark.parametrize(("task", "settings"), [(NEEDLE, {}), (TRACKING, {}), (TRACKING, {"hops": 3, "choices": 2})])
@pytest.mark.parametrize("length", [500, 900])
def test_a_reader_of_the_prompt_finds_the_one_answer(tokenizer, task, settings, length):
    questions = drawn(tokenizer, task, length, **settings)
    for question in questions:
        assert question.choices[question.label] == solved(question)
        assert len(set(question.choices)) == settings.get("choices", 4)
        numbers = [re.search(r"\d+$", choice)[0] for choice in question.choices]
        assert all(question.prompt.count(number) == 1 for number in numbers), "each number is in the text"
        names = {name for choice in question.choices for name in re.findall(r"number of the (\w+)", choice)}
        assert all(f"The number of the {name} is" in question.prompt for name in names)
    assert len({question.label for question in questions}) > 1
    assert len({question.prompt for question in questions}) == 12


def test_a_wrong_chain_leaves_the_right_one_at_any_hop(tokenizer):
    first_hops = set()
    for question in drawn(tokenizer, TRACKING, 900, hops=2):
        text, asked = question.prompt.rsplit("\n\n", 1)
        right = f"{asked}{question.choices[question.label]}.".split(". ")
        assert len(right) == 3
        for choice in set(question.choices) - {question.choices[question.label]}:
            steps = f"{asked}{choice}.".split(". ")
            hop = next(i for i, (own, step) in enumerate(zip(right, steps, strict=True)) if own != step)
            first_hops.add(hop)
            steps[-1] = steps[-1].removesuffix(".")
            assert f"{steps[hop]}." not in text, "it leaves by a statement that is not in the text"
            assert all(f"{step}." in text for step in steps[hop + 1 :]), "and goes on by true ones"
    assert first_hops == {0, 1, 2}


def test_there_are_names_for_all_that_the_config_allows():
    assert len(set(NAMES)) == len(NAMES) == limits.NAMES
    LongContext(lengths=(256,), choices=16, hops=2)
    with pytest.raises(
        ValueError, match="16 choices with 3 hops need 64 names, and there are 48; lower choices or hop"
    ):
        LongContext(lengths=(256,), choices=16, hops=3)
    LongContext(lengths=(256,), choices=16, hops=3, tasks=("needle",))


@pytest.mark.parametrize("task", [NEEDLE, TRACKING])
@pytest.mark.parametrize("length", [400, 900])
def test_a_question_has_its_length_in_tokens(tokenizer, task, length):
    for question in drawn(tokenizer, task, length):
        longest = max(len(tokenizer(question.prompt + choice).input_ids) for choice in question.choices)
        word = max(len(tokenizer(word).input_ids) for sentence in SENTENCES for word in sentence.split()) + 1
        assert length - word <= longest <= length


def test_statements_stand_anywhere_in_the_text(tokenizer):
    questions = drawn(tokenizer, NEEDLE, 900, questions=40)
    for question in questions:
        text = question.prompt.rsplit("\n\n", 1)[0]
        share = text.index(question.choices[question.label].strip()) / len(text)
        assert share == pytest.approx(question.depth, abs=0.15)
    depths = [question.depth for question in questions]
    assert min(depths) < 0.2
    assert max(depths) > 0.8


def test_the_seed_alone_decides_the_questions(tokenizer):
    assert drawn(tokenizer, TRACKING, 400) == drawn(tokenizer, TRACKING, 400)
    assert drawn(tokenizer, TRACKING, 400) != drawn(tokenizer, TRACKING, 400, seed=1)


def test_a_short_split_is_replaced_by_simple_sentences(tokenizer):
    for question in drawn(tokenizer, NEEDLE, 400, sentences=SENTENCES[:3]):
        text = re.sub(r"The number of the \w+ is \d+\.", "", question.prompt.rsplit("\n\n", 1)[0])
        assert "Sentence" not in text
        assert set(re.findall(r"\S[^.]*\.", text)) <= set(NOISE)


def test_a_length_without_room_for_statements_is_one_line(tokenizer):
    with pytest.raises(TangramError, match=r"lengths: the statements of 'needle' alone exceed 20 tokens; raise it"):
        drawn(tokenizer, NEEDLE, 20)


def test_sentences_are_those_of_the_split(tokenizer, tmp_path):
    texts = ["One sentence. Another one! And a third?", "x" * 300]
    ids = [tokenizer(text).input_ids for text in texts]
    row = {"sequence_id": 0, "source": "text", "input_ids": ids[0] + ids[1], "documents": ["a", "b"]}
    write_table([{**row, "document_starts": [0, len(ids[0])]}], CORPUS, tmp_path / "heldout.parquet")
    found = read_sentences(tmp_path / "heldout.parquet", tokenizer)
    assert found == ["One sentence.", "Another one!", "And a third?", "x" * 240, "x" * 60]


def test_margins_are_those_of_separate_sequences(tiny_parent, tokenizer):
    model = load_model(tiny_parent("llama"))
    questions = drawn(tokenizer, NEEDLE, 120, choices=2, questions=5)
    found = margins(pack(model), tokenizer, questions, "test")
    reference = load_model(tiny_parent("llama"))
    for question, margin in zip(questions, found, strict=True):
        scores = []
        for choice in question.choices:
            before, ids = (
                tokenizer(text, return_tensors="pt").input_ids for text in (question.prompt, question.prompt + choice)
            )
            with torch.no_grad():
                logits = reference(ids).logits[0].log_softmax(-1)
            start = before.shape[1]
            scores.append(sum(logits[i - 1, ids[0, i]].item() for i in range(start, ids.shape[1])))
        right = scores.pop(question.label)
        assert margin == pytest.approx(right - max(scores), abs=1e-4)


def test_every_answer_is_a_row_for_each_metric(tmp_path):
    questions = [LongQuestion("a", (" 1", " 2"), 0, 0.25), LongQuestion("b", (" 1", " 2"), 1, 0.75)]
    write_table(question_rows("child", NEEDLE, 256, questions, [0.5, -2.0]), LONG_CONTEXT, tmp_path / "t.parquet")
    found = read_table(tmp_path / "t.parquet", LONG_CONTEXT).set_index(["metric", "sample"])
    assert found.value["acc"].tolist() == [1.0, 0.0]
    assert found.value["margin"].tolist() == [0.5, -2.0]
    assert found.value["chance"].tolist() == [0.5, 0.5]
    assert found.depth["acc"].tolist() == [0.25, 0.75]
