"""A checkpoint's tokenizer as a GGUF's metadata: byte-level BPE, special tokens, chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangram.errors import TangramError
from tangram.models.loading import load_tokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama.cpp's types of tokens
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# llama.cpp's names of pre-tokenizers: the steps that divide a text, see `_steps`.
PRE_TOKENIZERS = {
    "gpt-2": ["bytes, words"],
    "smollm": ["digits", "bytes, words"],
    "llama-bpe": [_LLAMA3, "bytes"],
    "qwen2": [_QWEN2, "bytes"],
}
SPECIAL = ("bos", "eos", "unk", "pad")


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[str]:
    """Return a description of each step of a `tokenizers` pre-tokenizer."""
    if pre_tokenizer is None:
        return ["none"]
    kind = pre_tokenizer["type"]
    if kind == "Sequence":
        return [step for part in pre_tokenizer["pretokenizers"] for step in _steps(part)]
    if kind == "Digits" and pre_tokenizer["individual_digits"]:
        return ["digits"]
    if kind == "Split" and pre_tokenizer["behavior"] == "Isolated":
        return [str(pre_tokenizer["pattern"].get("Regex"))]
    if kind == "ByteLevel" and not pre_tokenizer["add_prefix_space"]:
        return ["bytes, words" if pre_tokenizer.get("use_regex", True) else "bytes"]
    return [kind]


def pre_tokenizer_of(raw: dict[str, Any]) -> str:
    """Return llama.cpp's name of a tokenizer's pre-tokenizer.

    Args:
        raw: content of `tokenizer.json`.

    Raises:
        TangramError: the tokenizer is no byte-level BPE of a known kind.
    """
    steps = _steps(raw.get("pre_tokenizer"))
    names = [name for name, known in PRE_TOKENIZERS.items() if steps == known]
    if raw["model"].get("type") != "BPE" or not names:
        raise TangramError(
            f"gguf: the tokenizer ({raw['model'].get('type')}, pre-tokenizer {', '.join(steps)}) is of no known kind; "
            f"known: byte-level BPE with the pre-tokenizers {', '.join(PRE_TOKENIZERS)}"
        )
    return names[0]


def write_tokenizer(writer: GGUFWriter, folder: Path, vocabulary: int) -> None:
    """Write the tokenizer of a checkpoint's folder.

    Args:
        writer: the file's writer.
        folder: the checkpoint.
        vocabulary: rows of the embedding; tokens beyond the tokenizer's are written as unused.

    Raises:
        TangramError: the tokenizer is missing, or no byte-level BPE of a known kind.
    """
    tokenizer = load_tokenizer(folder)
    raw = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    names = {index: token for token, index in tokenizer.get_vocab().items()}
    added = {token["id"]: CONTROL if token["special"] else USER_DEFINED for token in raw["added_tokens"]}
    rows = range(vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer_of(raw))
    writer.add_token_list([names.get(index, f"[PAD{index}]") for index in rows])
    writer.add_token_types([added.get(index, NORMAL if index in names else UNUSED) for index in rows])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in raw["model"]["merges"]])
    for name in SPECIAL:
        if (index := getattr(tokenizer, f"{name}_token_id", None)) is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    plain, full = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    writer.add_add_bos_token(full[0] != plain[0])
    writer.add_add_eos_token(full[-1] != plain[-1])
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    if template:
        writer.add_chat_template(template)
