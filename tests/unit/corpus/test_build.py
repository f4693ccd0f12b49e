"""The corpus: no overlap, exact lengths, honest bookkeeping, and the parent's text against a naive sampler."""

import errno
import json
import math
import shutil
import tarfile
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tangram.cli import run
from tangram.commands.build_corpus import build_corpus
from tangram.config import SPLITS, LocalText, Packing, Split
from tangram.corpus import framing
from tangram.corpus.build import build_split, shares
from tangram.corpus.documents import document_hash, documents, split_of
from tangram.corpus.packing import pack
from tangram.corpus.sampling import sample
from tangram.corpus.tokens import read_tokens
from tangram.errors import TangramError
from tangram.files import sha256_of
from tangram.models.loading import load_model, load_tokenizer
from tangram.tables import CORPUS, read_table

LENGTH = 16
OWN = {"type": "parent-samples", "batch_size": 3}
DOCS = {"type": "python-docs"}


@pytest.fixture(autouse=True)
def _quiet_caches(tmp_path_factory, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


@pytest.fixture
def parent(tiny_parent):
    return tiny_parent("llama")


def split(tokens: int, *sources: dict) -> Split:
    return Split.model_validate({"tokens": tokens, "sources": sources})


def build(parent: Path, name: str, wanted: Split, cross: bool = False, length: int = LENGTH, seed: int = 0) -> list:
    return build_split(name, wanted, Packing(sequence_length=length, cross_documents=cross), parent, seed)


@pytest.fixture
def stories(tmp_path) -> dict:
    """Forty local documents of several lengths, in JSONL, with blanks and a duplicate among them."""
    texts = [" ".join(f"Child {i} met parent {i * j}." for j in range(i % 7 * 3 + 2)) for i in range(40)]
    path = tmp_path / "stories.jsonl"
    rows = [*texts, texts[0], "", "  \n", None]
    path.write_text("".join(json.dumps({"body": text, "other": 1}) + "\n" for text in rows))
    return {"type": "local", "paths": [str(path)], "text_column": "body"}


def documents_of(rows: list) -> set[str]:
    return {document for row in rows for document in row["documents"]}


# --- splits ---------------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(st.text(st.characters(), max_size=20))
def test_every_text_belongs_to_exactly_one_split(text):
    key = document_hash(text)
    assert [name for name in SPLITS if split_of(key) == name] == [split_of(key)]


def test_documents_spread_evenly_over_the_splits():
    count = Counter(split_of(document_hash(str(i))) for i in range(4000))
    assert set(count) == set(SPLITS)
    assert all(abs(value - 1000) < 150 for value in count.values())


def test_splits_share_no_document_and_together_hold_them_all(stories):
    source = LocalText.model_validate(stories)
    parts = {name: set(documents(source, name, seed=1)) for name in SPLITS}
    lines = [json.loads(line)["body"] for line in Path(stories["paths"][0]).read_text().splitlines()]
    assert sorted(text for part in parts.values() for text in part) == sorted({t for t in lines if t and t.strip()})


def test_no_two_splits_of_a_corpus_overlap(parent, stories):
    wanted = split(12 * LENGTH, stories, OWN, DOCS)
    seen: dict[str, str] = {}
    rows_seen = set()
    for name in SPLITS:
        rows = build(parent, name, wanted)
        for document in documents_of(rows):
            assert seen.setdefault(document, name) == name
        for row in rows:
            assert tuple(row["input_ids"]) not in rows_seen
            rows_seen.add(tuple(row["input_ids"]))
    first = {
        name: {row["input_ids"][0] for row in build(parent, name, split(70 * LENGTH, OWN))} for name in SPLITS
    }  # the parent's documents are told apart by their first token
    assert sum(len(tokens) for tokens in first.values()) == len(set().union(*first.values()))


# --- packing --------------------------------------------------------------------------------------------------------


def test_each_sequence_is_a_piece_of_the_document_it_names(parent, stories):
    tokenizer = load_tokenizer(parent)
    source = LocalText.model_validate(stories)
    texts = list(documents(source, "distill", 0))
    pieces: dict[str, list[list[int]]] = {}
    for sequence in pack(texts, tokenizer, Packing(sequence_length=LENGTH)):
        assert len(sequence.input_ids) == LENGTH
        assert len(sequence.documents) == 1
        assert sequence.document_starts == [0]
        pieces.setdefault(sequence.documents[0], []).append(sequence.input_ids)
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        expected = [ids[i : i + LENGTH] for i in range(0, len(ids) - LENGTH + 1, LENGTH)]
        assert pieces.get(document_hash(text), []) == expected


class Letters:
    """A tokenizer that anyone can follow: each letter its code, 0 the end."""

    eos_token_id = 0

    def __call__(self, text):
        return {"input_ids": [ord(letter) for letter in text]}


@settings(max_examples=200)
@given(st.lists(st.text("abc", min_size=1, max_size=12), max_size=8, unique=True), st.integers(1, 7))
def test_crossing_documents_loses_nothing_and_tells_each_start(texts, length):
    stream = [code for text in texts for code in [*map(ord, text), 0]]
    owners = [document_hash(text) for text in texts for _ in range(len(text) + 1)]
    sequences = list(pack(texts, Letters(), Packing.model_construct(sequence_length=length, cross_documents=True)))
    assert [code for sequence in sequences for code in sequence.input_ids] == stream[: len(stream) // length * length]
    for i, sequence in enumerate(sequences):
        inside = owners[i * length : (i + 1) * length]
        starts = [j for j in range(length) if j == 0 or inside[j] != inside[j - 1]]
        assert sequence.document_starts == starts
        assert sequence.documents == [inside[j] for j in starts]


def test_weights_are_shares_of_the_tokens(parent, stories):
    rows = build(parent, "distill", split(20 * LENGTH - 3, {**OWN, "weight": 3}, {**DOCS, "weight": 1}))
    assert Counter(row["source"] for row in rows) == {"parent-samples": 15, "python-docs": 5}
    assert [row["sequence_id"] for row in rows] == list(range(20))
    assert [row["source"] for row in rows] != sorted(row["source"] for row in rows), "sources must be mixed"


@settings(max_examples=200)
@given(st.integers(0, 1000), st.lists(st.floats(0.01, 100), min_size=1, max_size=6))
def test_shares_add_up_and_are_off_by_less_than_one(total, weights):
    counts = shares(total, weights)
    assert sum(counts) == total
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - total * weight / math.fsum(weights)) < 1 + 1e-9


def write_texts(path: Path, texts: list[str]) -> dict:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return {"type": "local", "paths": [str(path)]}


@pytest.mark.parametrize("cross", [False, True])
def test_weights_hold_in_tokens_whatever_documents_hold(parent, tmp_path, cross):
    long = write_texts(tmp_path / "long.jsonl", [f"Document {i} is long. " + "It goes on. " * 99 for i in range(40)])
    short = write_texts(tmp_path / "short.jsonl", [f"{i} is a short document of some words." for i in range(1500)])
    wanted = split(40 * LENGTH, {**long, "weight": 1}, {**short, "weight": 4}) if cross else None
    wanted = wanted or split(40 * LENGTH, {**long, "weight": 1}, {**DOCS, "weight": 4})
    rows = build(parent, "distill", wanted, cross)
    of_long = {document_hash(json.loads(line)["text"]) for line in Path(long["paths"][0]).read_text().splitlines()}
    tokens = [len(row["input_ids"]) * bool(of_long.intersection(row["documents"])) for row in rows]
    assert sum(tokens) == 8 * LENGTH, "a fifth of the tokens, although it is far fewer of the documents"


def test_a_document_of_two_sources_is_taken_once(parent, tmp_path, capsys):
    texts = [f"Text {i} has more than sixteen tokens: " + "word " * 20 for i in range(60)]
    one, other = (write_texts(tmp_path / f"{name}.jsonl", texts) for name in ("one", "other"))
    found = list(documents(split(1, one).sources[0], "distill", 0))
    share, tokenizer = len(found), load_tokenizer(parent)
    count = len(list(pack(found, tokenizer, Packing(sequence_length=LENGTH))))
    with pytest.raises(TangramError, match="gives only 0 tokens"):
        build(parent, "distill", split(2 * count * LENGTH, one, other))
    assert f"build_corpus distill: local: documents left out: {share} duplicates\n" in capsys.readouterr().err
    rows = build(parent, "distill", split(count * LENGTH, one))
    assert len(documents_of(rows)) == share


def test_white_space_makes_no_second_document(tmp_path):
    texts = [f"Text {i} of\n\nseveral words." for i in range(60)]
    variants = [*texts, *(text.replace("\n\n", "  \t") + "\n" for text in texts), *texts]
    source = split(1, write_texts(tmp_path / "texts.jsonl", variants)).sources[0]
    exact = {name: list(documents(source, name, 0)) for name in SPLITS}
    assert sorted(text for part in exact.values() for text in part) == sorted(set(variants))
    dropped = {name: Counter() for name in SPLITS}
    parts = {name: list(documents(source, name, 0, None, "whitespace", None, dropped[name])) for name in SPLITS}
    words = [" ".join(text.split()) for part in parts.values() for text in part]
    assert sorted(words) == sorted(" ".join(text.split()) for text in texts), "once, in one split"
    assert all(text in variants for part in parts.values() for text in part), "the text itself is unchanged"
    assert sum(count["duplicates"] for count in dropped.values()) == 120


def test_the_order_of_variants_moves_no_document(tmp_path):
    texts = [f"Text {i}  of words" for i in range(40)]
    splits = []
    for name, variant in (("a", "Text {}  of words"), ("b", "Text {} of words\n")):
        source = split(1, write_texts(tmp_path / f"{name}.jsonl", [variant.format(i) for i in range(40)])).sources[0]
        parts = {part: list(documents(source, part, 0, None, "whitespace")) for part in SPLITS}
        splits.append({" ".join(text.split()): part for part, found in parts.items() for text in found})
    assert splits[0] == splits[1]
    assert len(splits[0]) == len(texts)


@pytest.mark.parametrize("cross", [False, True])
def test_documents_below_the_minimum_are_left_out(parent, stories, cross, capsys):
    source = LocalText.model_validate(stories)
    tokenizer = load_tokenizer(parent)
    texts = list(documents(source, "distill", 0))
    lengths = {document_hash(text): len(framing.document(text, tokenizer, separate=cross)) for text in texts}
    minimum = sorted(lengths.values())[len(lengths) // 2]
    packing = Packing(sequence_length=8, cross_documents=cross, min_document_tokens=minimum)
    dropped: Counter = Counter()
    found = {name for sequence in pack(texts, tokenizer, packing, dropped) for name in sequence.documents}
    expected = {name for name, length in lengths.items() if length >= minimum}
    last = [document_hash(text) for text in texts if document_hash(text) in expected][-1]
    assert expected - found <= ({last} if cross else set()), "the last one of a stream may not fill a sequence"
    assert found <= expected
    assert dropped == {"too short": sum(length < minimum for length in lengths.values())}
    sequences = len(list(pack(texts, tokenizer, packing)))
    build_split("distill", split(8 * sequences, stories), packing, parent, 0)
    assert "documents left out: " in capsys.readouterr().err


# --- sources --------------------------------------------------------------------------------------------------------


def test_text_jsonl_and_parquet_hold_the_same_documents(tmp_path):
    texts = [f"document {i}\n\nof two paragraphs" for i in range(12)]
    for i, text in enumerate(texts):
        (tmp_path / f"{i:02}.txt").write_text(text)
    (tmp_path / "all.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    pq.write_table(pa.table({"text": texts, "id": range(12)}), tmp_path / "all.parquet")
    for pattern in ("*.txt", "all.jsonl", "all.parquet"):
        source = LocalText(type="local", paths=(str(tmp_path / pattern),))
        found = [text for name in SPLITS for text in documents(source, name, 0)]
        assert sorted(found) == sorted(texts), pattern


def write_quoref(folder: Path, monkeypatch) -> dict:
    """Put a tiny BIG-bench archive among the downloads, shaped like the real one's two Quoref tasks."""
    passages = [f"Person {i} was a composer of songs. " * 20 for i in range(24)]
    questions = {"examples": [{"input": f"Passage: {text}", "target": ["Who?"]} for text in passages]}
    answers = {
        "examples": [
            {"input": f"Passage: {text} \nQuestion: Who was it, {i}?", "target": ["Person"]}
            for text in passages[:9]
            for i in range(2)
        ]
    }
    monkeypatch.chdir(folder)
    (folder / ".downloads").mkdir()
    archive = folder / ".downloads" / "bigbench-1.0.0.tar.gz"
    with tarfile.open(archive, "w:gz") as sdist:
        for name, task in (("001_quoref_q", questions), ("002_quoref_a", answers), ("003_other", {"canary": "no"})):
            data = json.dumps(task).encode()
            info = tarfile.TarInfo(f"bigbench-1.0.0/tasks/natural_instructions/subtask{name}/task.json")
            info.size = len(data)
            sdist.addfile(info, BytesIO(data))
    return {
        "type": "package",
        "package": "bigbench==1.0.0",
        "format": "sdist",
        "archive_sha256": sha256_of(archive),
        "members": ["*/natural_instructions/*quoref*/task.json"],
        "reader": "bigbench-quoref",
    }


def test_quoref_gives_each_passage_once_without_its_questions(parent, tmp_path, monkeypatch):
    source = write_quoref(tmp_path, monkeypatch)
    rows = build(parent, "heldout", split(4 * LENGTH, source))
    tokenizer = load_tokenizer(parent)
    assert {row["source"] for row in rows} == {"package:bigbench==1.0.0"}
    passages = split(1, source).sources[0]
    found = [text for name in SPLITS for text in documents(passages, name, 0)]
    assert sorted(found) == sorted((f"Person {i} was a composer of songs. " * 20).strip() for i in range(24))
    assert documents_of(rows) <= {document_hash(text) for text in found}
    assert all("Question" not in tokenizer.decode(row["input_ids"]) for row in rows)


def test_a_member_that_is_no_task_is_told(parent, tmp_path, monkeypatch):
    source = write_quoref(tmp_path, monkeypatch) | {"members": ["*subtask003*"]}
    with pytest.raises(TangramError, match=r"subtask003_other/task\.json is not a BIG-bench task of Quoref"):
        build(parent, "heldout", split(LENGTH, source))


# --- conversations, and columns that hold no text -------------------------------------------------------------------


def chats(count: int) -> list[list[dict]]:
    return [
        [{"role": "user", "content": f"Who met parent {i}?"}, {"role": "assistant", "content": f"Child {i * i} did."}]
        for i in range(count)
    ]


def rendered(chat: list[dict]) -> str:
    return "".join(f"<|im_start|>{message['content']}<|im_end|>" for message in chat)


def chat_source(kind: str, folder: Path, monkeypatch) -> dict:
    """Write forty conversations, a copy of one, and rows without any, as a source of some kind."""
    values = [*chats(40), chats(1)[0], None, []]
    if kind == "jsonl":
        path = folder / "chat.jsonl"
        path.write_text("".join(json.dumps({"messages": value, "id": i}) + "\n" for i, value in enumerate(values)))
    elif kind == "ShareGPT":
        path, speakers = folder / "chat.jsonl", {"user": "human", "assistant": "gpt"}
        turns = [
            value and [{"from": speakers[turn["role"]], "value": turn["content"]} for turn in value] for value in values
        ]
        path.write_text("".join(json.dumps({"messages": value}) + "\n" for value in turns))
    else:
        (folder / "data").mkdir()
        path = folder / "data" / "train.parquet"
        pq.write_table(pa.table({"messages": values, "id": range(len(values))}), path)
    if kind == "hub":
        monkeypatch.chdir(folder)  # a repository id that is a folder here is read as one
        return {"type": "hub", "repo": "data", "text_column": "messages"}
    return {"type": "local", "paths": [str(path)], "text_column": "messages"}


@pytest.mark.parametrize("kind", ["jsonl", "ShareGPT", "parquet", "hub"])
def test_conversations_are_documents_in_the_chat_template(parent, tmp_path, monkeypatch, kind):
    source = split(1, chat_source(kind, tmp_path, monkeypatch)).sources[0]
    tokenizer = load_tokenizer(parent)
    parts = [list(documents(source, name, 0, tokenizer)) for name in SPLITS]
    assert all(parts)
    assert sorted(text for part in parts for text in part) == sorted(map(rendered, chats(40)))
    rows = build(parent, "distill", split(4 * LENGTH, source.model_dump()))
    texts = {document_hash(text): text for text in parts[SPLITS.index("distill")]}
    for row in rows:
        ids = tokenizer(texts[row["documents"][0]], add_special_tokens=False)["input_ids"]
        assert row["input_ids"] in [ids[i : i + LENGTH] for i in range(0, len(ids), LENGTH)]


@pytest.mark.parametrize("kind", ["jsonl", "hub"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (chats(3), "holds conversations, and the parent has no chat template"),
        ([["one", "two"], ["three"]], "holds lists, not text"),
        ([[{"question": "Who?"}]], "holds lists, not text"),
        ([7, 8], "holds numbers, not text"),
        ([1.5, None], "holds numbers, not text"),
        ([True], "holds booleans, not text"),
        ([{"a": "x"}], "holds mappings, not text"),
    ],
)
def test_a_column_without_text_is_one_line_before_sampling(tiny_parent, tmp_path, monkeypatch, kind, values, message):
    bare = tmp_path / "parent"
    shutil.copytree(tiny_parent("llama"), bare)
    (bare / "chat_template.jinja").unlink()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps({"content": value}) + "\n" for value in values))
    monkeypatch.chdir(tmp_path)
    source = {"type": "hub", "repo": "data"} if kind == "hub" else {"type": "local", "paths": ["data/train.jsonl"]}
    monkeypatch.setattr("tangram.corpus.build.parent_samples", lambda *_: pytest.fail("this takes hours"))
    with pytest.raises(TangramError, match=f"column 'content' {message}.*set text_column") as error:
        build(bare, "distill", split(10**6, OWN, {**source, "text_column": "content"}))
    assert "\n" not in str(error.value)


def test_a_streamed_datasets_columns_may_come_with_its_first_row(parent, tmp_path, monkeypatch):
    from datasets import IterableDataset

    def rows():
        yield from ({"messages": chat, "id": 1} for chat in chats(40))

    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: IterableDataset.from_generator(rows))
    assert IterableDataset.from_generator(rows).column_names is None
    source = split(1, {"type": "hub", "repo": "no/such", "text_column": "messages"}).sources[0]
    tokenizer = load_tokenizer(parent)
    found = [text for name in SPLITS for text in documents(source, name, 0, tokenizer)]
    assert sorted(found) == sorted(map(rendered, chats(40)))
    wrong = source.model_copy(update={"text_column": "text"})
    with pytest.raises(TangramError, match="no/such has no column 'text'; it has messages, id: set text_column"):
        list(documents(wrong, "score", 0, tokenizer))


def test_text_in_other_types_of_parquet_is_read(tmp_path):
    texts = [f"text {i}" for i in range(8)]
    for i, values in enumerate([pa.array(texts, pa.large_string()), pa.array(texts).dictionary_encode(), pa.nulls(8)]):
        pq.write_table(pa.table({"text": values}), tmp_path / f"{i}.parquet")
        source = LocalText(type="local", paths=(str(tmp_path / f"{i}.parquet"),))
        found = [text for name in SPLITS for text in documents(source, name, 0)]
        assert sorted(found) == (texts if i < 2 else [])


AGENT = [
    {"role": "system", "content": "You are a clerk."},
    {"role": "user", "content": "What does it cost?"},
    {"role": "assistant", "content": "", "tool_calls": [{"name": "price", "arguments": {"item": "tea"}}]},
    {"role": "tool", "content": "3 EUR"},
    {"role": "assistant", "content": "It costs 3 EUR."},
]
# As templates of agents do, this one asks for keys that most messages lack.
TOOLS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}: {% if 'tool_calls' in m %}"
    "{% for call in m.tool_calls %}[{{ call.name }} {{ call.arguments.item }}]{% endfor %}{% else %}{{ m.content }}"
    "{% endif %}<|im_end|>{% endfor %}"
)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_system_prompts_and_tool_messages_are_rendered(tiny_parent, tmp_path, form):
    parent = tmp_path / "parent"
    shutil.copytree(tiny_parent("llama"), parent)
    (parent / "chat_template.jinja").write_text(TOOLS)
    rows = [[AGENT[0], {**AGENT[1], "content": f"What does {i} cost?"}, *AGENT[2:]] for i in range(24)]
    path = tmp_path / f"chat.{form}"
    if form == "jsonl":
        path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    else:
        pq.write_table(pa.table({"messages": rows}), path)  # gives every message every key
    source = {"type": "local", "paths": [str(path)], "text_column": "messages"}
    tokenizer = load_tokenizer(parent)
    found = [text for name in SPLITS for text in documents(split(1, source).sources[0], name, 0, tokenizer)]
    said = ("system: You are a clerk.", "user: What does {} cost?", "assistant: [price tea]", "tool: 3 EUR")
    expected = [*said, "assistant: It costs 3 EUR."]
    whole = "".join(f"<|im_start|>{message}<|im_end|>" for message in expected)
    assert sorted(found) == sorted(whole.format(i) for i in range(24))
    assert build(parent, "distill", split(2 * LENGTH, source))


# --- the parent's own text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {}),
        ("mistral", {"sliding_window": 8}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("gemma3_text", {"sliding_window": 8, "sliding_window_pattern": 2}),
    ],
)
def test_sampling_equals_a_naive_sampler_without_cache_or_batch(tiny_parent, family, overrides):
    model = load_model(tiny_parent(family, **overrides))
    vocabulary, temperature = model.config.vocab_size, 0.8
    allowed = torch.ones(vocabulary, dtype=torch.bool)
    allowed[[0, 1, 2, 50]] = False
    prefix = torch.tensor([[7, 30], [200, 5], [11, 11], [99, 4]])
    uniforms = torch.rand(4, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    uniforms[0, 0], uniforms[1, 0] = 0.0, 1 - 1e-12  # both ends of the distribution
    sampled = sample(model, prefix, uniforms, allowed, temperature)
    for row in range(4):
        tokens = prefix[row].tolist()
        for step in range(20):
            with torch.inference_mode():
                logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -1].double().numpy()
            weights = np.where(allowed.numpy(), np.exp((logits - logits.max()) / temperature), 0)
            total, drawn = 0.0, float(uniforms[row, step]) * weights.sum()
            for token in range(vocabulary):
                total += weights[token]
                if drawn < total:
                    break
            tokens.append(token)
        assert sampled[row].tolist() == tokens


def test_samples_follow_the_models_own_distribution(parent):
    model = load_model(parent)
    prefix = torch.tensor([[42]])
    with torch.inference_mode():
        expected = model(prefix).logits[0, -1].softmax(-1)
    uniforms = torch.rand(4000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    allowed = torch.ones(model.config.vocab_size, dtype=torch.bool)
    drawn = sample(model, prefix.expand(4000, 1), uniforms, allowed)[:, 1]
    observed = torch.bincount(drawn, minlength=len(expected)) / 4000
    assert (observed - expected).abs().max() < 4 * (expected.max() * (1 - expected.max()) / 4000) ** 0.5


def test_the_parent_writes_full_documents_of_text_tokens_only(parent):
    rows = build(parent, "finetune", split(7 * LENGTH, OWN))
    tokenizer = load_tokenizer(parent)
    assert len({row["input_ids"][0] for row in rows}) == 7
    for row in rows:
        assert len(row["input_ids"]) == LENGTH
        assert not set(row["input_ids"]) & {0, 1, 2}  # the special tokens
        assert max(row["input_ids"]) < len(tokenizer)  # embeddings without a token are never drawn
        assert row["documents"] == [document_hash(tokenizer.decode(row["input_ids"]))]
        assert row["document_starts"] == [0]


def test_the_batch_size_changes_nothing(parent):
    one, three = (build(parent, "score", split(7 * LENGTH, {**OWN, "batch_size": size})) for size in (1, 3))
    assert one == three


# --- the command ----------------------------------------------------------------------------------------------------


def command(monkeypatch, parent: Path, wanted: Split, output: Path, seed: int = 0, name: str = "distill") -> None:
    section = {"sequence_length": LENGTH, "cross_documents": False, "split": wanted.model_dump()}
    arguments = ["--settings", json.dumps(section), "--split", name, "--parent", str(parent)]
    monkeypatch.setattr("sys.argv", ["build_corpus", *arguments, "--runtime", f"seed={seed}", "--output", str(output)])
    with pytest.raises(SystemExit) as stop:
        run(build_corpus)
    if stop.value.code:
        raise RuntimeError


def test_equal_seeds_give_equal_bytes_and_others_another_corpus(parent, stories, tmp_path, monkeypatch):
    wanted = split(12 * LENGTH, stories, OWN, DOCS)
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        command(monkeypatch, parent, wanted, tmp_path / f"{name}.parquet", seed)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    first, other = (read_table(tmp_path / f"{name}.parquet", CORPUS) for name in ("one", "three"))
    assert set(map(tuple, first.input_ids)) != set(map(tuple, other.input_ids))
    tokens = read_tokens(tmp_path / "one.parquet")
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [list(row) for row in first.input_ids]
    assert tokens.shape == (12, LENGTH)


def test_an_output_that_cannot_be_written_is_an_early_error(parent, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeError):
        command(monkeypatch, parent, split(10**9, OWN), tmp_path / "file" / "distill.parquet")
    error = capsys.readouterr().err
    assert error.startswith(f"error: cannot write {tmp_path}/file/distill.parquet")
    assert error.count("\n") == 1


# --- mistakes -------------------------------------------------------------------------------------------------------


def test_too_little_text_says_how_much_there_is(parent, stories):
    texts = documents(LocalText.model_validate(stories), "score", 0)
    there = sum(len(load_tokenizer(parent)(text)["input_ids"]) // LENGTH for text in texts) * LENGTH
    with pytest.raises(
        TangramError, match=rf"corpus.score: source local gives only {there} tokens .* 16000 are needed"
    ):
        build(parent, "score", split(16000, stories))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"txt": "x"}\n', r"a\.jsonl has no column 'text'; it has txt: set text_column"),
        ("a.jsonl", '{"text": "x"\n', r"a\.jsonl cannot be read as json"),
        ("a.parquet", "no parquet", r"a\.parquet cannot be read as parquet"),
        ("a.csv", "text\nx\n", r"a\.csv is not one of \.txt, \.jsonl, \.parquet"),
        ("a.txt", "", "all files are empty"),
        ("a.txt", " \n ", "gives only 0 tokens"),
        ("b.md", "x", r"no file matches '.*a\.\*'"),
    ],
)
def test_a_local_source_that_cannot_serve_is_one_line(parent, tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    source = {"type": "local", "paths": [str(tmp_path / "a.*")]}
    with pytest.raises(TangramError, match=message) as error:
        build(parent, "distill", split(LENGTH, source))
    assert "\n" not in str(error.value)


def test_offline_a_hub_dataset_is_one_line(parent, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(TangramError, match="cannot read dataset no/such from the hub") as error:
        build(parent, "distill", split(LENGTH, {"type": "hub", "repo": "no/such"}))
    assert "\n" not in str(error.value)


def test_a_hub_dataset_is_streamed_and_split_like_any_other(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    texts = [f"row {i} of a dataset" for i in range(50)]
    pq.write_table(pa.table({"content": texts}), tmp_path / "data" / "train.parquet")
    monkeypatch.chdir(tmp_path)  # a repository id that is a folder here is read as one
    source = split(1, {"type": "hub", "repo": "data", "text_column": "content"}).sources[0]
    parts = [list(documents(source, name, 0)) for name in SPLITS]
    assert all(parts)
    assert sorted(text for part in parts for text in part) == sorted(texts)
    assert [list(documents(source, name, 0)) for name in SPLITS] == parts


def test_an_unwritable_cache_is_the_error_and_not_the_text(stories, tmp_path, monkeypatch):
    source, nowhere = split(1, stories).sources[0], "/proc/nope"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", f"{nowhere}/datasets")
    with pytest.raises(TangramError, match=rf"Hugging Face's cache {nowhere}\S* cannot be written .*HF_HOME") as error:
        list(documents(source, "score", 0))
    assert "\n" not in str(error.value)
    assert stories["paths"][0] not in str(error.value)


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EROFS, "Read-only file system", "/cache/datasets/json"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError("Not enough disk space. Needed: Unknown size"),
        PermissionError(errno.EACCES, "Permission denied", "/cache"),
        NotADirectoryError(errno.ENOTDIR, "Not a directory", "/cache/datasets"),
    ],
    ids=str,
)
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kind", ["local", "hub"])
def test_whatever_the_cache_raises_is_one_line_about_it(stories, monkeypatch, fault, wrapped, kind):
    """What `datasets` 5.2 raised on a full, a read-only and a missing file system, bare or as a cause."""
    from datasets.exceptions import DatasetGenerationError

    def fail(*_, **__):
        if not wrapped:
            raise fault
        raise DatasetGenerationError("An error occurred while generating the dataset") from fault

    monkeypatch.setattr("datasets.load_dataset", fail)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", "/cache/datasets")
    source = split(1, stories if kind == "local" else {"type": "hub", "repo": "no/such"}).sources[0]
    with pytest.raises(TangramError, match=r"Hugging Face's cache /cache\S* cannot be written .*HF_HOME") as error:
        list(documents(source, "score", 0))
    assert "\n" not in str(error.value)


def test_a_text_that_cannot_be_read_is_blamed_and_not_the_cache(stories, monkeypatch):
    fault = PermissionError(errno.EACCES, "Permission denied", stories["paths"][0])

    def fail(*_, **__):
        raise fault

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(TangramError, match=r"stories\.jsonl cannot be read as json: .*Permission denied"):
        list(documents(split(1, stories).sources[0], "score", 0))


def test_an_unknown_split_is_named(parent):
    with pytest.raises(TangramError, match="'train' is not a split; valid: distill, score, finetune, heldout"):
        build(parent, "train", split(LENGTH, OWN))


def test_logits_that_are_not_finite_are_told(tiny_parent):
    model = load_model(tiny_parent("llama"))
    with torch.no_grad():
        model.model.norm.weight.fill_(1e38)
        model.lm_head.weight.fill_(1e38)
    allowed = torch.ones(model.config.vocab_size, dtype=torch.bool)
    with pytest.raises(TangramError, match="logits are not finite"):
        sample(model, torch.tensor([[3]]), torch.rand(1, 2, dtype=torch.float64), allowed)
