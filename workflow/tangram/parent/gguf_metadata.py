"""A GGUF's metadata: convert every key of its architecture to a transformers config, or refuse the file.

transformers reads the tensors, but only some of the keys; a key that it ignores would change the model. Names and
meanings follow llama.cpp (its `gguf` package and `llama-hparams`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangram.errors import TangramError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Keys, without the prefix of the architecture, whose value is one attribute of a config.
ATTRIBUTES = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "rope.dimension_count": "head_dim",
    "vocab_size": "vocab_size",
}
# Keys that have no effect with one of these values.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "attention.scale": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "rope.scaling.finetuned": (True, False),
    "rope.scaling.attn_factor": (0.0, 1.0),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (-1.0, 1.0),
    "rope.scaling.yarn_log_multiplier": (0.0,),
}
ROPE = ("rope.freq_base", "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor")
ROPE_YARN = {  # llama.cpp's names, and transformers'
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
ROPE_FREQS = "rope_freqs.weight"  # the divisor of each rotary frequency


class Metadata:
    """The metadata of a GGUF.

    Args:
        path: the file.

    Raises:
        TangramError: the file is not a GGUF, or its architecture is not supported.
    """

    ARCHITECTURES = ("llama", "qwen2", "qwen3")  # llama.cpp's name of Mistral is `llama`

    def __init__(self, path: str | Path):
        from gguf import GGUFReader

        try:
            reader = GGUFReader(path)
            self.architecture = str(reader.fields["general.architecture"].contents())
            read = ("general.license", f"{self.architecture}.", "tokenizer.chat_template", "tokenizer.ggml.add_")
            self.fields = {name: f.contents() for name, f in reader.fields.items() if name.startswith(read)}
        except (ValueError, OSError, IndexError, KeyError) as error:
            raise TangramError(f"it is not a readable GGUF: {error}") from error
        if self.architecture not in self.ARCHITECTURES:
            raise TangramError(
                f"its architecture '{self.architecture}' is not supported; supported: {', '.join(self.ARCHITECTURES)}"
            )
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The keys of the architecture, without its name as their prefix."""
        prefix = f"{self.architecture}."
        return {k.removeprefix(prefix): value for k, value in self.fields.items() if k.startswith(prefix)}

    @property
    def license(self) -> str | None:
        """The license of the weights, such as ``apache-2.0``; None if the file does not say."""
        return self.fields.get("general.license")

    @property
    def chat_templates(self) -> dict[str, str]:
        """All chat templates by name; most files have only `default`."""
        prefix = "tokenizer.chat_template"
        return {
            name.removeprefix(prefix).removeprefix(".") or "default": text
            for name, text in self.fields.items()
            if name.startswith(prefix) and name != f"{prefix}s"  # this key holds the list of names
        }

    def apply_to(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Return a config of the same class with all of the file's hyperparameters.

        Args:
            config: the config that transformers read from the file.

        Raises:
            TangramError: no config of that class can express a key of the file.
        """
        values = self.hyperparameters
        unknown = values.keys() - ATTRIBUTES.keys() - NEUTRAL.keys() - {*ROPE, *ROPE_YARN}
        unknown |= {key for key in values.keys() & NEUTRAL.keys() if values[key] not in NEUTRAL[key]}
        if unknown:
            key = min(unknown)
            value = values[key] if not isinstance(values[key], list) else f"a list of {len(values[key])}"
            raise TangramError(f"its {self.architecture}.{key} ({value}) cannot be carried over")
        settings = config.to_dict()
        for key in ("quantization_config", "_name_or_path"):  # transformers refuses to save a config with them
            settings.pop(key, None)
        for key, attribute in ATTRIBUTES.items():
            if key not in values:
                continue
            value = shortest_decimal(values[key]) if isinstance(values[key], float) else values[key]
            if any(values.get(other, value) != values[key] for other, name in ATTRIBUTES.items() if name == attribute):
                raise TangramError(
                    f"its {self.architecture}.{key} ({value}) contradicts another key for a head's width"
                )
            if (attribute not in settings and attribute != "head_dim") or isinstance(value, list):
                raise TangramError(f"its {self.architecture}.{key} cannot be carried over")
            settings[attribute] = value
        if {"blk.0.attn_q.bias", "blk.0.attn_output.bias"} <= self.tensors.keys():
            settings["attention_bias"] = True
        if "blk.0.ffn_up.bias" in self.tensors:
            settings["mlp_bias"] = True
        settings["rope_parameters"] = self.rope_parameters(
            settings.get("head_dim") or settings["hidden_size"] // settings["num_attention_heads"]
        )
        settings["tie_word_embeddings"] = "output.weight" not in self.tensors
        return type(config)(**settings)

    def rope_parameters(self, head_dim: int) -> dict[str, Any]:
        """Return transformers' `rope_parameters`.

        Raises:
            TangramError: transformers does not support the file's scaling of rotary frequencies.
        """
        values = self.hyperparameters
        base: dict[str, Any] = {"rope_theta": shortest_decimal(values.get("rope.freq_base", 10000.0))}
        factor = shortest_decimal(values.get("rope.scaling.factor") or values.get("rope.scale_linear") or 1.0)
        kind = values.get("rope.scaling.type", "linear")
        if ROPE_FREQS in self.tensors:
            if kind != "none" and factor != 1.0:
                raise TangramError(f"it holds both {ROPE_FREQS} and rope.scaling.factor, which cannot be carried over")
            return {**base, **self._llama3(base["rope_theta"], head_dim)}
        if kind == "none" or (kind == "linear" and factor == 1.0):
            return {**base, "rope_type": "default"}
        if kind == "linear":
            return {**base, "rope_type": "linear", "factor": factor}
        if kind == "yarn" and "rope.scaling.original_context_length" in values:
            yarn = {name: values[key] for key, name in ROPE_YARN.items() if key in values}
            return {**base, "rope_type": "yarn", "factor": factor, **yarn}
        raise TangramError(f"its {self.architecture}.rope.scaling.type ({kind}) cannot be carried over")

    def _llama3(self, theta: float, head_dim: int) -> dict[str, Any]:
        """Return the parameters of Llama 3's scaling that give the divisors in the file.

        llama.cpp stores one divisor per frequency instead of the parameters.
        """
        divisors = [float(value) for value in self.tensors[ROPE_FREQS].data]
        context = self.hyperparameters["context_length"]
        for original in dict.fromkeys((8192, round(context / max(divisors)), 4096, 2048, context)):
            parameters = {
                "rope_type": "llama3",
                "factor": shortest_decimal(max(divisors)),
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": original,
            }
            expected = llama3_divisors(theta, head_dim, parameters)
            if len(expected) == len(divisors) and all(
                math.isclose(a, b, rel_tol=1e-5) for a, b in zip(expected, divisors, strict=True)
            ):
                return parameters
        raise TangramError(
            f"its {ROPE_FREQS} matches no known parameters of Llama 3's scaling: it cannot be carried over"
        )

    def check_tensors(self, model_tensors: Iterable[str]) -> None:
        """Raise unless the file has exactly the tensors of a model.

        Args:
            model_tensors: names of the model's tensors in a checkpoint.

        Raises:
            TangramError: a tensor is in the file only, or in the model only.
        """
        import gguf

        layers = self.hyperparameters["block_count"]
        names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, self.architecture.upper()), layers)
        expected = {}
        for name in model_tensors:
            stem, _, leaf = name.rpartition(".")
            expected[f"{names.get_name(stem)}.{leaf}"] = name
        if "output.weight" not in self.tensors:
            expected.pop("output.weight", None)
        if superfluous := sorted(self.tensors.keys() - expected.keys() - {ROPE_FREQS}):
            raise TangramError(f"its tensor {superfluous[0]} has no place in a {self.architecture} of transformers")
        if missing := sorted(expected.keys() - self.tensors.keys()):
            raise TangramError(f"it lacks tensor {missing[0]} ({expected[missing[0]]})")


def shortest_decimal(value: float) -> float:
    """Return the shortest decimal of the same float32: a GGUF's float32 of 1e-5 reads as 9.99…e-06."""
    import numpy as np

    return float(str(np.float32(value)))


def llama3_divisors(theta: float, head_dim: int, parameters: Mapping[str, Any]) -> list[float]:
    """Return Llama 3's divisor of each rotary frequency, ``(head_dim / 2,)``."""
    original, factor = parameters["original_max_position_embeddings"], parameters["factor"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    divisors = []
    for index in range(0, head_dim, 2):
        rotations = original / (2 * math.pi * theta ** (index / head_dim))  # within the original context
        smooth = min(1.0, max(0.0, (rotations - low) / (high - low)))
        divisors.append(1 / ((1 - smooth) / factor + smooth))
    return divisors
