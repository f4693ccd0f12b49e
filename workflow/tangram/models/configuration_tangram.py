"""The configs of heterogeneous children: each a stock family's, under a model type of its own.

This file travels with every child that stock code cannot run (`auto_map`). A stock model type would let transformers
load a child as the stock model, with random weights in place of what its layers lack; an unknown one is an error
that asks for `trust_remote_code=True`.
"""

from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config


def lacks_attention(skip: list[str], linear: list[str]) -> bool:
    """Whether a layer with these entries of `per_layer_config` has no attention, and so no cache of keys and values."""
    return "attention" in [*skip, *linear]


class HeterogeneousConfig(PreTrainedConfig):
    """A config whose layers differ; see `modeling_tangram.py` for what `per_layer_config` may hold."""

    @property
    def kv_sharing_modes(self) -> list[str | None]:
        """Say for transformers' caches which layers store no keys and values of their own: those without attention.

        A cache needs one layer that counts tokens, so that of a child without any attention is its first one.
        """
        without = [
            lacks_attention(getattr(layer, "skip", []), getattr(layer, "linear", [])) for layer in self.per_layer_config
        ]
        if without and all(without):
            without[0] = False
        return ["reuse" if missing else None for missing in without]


class TangramLlamaConfig(HeterogeneousConfig, LlamaConfig):
    """Of a heterogeneous Llama."""

    model_type = "tangram_llama"


class TangramMistralConfig(HeterogeneousConfig, MistralConfig):
    """Of a heterogeneous Mistral."""

    model_type = "tangram_mistral"


class TangramQwen2Config(HeterogeneousConfig, Qwen2Config):
    """Of a heterogeneous Qwen2."""

    model_type = "tangram_qwen2"


class TangramQwen3Config(HeterogeneousConfig, Qwen3Config):
    """Of a heterogeneous Qwen3."""

    model_type = "tangram_qwen3"


CONFIG_CLASSES = {
    config.model_type: config
    for config in (TangramLlamaConfig, TangramMistralConfig, TangramQwen2Config, TangramQwen3Config)
}
