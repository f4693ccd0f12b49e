import pytest
import torch
from tiny_models import tiny_config

from tangram import timing
from tangram.costs import torch_engine

FAMILIES = {
    "llama": {"head_dim": 12, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "mistral": {"head_dim": 8, "sliding_window": 6, "tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16, "tie_word_embeddings": False},
    "granite": {"residual_multiplier": 0.4},
    "olmo2": {"pad_token_id": None},
    "smollm3": {"no_rope_layers": [1, 0, 1], "tie_word_embeddings": False, "pad_token_id": None},
    "gemma2": {"head_dim": 8, "sliding_window": 6, "final_logit_softcapping": 2.0},
    "gemma3_text": {"head_dim": 16, "sliding_window": 6, "sliding_window_pattern": 3},
}


@pytest.fixture(scope="session")
def parents(tmp_path_factory):
    """Folders with nothing but a tiny `config.json`, by family."""
    folders = {}
    for family, settings in FAMILIES.items():
        folders[family] = tmp_path_factory.mktemp(family)
        tiny_config(family, vocab_size=50, **settings).save_pretrained(folders[family])
    return folders


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short stacks and samples: no test looks at a time."""
    torch.set_num_threads(1)
    monkeypatch.setattr(torch_engine, "COPIES", (2, 3))
    monkeypatch.setattr(timing, "MINIMUM_SECONDS", 0.02 / 16)
