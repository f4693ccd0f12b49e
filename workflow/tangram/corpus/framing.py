"""Special tokens at the beginning and end of a text, derived from the tokenizer's behavior, for all stages.

Many tokenizers add special tokens to a text (BOS before it, EOS after it, both, or others), and chat templates contain
special tokens. A text to be continued gets its opening tokens but no closing ones: after EOS, a model begins another
text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tangram.errors import TangramError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# ShareGPT's names of the speakers, and the names in chat templates.
_ROLES = {
    **{"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"},
    **{"system": "system", "tool": "tool"},
}
_KEYS = (("role", "content"), ("from", "value"))

# With today's date in a template, documents and their splits would change every day.
_FIXED_DATE = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(
        f" | replace('%{letter}', '{text}')"
        for letter, text in {"d": "26", "m": "07", "b": "Jul", "B": "July", "Y": "2024", "y": "24"}.items()
    )
    + " }}{%- endmacro +%}"
)


class Conversation(str):
    """A conversation rendered by a chat template; it contains its special tokens, so the tokenizer adds none."""


def text_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of all text tokens: neither special tokens nor embeddings without a token."""
    special = set(tokenizer.all_special_ids)
    special.update(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    return sorted(set(tokenizer.get_vocab().values()) - special)


def opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that the tokenizer adds before a text: often BOS, or none.

    They are derived from the encoding of a one-token text. That of the empty text does not show whether an added token
    comes before or after a text.

    Raises:
        TangramError: the tokenizer encodes the text itself differently when it adds special tokens.
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
        "the parent's tokenizer does not show which tokens it adds before a text: it encodes the text itself "
        "differently when it adds special tokens; take the tokenizer.json that the model was trained with"
    )


def opened(text: str, tokenizer: PreTrainedTokenizerBase, first: list[int]) -> list[int]:
    """Return the ids of a text to be continued: with ``first``, the tokenizer's `opening`, and no closing tokens.

    A text that already begins with ``first`` does not get it twice.
    """
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return ids if ids[: len(first)] == first else [*first, *ids]


def document(text: str, tokenizer: PreTrainedTokenizerBase, separate: bool) -> list[int]:
    """Return the ids of a document with the special tokens of the tokenizer or of the chat template.

    Args:
        text: the document; a `Conversation` for one from `render`.
        tokenizer: the parent's tokenizer.
        separate: whether another document follows; the result then ends in one EOS, if the tokenizer has EOS.
    """
    rendered = isinstance(text, Conversation)
    ids = list((tokenizer(str(text), add_special_tokens=False) if rendered else tokenizer(text))["input_ids"])
    eos = tokenizer.eos_token_id
    # Many templates write a newline after EOS.
    closed = ids[-1:] == [eos] or (rendered and eos is not None and text.rstrip().endswith(tokenizer.eos_token))
    return [*ids, eos] if separate and eos is not None and not closed else ids


def messages(turns: Any) -> list[dict[str, Any]] | None:
    """Return the messages of a conversation, or None if a message has no text.

    Args:
        turns: a row's value: messages with ``role`` and ``content`` (OpenAI) or ``from`` and ``value`` (ShareGPT), as a
            list, or as a mapping of lists, the form in which `datasets` stores a `Sequence`.

    Raises:
        TangramError: the value is not a conversation; the message names the type of the value.
    """
    if isinstance(turns, Mapping) and turns and all(isinstance(values, list) for values in turns.values()):
        turns = [dict(zip(turns, turn, strict=True)) for turn in zip(*turns.values(), strict=True)]
    names = {bool: "booleans", int: "numbers", float: "numbers", list: "lists", dict: "mappings", bytes: "bytes"}
    kind = names.get(type(turns), f"values of type {type(turns).__name__}")
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise TangramError(f"holds {kind}, not text")
    converted = []
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
        # `datasets` gives every message the keys of all; templates ask whether a key such as `tool_calls` exists.
        converted.append({key: value for key, value in turn.items() if value is not None})
    return converted


def render(turns: Any, tokenizer: PreTrainedTokenizerBase | None) -> Conversation | None:
    """Return a conversation rendered by the parent's chat template, or None if `messages` returns none.

    Raises:
        TangramError: the value is not a conversation, there is no chat template, or the template refuses it.
    """
    conversation = messages(turns)
    if not conversation:
        return None
    if tokenizer is None or not tokenizer.chat_template:
        raise TangramError("holds conversations, and the parent has no chat template")
    try:
        template = tokenizer.get_chat_template()
        if "strftime_now" in template:
            template = _FIXED_DATE + template
        text = tokenizer.apply_chat_template(conversation, chat_template=template, tokenize=False)
    except Exception as error:  # templates raise exceptions of any type
        reason = str(error).strip().split("\n")[0]
        raise TangramError(
            f"holds a conversation that the parent's chat template refuses ({type(error).__name__}: {reason})"
        ) from error
    return Conversation(text)
