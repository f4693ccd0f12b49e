"""Fixtures for all tests: tiny random parents of every supported family, each with a real tokenizer, on disk."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest_plugins = ["tiny_pipeline"]

# Words of several lengths, digits, accents and code, so that the byte-level BPE below learns merges of its own.
TEXT = [
    "The parent is a trained decoder; the child is a faster one that was made from its pieces.",
    "Attention with 9 heads and 3 KV heads, 576 wide: 30 layers of it, measured in seconds and bytes.",
    "Il était une fois un modèle qui écrivait lui-même les textes dont il apprenait.",
    "def forward(self, hidden_states):\n    return self.down_proj(self.act_fn(hidden_states))",
] * 4
CHAT_TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"


@pytest.fixture(scope="session")
def tiny_parent(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a factory of checkpoint folders: ``tiny_parent(model_type, **config_overrides)``, built once each."""
    built: dict[str, Path] = {}

    def factory(model_type: str = "llama", **overrides: object) -> Path:
        key = json.dumps([model_type, overrides], sort_keys=True)
        if key not in built:
            built[key] = _build(model_type, overrides, tmp_path_factory.mktemp(model_type))
        return built[key]

    return factory


@pytest.fixture
def pretend_cuda() -> Iterator[Counter[str]]:
    """Let `device="cuda"` run on a machine without a GPU, and count matrix products by device; see `pretend_device`."""
    from pretend_device import pretend

    with pretend() as products:
        yield products


def _build(model_type: str, overrides: dict, folder: Path) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    raw.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token=special[0], bos_token=special[1], eos_token=special[2], pad_token=special[2]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    settings = {
        "vocab_size": 328,  # a few embeddings without a token, as many real models have
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,  # not hidden / heads
        "max_position_embeddings": 128,
        "initializer_range": 0.2,  # wide enough that the model prefers some tokens
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "tie_word_embeddings": False,
    } | overrides
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases start at zero and norms at one: nothing could be told apart
                parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
