"""What opens and closes a text, with tokenizers and chat templates of every kind that is about."""

import itertools
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from tangram.config import Packing, Split
from tangram.corpus import framing
from tangram.corpus.build import build_split
from tangram.corpus.documents import document_hash
from tangram.corpus.framing import Conversation, document, opened, opening, render
from tangram.corpus.packing import pack
from tangram.errors import TangramError
from tangram.models.loading import load_model, load_tokenizer

BOS, EOS = 1, 2  # of the tiny parents
NAMES = {0: "<|endoftext|>", 1: "<|im_start|>", 2: "<|im_end|>"}

# Ids before and after a text as the tokenizer's template has them, and the tokens that the tokenizer calls BOS and EOS.
TEMPLATES = {
    "none": ([], [], BOS, EOS),
    "BOS A": ([BOS], [], BOS, EOS),
    "A EOS": ([], [EOS], BOS, EOS),
    "BOS A EOS": ([BOS], [EOS], BOS, EOS),
    "BOS A, one token for both": ([0], [], 0, 0),
    "BOS A EOS, one token for both": ([0], [0], 0, 0),
    "A EOS, one token for both": ([], [0], 0, 0),
    "none, one token for both": ([], [], 0, 0),
    "CLS A SEP, which is no EOS": ([BOS], [0], BOS, EOS),
    "CLS A SEP without an EOS": ([BOS], [0], BOS, None),
    "BOS A without an EOS": ([BOS], [], BOS, None),
    "two before": ([0, BOS], [EOS], BOS, EOS),
}


@pytest.fixture
def parent_with(tiny_parent: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that gives a tiny parent another tokenizer, on disk."""

    def build(before: list[int], after: list[int], bos: int | None, eos: int | None) -> Path:
        folder = tmp_path / "parent"
        shutil.copytree(tiny_parent("llama"), folder)
        tokenizer = load_tokenizer(folder)
        single = " ".join([*(NAMES[i] for i in before), "$A", *(NAMES[i] for i in after)])
        special = [(NAMES[i], i) for i in dict.fromkeys([*before, *after])]
        if special:
            tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=special)
        tokenizer.bos_token = None if bos is None else NAMES[bos]
        tokenizer.eos_token = None if eos is None else NAMES[eos]
        tokenizer.save_pretrained(folder)
        again = load_tokenizer(folder)
        assert again("")["input_ids"] == [*before, *after]
        assert (again.bos_token_id, again.eos_token_id) == (bos, eos)
        return folder

    return build


@pytest.mark.parametrize(("before", "after", "bos", "eos"), TEMPLATES.values(), ids=TEMPLATES)
def test_the_parent_writes_after_opening_tokens_and_none_closing(parent_with, before, after, bos, eos):
    folder = parent_with(before, after, bos, eos)
    tokenizer = load_tokenizer(folder)
    assert opening(tokenizer) == before
    wanted = Split.model_validate({"tokens": 48, "sources": [{"type": "parent-samples", "batch_size": 3}]})
    for row in build_split("score", wanted, Packing(sequence_length=16), folder, 0):
        assert row["input_ids"][: len(before)] == before
        assert not {0, 1, 2} & set(row["input_ids"][len(before) :])
        assert row["documents"] == [document_hash(tokenizer.decode(row["input_ids"][len(before) :]))]


@pytest.mark.parametrize(("before", "after", "bos", "eos"), TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("length", [5, 8])
def test_one_end_of_sequence_token_stands_between_documents(parent_with, before, after, bos, eos, length):
    tokenizer = load_tokenizer(parent_with(before, after, bos, eos))
    texts = [f"Parent {i} met child {i * i}." for i in range(7)]
    bare = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    sequences = list(pack(texts, tokenizer, Packing.model_construct(sequence_length=length, cross_documents=True)))
    stream = [token for sequence in sequences for token in sequence.input_ids]
    between = [(list(group)) for special, group in itertools.groupby(stream, lambda i: i in (0, 1, 2)) if special]
    inner = between[1:-1] if before else between[:-1]  # the first opens the stream, the last may be cut
    assert len(inner) >= 4
    shared = before[:1] == [eos]  # one token closes a document and opens the next
    ends = [] if eos is None or eos in after else [eos]
    assert inner[0] == [*after, *ends, *before[shared:]]
    assert all(tokens == inner[0] for tokens in inner)
    if eos is not None:
        assert inner[0].count(eos) == 1
    assert [i for i in stream if i > 2] == [i for ids in bare for i in ids][: len([i for i in stream if i > 2])]
    names = [document_hash(text) for text in texts]
    for sequence in sequences:
        assert sequence.document_starts[0] == 0
        for name, start in list(zip(sequence.documents, sequence.document_starts, strict=True))[1:]:
            own = [*before[shared:], *bare[names.index(name)]]
            assert sequence.input_ids[start : start + len(own)] == own[: length - start]


@pytest.mark.parametrize(("before", "after", "bos", "eos"), TEMPLATES.values(), ids=TEMPLATES)
def test_a_document_by_itself_is_what_the_tokenizer_makes_of_it(parent_with, before, after, bos, eos):
    tokenizer = load_tokenizer(parent_with(before, after, bos, eos))
    text = "The child is faster."
    ids = [*before, *tokenizer(text, add_special_tokens=False)["input_ids"], *after]
    (sequence,) = pack([text], tokenizer, Packing.model_construct(sequence_length=len(ids)))
    assert sequence.input_ids == ids
    assert opened(text, tokenizer, opening(tokenizer)) == ids[: len(ids) - len(after)]


def test_what_opens_a_text_is_not_written_twice(parent_with):
    tokenizer = load_tokenizer(parent_with([BOS], [EOS], BOS, EOS))
    ids = opened("Who is it?", tokenizer, [BOS])
    assert ids[0] == BOS
    assert opened("<|im_start|>Who is it?", tokenizer, [BOS]) == ids


def test_a_text_that_ends_in_the_token_itself_gets_no_second_one(parent_with):
    tokenizer = load_tokenizer(parent_with([], [], BOS, EOS))
    assert document("It ends.<|im_end|>", tokenizer, separate=True) == document("It ends.", tokenizer, separate=True)


def test_choices_are_scored_after_the_question_without_its_end(parent_with):
    from tangram.evaluation.shared_prefix import SharedPrefixLM

    folder = parent_with([BOS], [EOS], BOS, EOS)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    lm = SharedPrefixLM(model, tokenizer, "parent")
    question, choice = lm._encode_pair("Q: Who met the child?\nA:", " parent 7")
    bare = tokenizer("Q: Who met the child?\nA: parent 7", add_special_tokens=False)["input_ids"]
    assert [*question, *choice] == [BOS, *bare]
    assert tokenizer.decode(choice) == " parent 7"
    ((score, _),) = lm._loglikelihood_tokens([(None, question, choice)], disable_tqdm=True)
    with torch.inference_mode():
        logits = model(torch.tensor([[BOS, *bare]])).logits[0].double().log_softmax(-1)
    expected = sum(logits[len(question) - 1 + i, token].item() for i, token in enumerate(choice))
    assert score == pytest.approx(expected, abs=1e-4)


def test_a_readout_reads_a_text_and_not_its_end(parent_with):
    from tangram.evaluation.readout import embed_texts

    folder = parent_with([BOS], [EOS], BOS, EOS)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    bare = tokenizer("The child is faster.", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        hidden = model.model(torch.tensor([[BOS, *bare]]), output_hidden_states=True).hidden_states[2]
    (found,) = embed_texts(model, tokenizer, ["The child is faster."], 2 / 3, 1, "parent")
    assert torch.allclose(found, hidden[0, 1:].mean(0), atol=1e-5)


# --- conversations --------------------------------------------------------------------------------------------------

CHAT = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "A child."}]
RENDERED = "<|im_start|>Who?<|im_end|><|im_start|>A child.<|im_end|>"


@pytest.mark.parametrize(
    "turns",
    [
        CHAT,
        [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "A child."}],
        [message | {"name": None, "tool_calls": None} for message in CHAT],
        {"role": ["user", "assistant"], "content": ["Who?", "A child."]},
        {"from": ["human", "gpt"], "value": ["Who?", "A child."]},
    ],
    ids=["OpenAI", "ShareGPT", "columns of None", "a Sequence", "a Sequence of ShareGPT"],
)
def test_conversations_are_rendered_by_the_parents_template(tiny_parent, turns):
    assert render(turns, load_tokenizer(tiny_parent("llama"))) == RENDERED


@pytest.mark.parametrize("cross", [False, True])
def test_a_rendered_conversation_is_not_opened_or_closed_again(parent_with, cross):
    tokenizer = load_tokenizer(parent_with([BOS], [EOS], BOS, EOS))
    ids = document(Conversation(RENDERED), tokenizer, cross)
    assert ids == tokenizer(RENDERED, add_special_tokens=False)["input_ids"]
    assert ids[0] == BOS != ids[1]
    assert ids[-1] == EOS != ids[-2]
    newline = document(Conversation(RENDERED + "\n"), tokenizer, cross)
    assert newline == [*ids, *tokenizer("\n", add_special_tokens=False)["input_ids"]], "many templates end so"


def test_a_template_without_an_end_gets_one_between_documents(tiny_parent):
    tokenizer = load_tokenizer(tiny_parent("llama"))
    bare = tokenizer("Q: Who?", add_special_tokens=False)["input_ids"]
    assert document(Conversation("Q: Who?"), tokenizer, separate=True) == [*bare, EOS]
    assert document(Conversation("Q: Who?"), tokenizer, separate=False) == bare


def test_of_several_templates_the_default_is_taken(tiny_parent):
    tokenizer = load_tokenizer(tiny_parent("llama"))
    tokenizer.chat_template = {"tool_use": "tools", "default": tokenizer.chat_template}
    assert render(CHAT, tokenizer) == RENDERED


def test_a_template_with_the_date_gives_equal_documents_each_day(tiny_parent, monkeypatch):
    """Llama-3.2's does; another text would be another document, of another split."""
    import transformers.utils.chat_template_utils as templates

    tokenizer = load_tokenizer(tiny_parent("llama"))
    tokenizer.chat_template = (
        "\n{%- if strftime_now is defined %}\n    {%- set today = strftime_now('%d %b %Y') %}\n{%- endif %}"
        "{{ today }}|{{ strftime_now('%Y-%m-%d') }}|{{ messages[0]['content'] }}"
    )
    found = set()
    for day in (1, 2):

        class Clock:
            @staticmethod
            def now(day: int = day) -> datetime:
                return datetime(2031, 5, day)

        monkeypatch.setattr(templates, "datetime", Clock)
        assert tokenizer.apply_chat_template(CHAT, tokenize=False).startswith(f"0{day} May 2031")
        found.add(render(CHAT, tokenizer))
    assert found == {"26 Jul 2024|2024-07-26|Who?"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (7, "holds numbers, not text"),
        (True, "holds booleans, not text"),
        (b"x", "holds bytes, not text"),
        ({"messages": "x"}, "holds mappings, not text"),
        (["one", "two"], "holds lists, not text"),
        ([CHAT], "holds lists, not text"),
        ([{"question": "Who?"}], "holds lists, not text.*question"),
        ([{"role": "user", "content": [{"type": "text", "text": "Who?"}]}], "whose content is not text"),
        ([{"from": "narrator", "value": "Once"}], "from 'narrator', which is none of human"),
    ],
)
def test_what_is_no_conversation_is_named(tiny_parent, value, message):
    with pytest.raises(TangramError, match=message) as error:
        render(value, load_tokenizer(tiny_parent("llama")))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("turns", [[], {"role": [], "content": []}, [*CHAT, {"role": "assistant", "content": None}]])
def test_a_conversation_without_text_is_left_out(tiny_parent, turns):
    assert render(turns, load_tokenizer(tiny_parent("llama"))) is None


def test_a_missing_template_and_one_that_refuses_are_named(tiny_parent):
    tokenizer = load_tokenizer(tiny_parent("llama"))
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(TangramError, match=r"the parent's chat template refuses .*roles must alternate"):
        render(CHAT, tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(TangramError, match="the parent has no chat template"):
        render(CHAT, tokenizer)


def test_a_tokenizer_that_hides_its_opening_is_told(tiny_parent):
    class Odd:
        def __init__(self) -> None:
            self.all_special_ids: list[int] = []
            self.added_tokens_decoder: dict[int, object] = {}

        def get_vocab(self) -> dict:
            return {"a": 0, "b": 1}

        def decode(self, ids: list[int]) -> str:
            return "ab"[ids[0]]

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict:
            return {"input_ids": [0] if add_special_tokens else [1]}

    with pytest.raises(TangramError, match="does not show which tokens it adds before a text"):
        framing.opening(Odd())
