"""llama.cpp's logits of a tiny model against transformers', whole and with a KV cache, and its errors."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_gguf import write_gguf
from tiny_models import write_parent

from tangram import llama_cpp
from tangram.errors import TangramError
from tangram.models.loading import load_model, load_tokenizer

needs_llama_cpp = pytest.mark.skipif(llama_cpp.find() is None, reason=f"llama.cpp: {llama_cpp.INSTALL}")


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer, and the same model as `parent.gguf`."""
    folder = tmp_path_factory.mktemp("parent")
    write_parent(folder, head_dim=8)  # the GGUF has no key for another width of a head
    write_gguf(folder, folder / "parent.gguf")
    return folder


@needs_llama_cpp
def test_logits_are_those_of_transformers(parent: Path) -> None:
    tokens = torch.randint(0, 300, (3, 40), generator=torch.Generator().manual_seed(0))
    expected = load_model(parent)(tokens).logits.detach().numpy()
    with llama_cpp.Model(parent / "parent.gguf") as model:
        assert model.vocabulary == 328
        for passes in (None, (40,), (17, 1, 1, 21)):
            logits = model.logits(tokens.tolist(), passes)
            assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


@needs_llama_cpp
def test_a_text_has_the_tokens_of_transformers(parent: Path) -> None:
    text = "<|im_start|>Il était une fois,  576 heads?!\n\ndef forward<|im_end|>"
    with llama_cpp.Model(parent / "parent.gguf") as model:
        tokens = model.tokenize(text)
    assert tokens == load_tokenizer(parent)(text)["input_ids"]


@needs_llama_cpp
def test_a_file_that_is_no_gguf_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"no model")
    with pytest.raises(TangramError, match=rf"llama\.cpp cannot load {re.escape(str(path))}: .*magic") as caught:
        llama_cpp.Model(path)
    assert "\n" not in str(caught.value)


def test_without_a_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TangramError, match=r"llama\.cpp is not installed; install it: pip install .*\[engines\]"):
        llama_cpp.library.__wrapped__()
