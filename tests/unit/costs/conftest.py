import pytest
import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from tangram import timing
from tangram.costs import torch_engine

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, head_dim=12, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZES, head_dim=8, sliding_window=6, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=False),
}


@pytest.fixture(scope="session")
def parents(tmp_path_factory):
    """Folders with nothing but a tiny `config.json`, by family."""
    folders = {}
    for family, config in CONFIGS.items():
        folders[family] = tmp_path_factory.mktemp(family)
        config.save_pretrained(folders[family])
    return folders


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short stacks and samples: no test looks at a time."""
    torch.set_num_threads(1)
    monkeypatch.setattr(torch_engine, "COPIES", (2, 3))
    monkeypatch.setattr(timing, "MINIMUM_SECONDS", 0.02 / 16)
