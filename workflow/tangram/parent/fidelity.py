"""The fidelity check: refuse a parent whose logits differ between stock transformers and any forward pass of ours.

The pipeline calls a parent in several ways: layer by layer, with a KV cache, rebuilt from blocks. If one of them
ignores an attribute of the config, a run would silently train, score and evaluate another model. The reference is the
source, run by stock transformers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tangram.activations import StreamedActivations
from tangram.blocks.architecture import Architecture, LayerChoice, heterogeneous_config
from tangram.errors import TangramError
from tangram.evaluation.question_tree import Tree, target_logits
from tangram.models.by_layer import load_by_layer
from tangram.models.families import decoder_layers, window_of
from tangram.models.forward import logits_of
from tangram.models.loading import load_model, model_class

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

SEQUENCES = 2  # equal in the first half and different in the second: one question with two choices
TOKENS = (32, 256)  # smallest and (without a sliding window) largest length of a sequence
BUDGET = 1e12  # floating-point operations of all forward passes together: some ten seconds of one core
WAYS = 6  # number of compared forward passes
CACHED = 4  # number of final tokens that are decoded one by one with a KV cache
TOLERANCE = 1e-3  # root mean square of the difference over that of the logits; float32 rounding leaves about 1e-6


def token_count(config: PreTrainedConfig, parameters: int) -> int:
    """Return the length of the compared sequences: more than the window, if budget and context allow it."""
    affordable = int(BUDGET / (2 * parameters * SEQUENCES * WAYS))
    window = window_of(config)
    sufficient = max(TOKENS[1], window + 64 if window is not None else 0)
    return min(config.max_position_embeddings, max(TOKENS[0], min(affordable, sufficient)))


def comparison_tokens(config: PreTrainedConfig, parameters: int) -> torch.Tensor:
    """Return random tokens, ``(SEQUENCES, tokens)``; the sequences have equal first halves."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (SEQUENCES, token_count(config, parameters)), generator=generator)
    half = tokens.shape[1] // 2
    tokens[1, :half] = tokens[0, :half]
    return tokens


@torch.inference_mode()
def stock_logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits of a model's `forward`, ``(sequences, tokens, vocabulary)``, float32."""
    return model(input_ids=tokens, use_cache=False).logits.float()


def layer_by_layer(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits of a layer-by-layer pass, as in the capture of activations."""
    hidden = StreamedActivations(model, tokens, SEQUENCES).hidden(len(decoder_layers(model)))
    return logits_of(model, model.model.norm(hidden))


def behind_a_cache(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits of the last tokens, decoded one by one with a KV cache, as in sampling."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    parts = [tokens[:, :-CACHED], *tokens[:, -CACHED:].split(1, dim=1)]
    logits = [model(part, past_key_values=cache, use_cache=True, logits_to_keep=1).logits for part in parts]
    return torch.cat(logits, dim=1)[:, 1:]


def as_a_question(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits that predict the sequences' second halves, as two choices of one question."""
    half = tokens.shape[1] // 2
    logits, _ = target_logits(model, [Tree.of(tokens[0, :half].tolist(), tokens[:, half:].tolist())])
    return logits.unflatten(0, (SEQUENCES, -1))


def built_by_layer(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits of a heterogeneous child whose subblocks are all the parent's."""
    parent = Architecture((LayerChoice(),) * len(decoder_layers(model)))
    config = heterogeneous_config(model.config, parent)
    return stock_logits(_with_weights(config, model), tokens)


def _with_weights(config: PreTrainedConfig, model: PreTrainedModel) -> PreTrainedModel:
    """Return a model of another config with the weights of ``model``."""
    state = dict(model.state_dict())
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    build = model_class(config.model_type).from_pretrained
    return build(None, config=config, state_dict=state, dtype=model.dtype).eval()


def all_positions(logits: torch.Tensor) -> torch.Tensor:
    """Return the logits at all positions."""
    return logits


def last_positions(logits: torch.Tensor) -> torch.Tensor:
    """Return the logits at the positions of `behind_a_cache`."""
    return logits[:, -CACHED:]


def second_half(logits: torch.Tensor) -> torch.Tensor:
    """Return the logits at the positions of `as_a_question`."""
    half = logits.shape[1] // 2
    return logits[:, half - 1 : -1]


Way = tuple[str, Callable[["PreTrainedModel", torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]
OF_ONE_MODEL: tuple[Way, ...] = (
    ("run layer by layer", layer_by_layer, all_positions),
    ("generating with a KV cache", behind_a_cache, last_positions),
    ("answering a question's choices", as_a_question, second_half),
    ("rebuilt from its own blocks", built_by_layer, all_positions),
)


def difference(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the root mean square of the difference, relative to the reference's spread around its mean."""
    reference = reference.double()
    scale = (reference - reference.mean(-1, keepdim=True)).square().mean().sqrt().clamp_min(1e-30)
    return ((logits.double() - reference).square().mean().sqrt() / scale).item()


@torch.inference_mode()
def check_fidelity(folder: str | Path, source: PreTrainedConfig, tokens: torch.Tensor, reference: torch.Tensor) -> None:
    """Raise unless every forward pass of the pipeline gives the source's logits.

    Everything is computed in float32 whatever the checkpoint's dtype, so that rounding cannot hide a difference.

    Args:
        folder: the checkpoint.
        source: the source's config.
        tokens: see `comparison_tokens`.
        reference: `stock_logits` of the source.

    Raises:
        TangramError: the logits of a forward pass differ; the message names the attribute of the config at fault.
    """
    if not torch.isfinite(reference).all():
        raise TangramError(
            "the parent's logits are not finite in float32; its weights are broken: replace the checkpoint"
        )
    model = load_model(folder)

    lost = functools.partial(_lost, source.to_dict(), model.config.to_dict())
    _check("read back from the run's folder", stock_logits(model, tokens), reference, lost)
    for name, way, positions in OF_ONE_MODEL:
        at_fault = functools.partial(_at_fault, model, way, positions, tokens)
        _check(name, way(model, tokens), positions(reference), at_fault)
    del model, at_fault
    _check("read one layer at a time", layer_by_layer(load_by_layer(folder), tokens), reference, list)


def _check(name: str, logits: torch.Tensor, reference: torch.Tensor, at_fault: Callable[[], list[str]]) -> None:
    size = difference(logits, reference)
    if size < TOLERANCE:
        return
    keys = at_fault()
    cause = {0: "its family", 1: f"config.json's {' '.join(keys)}"}.get(len(keys), f"one of {', '.join(keys)}")
    raise TangramError(
        f"the parent {name} is another model than the one that stock transformers runs (its logits differ by "
        f"{size:.2g} of their spread): {cause} is not carried over, so that this parent cannot be used"
    )


def _lost(source: dict[str, Any], saved: dict[str, Any]) -> list[str]:
    """Return the attributes of a config that are missing or different in the saved one."""
    return [name for name, value in source.items() if name != "dtype" and saved.get(name) != value]


def _at_fault(
    model: PreTrainedModel,
    way: Callable[[PreTrainedModel, torch.Tensor], torch.Tensor],
    positions: Callable[[torch.Tensor], torch.Tensor],
    tokens: torch.Tensor,
) -> list[str]:
    """Return the attribute at whose default a forward pass and the stock model agree; all candidates if none does."""

    def agree(settings: dict[str, Any]) -> bool:
        try:
            other = _with_weights(type(model.config)(**settings), model)
            return difference(way(other, tokens), positions(stock_logits(other, tokens))) < TOLERANCE
        except Exception:  # of any type: the default does not fit the other attributes
            return False

    without = _without_each(model.config)
    return [name for name, settings in without.items() if agree(settings)][:1] or list(without)


def _without_each(config: PreTrainedConfig) -> dict[str, dict[str, Any]]:
    """Return, by attribute, the settings with that attribute at its family's default; sizes are left out."""
    names = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"}
    names |= {"vocab_size", "head_dim", "max_position_embeddings", "initializer_range", "architectures", "dtype"}
    names |= {"model_type", "transformers_version", "_name_or_path", "layer_types"}
    settings, defaults = config.to_dict(), type(config)().to_dict()
    return {
        name: {key: defaults.get(key) if key == name else other for key, other in settings.items()}
        for name, value in settings.items()
        if value != defaults.get(name) and name not in names and not name.endswith("_token_id")
    }
