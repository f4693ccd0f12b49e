"""What opens and closes a text: decided here, from the tokenizer's own behavior, for all who turn text into tokens.

Many tokenizers put special tokens around a text by themselves (BOS before it, EOS after it, both, others), and chat
templates write theirs into it. A text that is to go on takes what opens it and nothing that closes it: a model that has
read EOS begins something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tangram.errors import TangramError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# ShareGPT's names of the speakers, and those of chat templates.
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_KEYS = (("role", "content"), ("from", "value"))

# A template that writes today's date would give other documents, and so other splits, on another day.
_FIXED_DATE = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(
        f" | replace('%{letter}', '{text}')"
        for letter, text in {"d": "26", "m": "07", "b": "Jul", "B": "July", "Y": "2024", "y": "24"}.items()
    )
    + " }}{%- endmacro +%}"
)


class Conversation(str):
    """A conversation as a chat template renders it, with all special tokens: none may be added."""


def text_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of all tokens that stand for text: no special ones, no embeddings without a token."""
    special = set(tokenizer.all_special_ids)
    special.update(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    return sorted(set(tokenizer.get_vocab().values()) - special)


def opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that the tokenizer puts before a text: often BOS, or nothing.

    They are read from a text of its own vocabulary, not from the empty one, whose ids would not say on which side of a
    text they stand.

    Raises:
        TangramError: a text's own tokens are not among those that the tokenizer makes of it.
    """
    candidates = text_tokens(tokenizer)
    ordinary = set(candidates)
    for token in candidates[:256]:
        text = tokenizer.decode([token])
        bare = tokenizer(text, add_special_tokens=False)["input_ids"]
        framed = tokenizer(text)["input_ids"]
        if bare and ordinary.issuperset(bare):
            for start in range(len(framed) - len(bare) + 1):
                if framed[start : start + len(bare)] == bare:
                    return framed[:start]
    raise TangramError(
        "the parent's tokenizer does not say what it puts before a text: with special tokens it makes other tokens of "
        "the text itself; take the tokenizer.json that the model was trained with"
    )


def opened(text: str, tokenizer: PreTrainedTokenizerBase, first: list[int]) -> list[int]:
    """Return the ids of a text that may go on: opened by ``first``, the tokenizer's `opening`, and not closed.

    A text that begins with what opens it, written out, is not opened again.
    """
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return ids if ids[: len(first)] == first else [*first, *ids]


def document(text: str, tokenizer: PreTrainedTokenizerBase, separate: bool) -> list[int]:
    """Return the ids of a whole document, opened and closed as the tokenizer or a chat template does it.

    Args:
        text: the document; a `Conversation` as `render` gives it.
        tokenizer: the parent's.
        separate: whether another document follows. It then ends in EOS, once, if the tokenizer has one.
    """
    rendered = isinstance(text, Conversation)
    ids = list((tokenizer(str(text), add_special_tokens=False) if rendered else tokenizer(text))["input_ids"])
    eos = tokenizer.eos_token_id
    # Many templates write a newline after EOS.
    closed = ids[-1:] == [eos] or (rendered and eos is not None and text.rstrip().endswith(tokenizer.eos_token))
    return [*ids, eos] if separate and eos is not None and not closed else ids


def messages(turns: Any) -> list[dict[str, Any]] | None:
    """Return the messages of a conversation, or None where one of them has no text: nothing of it can be said.

    Args:
        turns: a row's value: messages with ``role`` and ``content`` (OpenAI) or ``from`` and ``value`` (ShareGPT); a
            list of them, or, as `datasets` stores a `Sequence` of them, a mapping of lists.

    Raises:
        TangramError: it is no conversation; the message names what it holds.
    """
    if isinstance(turns, Mapping) and turns and all(isinstance(values, list) for values in turns.values()):
        turns = [dict(zip(turns, turn, strict=True)) for turn in zip(*turns.values(), strict=True)]
    names = {bool: "booleans", int: "numbers", float: "numbers", list: "lists", dict: "mappings", bytes: "bytes"}
    kind = names.get(type(turns), f"values of type {type(turns).__name__}")
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise TangramError(f"holds {kind}, not text")
    found = []
    for turn in turns:
        keys = next((keys for keys in _KEYS if all(key in turn for key in keys)), None)
        if keys is None:
            raise TangramError(f"holds lists, not text, and they are no messages with role and content: {sorted(turn)}")
        role, content = (turn[key] for key in keys)
        if content is None:
            return None
        if not isinstance(content, str):
            raise TangramError(f"holds messages whose {keys[1]} is not text ({type(content).__name__})")
        if keys[0] == "from":
            if role not in _ROLES:
                raise TangramError(f"holds messages from '{role}', which is none of {', '.join(_ROLES)}")
            turn = {"role": _ROLES[role], "content": content}
        found.append(dict(turn))
    return found


def render(turns: Any, tokenizer: PreTrainedTokenizerBase | None) -> Conversation | None:
    """Return a conversation as the parent's chat template renders it; see `messages`. None where it is empty.

    Raises:
        TangramError: it is no conversation, there is no chat template, or the template refuses it.
    """
    found = messages(turns)
    if not found:
        return None
    if tokenizer is None or not tokenizer.chat_template:
        raise TangramError("holds conversations, and the parent has no chat template")
    try:
        template = tokenizer.get_chat_template()
        if "strftime_now" in template:
            template = _FIXED_DATE + template
        text = tokenizer.apply_chat_template(found, chat_template=template, tokenize=False)
    except Exception as error:  # templates raise what they like
        reason = str(error).strip().split("\n")[0]
        raise TangramError(
            f"holds a conversation that the parent's chat template refuses ({type(error).__name__}: {reason})"
        ) from error
    return Conversation(text)
