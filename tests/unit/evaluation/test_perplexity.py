import math
import shutil
from pathlib import Path

import pytest
import torch

from tangram.config import HubText, LocalText, Perplexity
from tangram.errors import TangramError
from tangram.evaluation.perplexity import (
    Losses,
    by_token,
    loss_rows,
    losses_of,
    pages,
    perplexity_of,
    read_text,
    windows,
)
from tangram.models.loading import load_model, load_tokenizer
from tangram.tables import SAMPLES, read_table, write_table

WIKI = """ \n = First Page = \n \n The river @-@ bed , which is " long " , is 1 @,@ 000 m ( 3 @.@ 2 ft ) deep . \n
 = = A Section = = \n \n It 's cold ; people 's boats rest . \n = = = A Part = = = \n Nothing else here . \n
 = Second = \n \n A shorter page : the sea ' s side . \n\n = Third Page = \n \n One more line , with words . \n"""


@pytest.fixture
def parent(tiny_parent):
    folder = tiny_parent("llama", max_position_embeddings=64)
    return load_model(folder), load_tokenizer(folder)


def section(tmp_path: Path, text: str = WIKI, **settings: object) -> Perplexity:
    path = tmp_path / "wiki.txt"
    path.write_text(text)
    return Perplexity(name="wiki", source=LocalText(type="local", paths=(str(path),)), **settings)


def test_every_token_but_the_first_is_predicted_once():
    for tokens, length, stride in [(100, 10, 3), (97, 16, 16), (5, 64, 64), (64, 64, 1), (65, 64, 64), (66, 64, 64)]:
        found = list(windows(tokens, length, stride))
        predicted = [position for start, end, first in found for position in range(first, end)]
        without_overlap = stride == length
        starts = set(range(0, tokens, length)) if without_overlap else {0}
        assert predicted == [position for position in range(tokens) if position not in starts]
        assert all(end - start <= length and first > start for start, end, first in found)


@pytest.mark.parametrize(("length", "stride"), [(32, 32), (32, 8), (16, 15), (64, 1)])
def test_token_level_is_that_of_the_documentation(parent, length, stride):
    """Masked labels and the model's own loss, window by window, weighted by the number of predicted tokens."""
    model, tokenizer = parent
    ids = tokenizer(WIKI, return_tensors="pt").input_ids
    total, count, previous = 0.0, 0, 0
    for start in range(0, ids.shape[1], stride):
        end = min(start + length, ids.shape[1])
        labels = ids[:, start:end].clone()
        labels[:, : previous - start] = -100
        predicted = int((labels[:, 1:] != -100).sum())
        if predicted:
            with torch.no_grad():
                total += model(ids[:, start:end], labels=labels).loss.item() * predicted
            count += predicted
        previous = end
        if end == ids.shape[1]:
            break
    found = by_token(model, tokenizer, WIKI, length, stride, "test")
    assert found.counts.sum() == count
    assert perplexity_of(found) == pytest.approx(math.exp(total / count), rel=1e-5)


TASK = """\
task: wiki
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: !function preprocess_wikitext.wikitext_detokenizer
process_results: !function preprocess_wikitext.process_results
metric_list:
  - {{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}
  - {{metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}
  - {{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}}
"""


def test_word_level_is_that_of_lm_eval_s_wikitext(parent, tmp_path):
    """Its task with its own model, on the pages as its dataset's script makes them, here by hand."""
    import json

    import lm_eval.tasks.wikitext.preprocess_wikitext as preprocess
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from tangram.evaluation.harness import answer_tasks
    from tangram.evaluation.tasks import Benchmark

    lines = WIKI.split("\n")
    heads = [i for i, line in enumerate(lines) if line.strip() in ("= First Page =", "= Second =", "= Third Page =")]
    by_hand = ["\n".join(lines[i:j]) for i, j in zip(heads, [*heads[1:], None], strict=True)]
    assert pages(WIKI) == by_hand
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"page": page}) for page in by_hand))
    (tmp_path / "wiki.yaml").write_text(TASK.format(data=data, cache=tmp_path / "cache"))
    shutil.copy(preprocess.__file__, tmp_path)
    model, tokenizer = parent
    loaded = TaskManager(include_path=str(tmp_path), include_defaults=False).load(["wiki"])
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
    expected = evaluate(lm, loaded, bootstrap_iters=0)["results"]["wiki"]
    for level in ("word", "byte"):
        text = section(tmp_path, level=level)
        found = losses_of(model, tokenizer, text, read_text("wiki", text.source), "test")
        assert len(found.nats) == 3
        assert perplexity_of(found) == pytest.approx(expected[f"{level}_perplexity,none"], rel=1e-5)
    # As a task, it leaves the same losses for the report.
    tasks = {"wiki": Benchmark(source=str(tmp_path / "wiki.yaml"))}
    answer = answer_tasks(model, tokenizer, tmp_path, tasks, None, "test")["wiki"]
    assert set(answer) == {"nats", "words", "bytes"}
    word = math.exp(float(answer["nats"].sum() / answer["words"].sum()))
    assert word == pytest.approx(expected["word_perplexity,none"], rel=1e-5)


def test_shorter_windows_lose_context_but_no_word(parent, tmp_path):
    model, tokenizer = parent
    found = {}
    for length in (8, 64):
        text = section(tmp_path, level="word", max_length=length)
        found[length] = losses_of(model, tokenizer, text, [WIKI], "test")
    assert torch.equal(found[8].counts, found[64].counts)
    assert not torch.allclose(found[8].nats, found[64].nats)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"stride": 8, "level": "word"}, "lm-eval's convention of level word has no stride"),
        ({"stride": 9, "max_length": 8}, "stride 9 exceeds max_length 8"),
    ],
)
def test_settings_without_a_convention_are_refused(tmp_path, settings, expected):
    with pytest.raises(ValueError, match=expected):
        section(tmp_path, **settings)


def test_windows_beyond_the_context_are_one_line(parent, tmp_path):
    for settings, expected in [
        ({"max_length": 65}, "max_length 65 exceeds the model's 64 positions; lower it"),
        ({"stride": 65}, "stride 65 exceeds the windows of 64 tokens"),
    ]:
        with pytest.raises(TangramError, match=rf"config\.evaluation\.perplexity: 'wiki': {expected}"):
            losses_of(*parent, section(tmp_path, **settings), [WIKI], "test")


def test_texts_are_read_in_order_and_an_empty_one_is_one_line(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"page": "b"}\n{"page": ""}\n{"page": "a"}\n{"page": "b"}\n')
    source = LocalText(type="local", paths=(str(rows),), text_column="page")
    assert read_text("rows", source) == ["b", "", "a", "b"]
    blank = section(tmp_path, " \n")
    with pytest.raises(TangramError, match=r"config\.evaluation\.perplexity: 'wiki' is empty"):
        read_text("wiki", blank.source)
    missing = LocalText(type="local", paths=("nowhere.txt",))
    with pytest.raises(TangramError, match=r"config\.evaluation\.perplexity: 'wiki': no file matches 'nowhere\.txt'"):
        read_text("wiki", missing)


def test_every_part_is_a_row_of_the_table(tmp_path):
    text = Perplexity(name="wiki", source=HubText(type="hub", repo="some/text"), level="word")
    rows = loss_rows("parent", text, Losses(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0])))
    write_table(rows, SAMPLES, tmp_path / "perplexity.parquet")
    found = read_table(tmp_path / "perplexity.parquet", SAMPLES).set_index(["task", "metric", "sample"]).value
    assert found["wiki", "nats"].tolist() == [3.0, 4.0]
    assert found["wiki", "words"].tolist() == [1.0, 2.0]
