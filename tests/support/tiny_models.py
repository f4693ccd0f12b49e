"""Tiny models of every supported family: configs, models of random weights, and parents on disk with a tokenizer."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
# Further settings of parents on disk.
ON_DISK = {
    "vocab_size": 328,  # more embeddings than tokens, as in many real models
    "head_dim": 16,  # not hidden / heads
    "max_position_embeddings": 128,
    "initializer_range": 0.2,  # wide enough that the model prefers some tokens
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}
# Words of several lengths, digits, accents and code, so that the byte-level BPE below learns merges.
TEXT = [
    "The parent is a trained decoder; the child is a faster one that was made from its pieces.",
    "Attention with 9 heads and 3 KV heads, 576 wide: 30 layers of it, measured in seconds and bytes.",
    "Il était une fois un modèle qui écrivait lui-même les textes dont il apprenait.",
    "def forward(self, hidden_states):\n    return self.down_proj(self.act_fn(hidden_states))",
] * 4
CHAT_TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"


def tiny_config(model_type: str = "llama", **settings: object) -> PreTrainedConfig:
    """Return the config of a family's tiny model; ``settings`` are keys of the family's config class."""
    return AutoConfig.for_model(model_type, **SIZES | settings)


def implementations(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the implementations of attention that a model's family supports; Gemma 2's caps need the eager one."""
    return ("sdpa", "eager") if model._supports_sdpa else ("eager",)


def random_model(config: PreTrainedConfig, std: float = 0.2) -> PreTrainedModel:
    """Return a stock model in which every tensor, biases and norms included, is random."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(type(config).from_dict(config.to_dict())).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, std)
    return model


def write_parent(folder: Path, model_type: str = "llama", **settings: object) -> None:
    """Write a parent with initial weights, with noise on norms and biases, and a tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny_config(model_type, **ON_DISK | settings))
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms of 1 and biases of 0 would hide mistakes
                parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
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
    return tokenizer
