"""The configs of heterogeneous children: subclasses of the stock configs with their own model types.

This file is copied into every child that stock code cannot run (`auto_map`). Under a stock model type, transformers
would load a child as the stock model and fill the missing tensors with random weights. An unknown model type raises
an error that asks for `trust_remote_code=True`.
"""

from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)


def lacks_attention(skip: list[str], linear: list[str]) -> bool:
    """Return whether a layer with these entries of `per_layer_config` has no attention and hence no KV cache."""
    return "attention" in [*skip, *linear]


class HeterogeneousConfig(PreTrainedConfig):
    """A config whose layers differ; `modeling_tangram.py` describes the entries of `per_layer_config`."""

    @property
    def kv_sharing_modes(self) -> list[str | None]:
        """Mark the layers without attention, for which transformers' caches store no keys and values.

        A cache needs one layer that counts tokens. In a child without any attention, the first layer counts them.
        """
        uncached = [
            lacks_attention(getattr(layer, "skip", []), getattr(layer, "linear", [])) for layer in self.per_layer_config
        ]
        if uncached and all(uncached):
            uncached[0] = False
        return ["reuse" if skip_cache else None for skip_cache in uncached]


class TangramLlamaConfig(HeterogeneousConfig, LlamaConfig):
    """Config of a heterogeneous Llama."""

    model_type = "tangram_llama"


class TangramMistralConfig(HeterogeneousConfig, MistralConfig):
    """Config of a heterogeneous Mistral."""

    model_type = "tangram_mistral"


class TangramQwen2Config(HeterogeneousConfig, Qwen2Config):
    """Config of a heterogeneous Qwen2."""

    model_type = "tangram_qwen2"


class TangramQwen3Config(HeterogeneousConfig, Qwen3Config):
    """Config of a heterogeneous Qwen3."""

    model_type = "tangram_qwen3"


class TangramGraniteConfig(HeterogeneousConfig, GraniteConfig):
    """Config of a heterogeneous Granite."""

    model_type = "tangram_granite"


class TangramOlmo2Config(HeterogeneousConfig, Olmo2Config):
    """Config of a heterogeneous OLMo 2."""

    model_type = "tangram_olmo2"


class TangramSmolLM3Config(HeterogeneousConfig, SmolLM3Config):
    """Config of a heterogeneous SmolLM3."""

    model_type = "tangram_smollm3"


class TangramGemma2Config(HeterogeneousConfig, Gemma2Config):
    """Config of a heterogeneous Gemma 2."""

    model_type = "tangram_gemma2"


class TangramGemma3TextConfig(HeterogeneousConfig, Gemma3TextConfig):
    """Config of a heterogeneous Gemma 3 for text."""

    model_type = "tangram_gemma3_text"


CONFIG_CLASSES = {
    config.model_type: config
    for config in (
        TangramLlamaConfig,
        TangramMistralConfig,
        TangramQwen2Config,
        TangramQwen3Config,
        TangramGraniteConfig,
        TangramOlmo2Config,
        TangramSmolLM3Config,
        TangramGemma2Config,
        TangramGemma3TextConfig,
    )
}
