"""Halves of tasks: which questions scores see, and which remain for evaluation."""

import hashlib
import json

import pytest

from tangram.config import ScoreTasks
from tangram.errors import TangramError
from tangram.evaluation.tasks import Benchmark, Question
from tangram.scores.questions import (
    in_train_half,
    load_questions,
    save_questions,
    tasks_of,
    train_questions,
    without_train_half,
)


def lines(count, name="letter", offset=0):
    return [{"question": f"Which {name} is {i + offset}?", "choices": ["x", "y"], "label": i % 2} for i in range(count)]


@pytest.fixture
def write(tmp_path):
    def write(name, entries):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        return str(path)

    return write


def even(text):
    """Return whether the first hexadecimal digit of a text's SHA-256 is even, by another way."""
    return hashlib.sha256(text.encode()).digest()[0] >> 4 & 1 == 0


def test_scores_and_evaluation_share_no_question(write):
    names = [write("letters", lines(40)), write("digits", lines(40, "digit"))]
    tasks = tasks_of(names, None)
    asked = train_questions(ScoreTasks(names=names, questions=80), None)
    rest = without_train_half(tasks, tasks)
    scored = {question.prompt for question in asked}
    evaluated = {f"Question: {question.input}\nAnswer:" for task in rest.values() for question in task.questions}
    everything = {f"Question: {e['question']}\nAnswer:" for e in (*lines(40), *lines(40, "digit"))}
    assert not scored & evaluated
    assert scored | evaluated == everything
    assert 20 < len(scored) < 60
    assert all(even(prompt.removeprefix("Question: ").removesuffix("\nAnswer:")) for prompt in scored)


def test_a_question_in_another_task_is_left_out_there(write):
    scored = tasks_of([write("letters", lines(30))], None)
    both = Benchmark(tuple(Question(f"Which  letter is {i}?", ("x", "y"), 0) for i in range(60)))  # another space
    foreign = Benchmark(source="arc_easy")
    found = without_train_half({"both": both, "arc_easy": foreign}, scored)
    left_out = {question.input for question in both.questions} - {
        question.input for question in found["both"].questions
    }
    assert left_out == {f"Which  letter is {i}?" for i in range(30) if even(f"Which letter is {i}?")}
    assert found["arc_easy"] == foreign


def test_tasks_have_equal_shares_up_to_the_cap(write):
    names = [write("letters", lines(60)), write("digits", lines(60, "digit")), write("few", lines(8, "one"))]
    found = train_questions(ScoreTasks(names=names, questions=30), None)
    counts = {name: sum(question.task == name for question in found) for name in ("letters", "digits", "few")}
    few = sum(even(entry["question"]) for entry in lines(8, "one"))
    assert counts == {"letters": 10, "digits": 10, "few": few}
    assert found == train_questions(ScoreTasks(names=names, questions=30), None)
    assert found[0].choices == (" x", " y")


def test_questions_are_read_as_written(write, tmp_path):
    found = train_questions(ScoreTasks(names=[write("letters", lines(9))]), None)
    save_questions(found, tmp_path / "questions.json")
    assert load_questions(tmp_path / "questions.json") == found


def test_bad_tasks_are_one_line(write):
    written = write("written", [{"question": "a?", "answer": "b"}])
    with pytest.raises(TangramError, match=r"scores\.tasks\.names: the answers of 'written' are written; name a task"):
        tasks_of([written], None)
    with pytest.raises(TangramError, match=r"scores\.tasks\.names: 'arc_easy' is no task of evaluation\.task_archive"):
        tasks_of(["arc_easy"], None)
    with pytest.raises(TangramError, match=r"scores\.tasks\.names: /no/where\.jsonl does not exist"):
        tasks_of(["/no/where.jsonl"], None)
    odd = next(entry for entry in lines(40) if not even(entry["question"]))
    with pytest.raises(TangramError, match=r"'odd' has too few questions to be halved"):
        train_questions(ScoreTasks(names=[write("odd", [odd])]), None)
    first = next(entry for entry in lines(40) if even(entry["question"]))
    tasks = tasks_of([write("even", [first])], None)
    with pytest.raises(TangramError, match=r"evaluation\.tasks: scores use all questions of 'even'; leave it out"):
        without_train_half(tasks, tasks)


def test_the_half_is_that_of_the_question_s_text():
    question = Question("Which letter is 3?", ("x", "y"), 0)
    assert in_train_half(question) == even("Which letter is 3?")
    assert in_train_half(Question("Which letter  is\n3?", ("a", "b", "c"), 1)) == in_train_half(question)
