"""A GGUF's own metadata: every key and tensor of its architecture is carried over to a config, or refused.

transformers reads the tensors, but knows only some of the keys; what it passes over would make another model. Names
and meanings are those of llama.cpp (its `gguf` package and `llama-hparams`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangram.errors import TangramError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Keys, without the architecture before them, whose value is one attribute of a config.
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
# Keys that change nothing where they have one of these values.
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
ROPE_FREQS = "rope_freqs.weight"  # what each rotary frequency is divided by


class Metadata:
    """What a GGUF says of itself.

    Args:
        path: the file.

    Raises:
        TangramError: it is not a GGUF, or one of another architecture than the supported ones.
    """

    ARCHITECTURES = ("llama", "qwen2", "qwen3")  # llama.cpp has Mistral as `llama`

    def __init__(self, path: str | Path):
        from gguf import GGUFReader

        try:
            reader = GGUFReader(path)
            self.architecture = str(reader.fields["general.architecture"].contents())
            read = (f"{self.architecture}.", "tokenizer.chat_template", "tokenizer.ggml.add_")
            self.fields = {name: f.contents() for name, f in reader.fields.items() if name.startswith(read)}
        except (ValueError, OSError, IndexError, KeyError) as error:
            raise TangramError(f"it is not a GGUF that can be read: {error}") from error
        if self.architecture not in self.ARCHITECTURES:
            raise TangramError(
                f"its architecture '{self.architecture}' is not supported; supported: {', '.join(self.ARCHITECTURES)}"
            )
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}

    @property
    def own(self) -> dict[str, Any]:
        """The keys of the architecture, without its name before them."""
        prefix = f"{self.architecture}."
        return {k.removeprefix(prefix): value for k, value in self.fields.items() if k.startswith(prefix)}

    @property
    def chat_templates(self) -> dict[str, str]:
        """All chat templates by name; the only one that most files have is called `default`."""
        prefix = "tokenizer.chat_template"
        return {
            name.removeprefix(prefix).removeprefix(".") or "default": text
            for name, text in self.fields.items()
            if name.startswith(prefix) and name != f"{prefix}s"  # that one lists the names
        }

    def apply_to(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Return a config of the same class that says all that the file says.

        Args:
            config: what transformers made of the file.

        Raises:
            TangramError: the file says something that no config of that class can.
        """
        said = self.own
        unknown = said.keys() - ATTRIBUTES.keys() - NEUTRAL.keys() - {*ROPE, *ROPE_YARN}
        unknown |= {key for key in said.keys() & NEUTRAL.keys() if said[key] not in NEUTRAL[key]}
        if unknown:
            key = min(unknown)
            value = said[key] if not isinstance(said[key], list) else f"a list of {len(said[key])}"
            raise TangramError(f"its {self.architecture}.{key} ({value}) cannot be carried over")
        settings = config.to_dict()
        for key in ("quantization_config", "_name_or_path"):  # left in, transformers refuses to save
            settings.pop(key, None)
        for key, attribute in ATTRIBUTES.items():
            if key not in said:
                continue
            value = shortest_decimal(said[key]) if isinstance(said[key], float) else said[key]
            if any(said.get(other, value) != said[key] for other, name in ATTRIBUTES.items() if name == attribute):
                raise TangramError(f"its {self.architecture}.{key} ({value}) is at odds with another width of a head")
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
            TangramError: the file scales its rotary frequencies in a way that transformers does not know.
        """
        said = self.own
        found: dict[str, Any] = {"rope_theta": shortest_decimal(said.get("rope.freq_base", 10000.0))}
        factor = shortest_decimal(said.get("rope.scaling.factor") or said.get("rope.scale_linear") or 1.0)
        kind = said.get("rope.scaling.type", "linear")
        if ROPE_FREQS in self.tensors:
            if kind != "none" and factor != 1.0:
                raise TangramError(f"it holds both {ROPE_FREQS} and rope.scaling.factor, which cannot be carried over")
            return {**found, **self._llama3(found["rope_theta"], head_dim)}
        if kind == "none" or (kind == "linear" and factor == 1.0):
            return {**found, "rope_type": "default"}
        if kind == "linear":
            return {**found, "rope_type": "linear", "factor": factor}
        if kind == "yarn" and "rope.scaling.original_context_length" in said:
            more = {name: said[key] for key, name in ROPE_YARN.items() if key in said}
            return {**found, "rope_type": "yarn", "factor": factor, **more}
        raise TangramError(f"its {self.architecture}.rope.scaling.type ({kind}) cannot be carried over")

    def _llama3(self, theta: float, head_dim: int) -> dict[str, Any]:
        """Return the parameters of Llama 3's scaling that give the divisors that the file holds.

        llama.cpp stores what the parameters make of every frequency, and not the parameters.
        """
        divisors = [float(value) for value in self.tensors[ROPE_FREQS].data]
        context = self.own["context_length"]
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
            f"its {ROPE_FREQS} is no scaling of Llama 3 with known parameters: it cannot be carried over"
        )

    def check_tensors(self, of_the_model: Iterable[str]) -> None:
        """Raise unless the file's tensors are those of a model, each once.

        Args:
            of_the_model: names of a model's tensors in a checkpoint.

        Raises:
            TangramError: a tensor is in the file only, or in the model only.
        """
        import gguf

        layers = self.own["block_count"]
        names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, self.architecture.upper()), layers)
        expected = {}
        for name in of_the_model:
            stem, _, leaf = name.rpartition(".")
            expected[f"{names.get_name(stem)}.{leaf}"] = name
        if "output.weight" not in self.tensors:
            expected.pop("output.weight", None)
        if superfluous := sorted(self.tensors.keys() - expected.keys() - {ROPE_FREQS}):
            raise TangramError(f"its tensor {superfluous[0]} has no place in a {self.architecture} of transformers")
        if missing := sorted(expected.keys() - self.tensors.keys()):
            raise TangramError(f"it lacks tensor {missing[0]} ({expected[missing[0]]})")


def shortest_decimal(value: float) -> float:
    """Return the shortest decimal of the same float32: GGUF holds float32, and 1e-5 comes back as 9.99…e-06."""
    import numpy as np

    return float(str(np.float32(value)))


def llama3_divisors(theta: float, head_dim: int, parameters: Mapping[str, Any]) -> list[float]:
    """Return by what Llama 3's scaling divides each rotary frequency, ``(head_dim / 2,)``."""
    original, factor = parameters["original_max_position_embeddings"], parameters["factor"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    found = []
    for index in range(0, head_dim, 2):
        turns = original / (2 * math.pi * theta ** (index / head_dim))  # in the original context
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        found.append(1 / ((1 - smooth) / factor + smooth))
    return found
