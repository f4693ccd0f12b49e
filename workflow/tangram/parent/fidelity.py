"""The fidelity gate: a parent computes the same in every way in which the pipeline calls it, or it is refused.

The reference is the source as stock transformers runs it. What a config says and one of the ways does not know would
otherwise make a run train, score and evaluate another model than the one that was named, without a word.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tangram.activations import StreamedActivations
from tangram.blocks.architecture import LayerChoice, heterogeneous_config
from tangram.errors import TangramError
from tangram.evaluation.question_tree import Tree, target_logits
from tangram.models.by_layer import load_by_layer
from tangram.models.families import decoder_layers, window_of
from tangram.models.loading import load_model, model_class

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

SEQUENCES = 2  # the second one goes another way from the middle on: two choices of one question
TOKENS = (32, 256)  # of a sequence, at least and, without a window, at most
BUDGET = 1e12  # floating-point operations of all ways together: some ten seconds of one core
WAYS = 6
CACHED = 4  # last tokens that are read one by one behind a cache
TOLERANCE = 1e-3  # root mean square of the difference over that of the logits; float32 rounding leaves about 1e-6


def token_count(config: PreTrainedConfig, parameters: int) -> int:
    """Return how long the compared sequences are: beyond the window, as far as budget and context allow."""
    affordable = int(BUDGET / (2 * parameters * SEQUENCES * WAYS))
    window = window_of(config)
    wanted = max(TOKENS[1], window + 64 if window is not None else 0)
    return min(config.max_position_embeddings, max(TOKENS[0], min(affordable, wanted)))


def comparison_tokens(config: PreTrainedConfig, parameters: int) -> torch.Tensor:
    """Return random tokens, ``(SEQUENCES, tokens)``, alike in their first half."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (SEQUENCES, token_count(config, parameters)), generator=generator)
    half = tokens.shape[1] // 2
    tokens[1, :half] = tokens[0, :half]
    return tokens


@torch.inference_mode()
def stock_logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Return a model's logits as its own `forward` gives them, ``(sequences, tokens, vocabulary)``, float32."""
    return model(input_ids=tokens, use_cache=False).logits.float()


def layer_by_layer(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits by way of every layer's hidden states, as activations are captured."""
    hidden = StreamedActivations(model, tokens, SEQUENCES).hidden(len(decoder_layers(model)))
    return model.lm_head(model.model.norm(hidden))


def behind_a_cache(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits of the last tokens, read one by one behind a cache, as text is sampled."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    parts = [tokens[:, :-CACHED], *tokens[:, -CACHED:].split(1, dim=1)]
    logits = [model(part, past_key_values=cache, use_cache=True, logits_to_keep=1).logits for part in parts]
    return torch.cat(logits, dim=1)[:, 1:]


def as_a_question(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits from which the sequences' second halves are predicted, as two choices of one question."""
    half = tokens.shape[1] // 2
    logits, _ = target_logits(model, [Tree.of(tokens[0, :half].tolist(), tokens[:, half:].tolist())])
    return logits.unflatten(0, (SEQUENCES, -1))


def built_by_layer(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits of a child that is made of nothing but the parent's own blocks."""
    config = heterogeneous_config(model.config, (LayerChoice(),) * len(decoder_layers(model)))
    return stock_logits(_with_weights(config, model), tokens)


def _with_weights(config: PreTrainedConfig, model: PreTrainedModel) -> PreTrainedModel:
    """Return a model of another config that holds the weights of ``model``."""
    state = dict(model.state_dict())
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    build = model_class(config.model_type).from_pretrained
    return build(None, config=config, state_dict=state, dtype=model.dtype).eval()


def whole(logits: torch.Tensor) -> torch.Tensor:
    """Take the reference at all positions."""
    return logits


def last_ones(logits: torch.Tensor) -> torch.Tensor:
    """Take the reference where `behind_a_cache` gives logits."""
    return logits[:, -CACHED:]


def second_half(logits: torch.Tensor) -> torch.Tensor:
    """Take the reference where `as_a_question` gives logits."""
    half = logits.shape[1] // 2
    return logits[:, half - 1 : -1]


Way = tuple[str, Callable[["PreTrainedModel", torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]
OF_ONE_MODEL: tuple[Way, ...] = (
    ("run layer by layer", layer_by_layer, whole),
    ("generating behind a cache", behind_a_cache, last_ones),
    ("answering a question's choices", as_a_question, second_half),
    ("rebuilt from its own blocks", built_by_layer, whole),
)


def difference(found: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the root mean square of a difference of logits over that of the reference around its mean."""
    reference = reference.double()
    scale = (reference - reference.mean(-1, keepdim=True)).square().mean().sqrt().clamp_min(1e-30)
    return ((found.double() - reference).square().mean().sqrt() / scale).item()


@torch.inference_mode()
def check_fidelity(folder: str | Path, source: PreTrainedConfig, tokens: torch.Tensor, reference: torch.Tensor) -> None:
    """Raise unless a parent's checkpoint computes what its source does, in every way that the pipeline calls it.

    All is computed in float32 whatever the checkpoint's type, so that rounding cannot hide a difference.

    Args:
        folder: the checkpoint.
        source: the source's config.
        tokens: see `comparison_tokens`.
        reference: `stock_logits` of the source.

    Raises:
        TangramError: a way computes another model; the message names the attribute of the config at fault.
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


def _check(name: str, found: torch.Tensor, reference: torch.Tensor, at_fault: Callable[[], list[str]]) -> None:
    size = difference(found, reference)
    if size < TOLERANCE:
        return
    named = at_fault()
    cause = {0: "its family", 1: f"config.json's {' '.join(named)}"}.get(len(named), f"one of {', '.join(named)}")
    raise TangramError(
        f"the parent {name} is another model than the one that stock transformers runs (its logits differ by "
        f"{size:.2g} of their spread): {cause} is not carried over, so that this parent cannot be used"
    )


def _lost(source: dict[str, Any], saved: dict[str, Any]) -> list[str]:
    """Return the attributes of a config that another one has not."""
    return [name for name, value in source.items() if name != "dtype" and saved.get(name) != value]


def _at_fault(
    model: PreTrainedModel,
    way: Callable[[PreTrainedModel, torch.Tensor], torch.Tensor],
    positions: Callable[[torch.Tensor], torch.Tensor],
    tokens: torch.Tensor,
) -> list[str]:
    """Return the attribute at whose default a way and the stock model agree; all that could be, if no single one is."""

    def agree(settings: dict[str, Any]) -> bool:
        try:
            other = _with_weights(type(model.config)(**settings), model)
            return difference(way(other, tokens), positions(stock_logits(other, tokens))) < TOLERANCE
        except Exception:  # of any kind: a default that does not fit the rest
            return False

    without = _without_each(model.config)
    return [name for name, settings in without.items() if agree(settings)][:1] or list(without)


def _without_each(config: PreTrainedConfig) -> dict[str, dict[str, Any]]:
    """Return the settings without each attribute that differs from its family's default and is no size, by its name."""
    names = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"}
    names |= {"vocab_size", "head_dim", "max_position_embeddings", "initializer_range", "architectures", "dtype"}
    names |= {"model_type", "transformers_version", "_name_or_path", "layer_types"}
    settings, defaults = config.to_dict(), type(config)().to_dict()
    return {
        name: {key: defaults.get(key) if key == name else other for key, other in settings.items()}
        for name, value in settings.items()
        if value != defaults.get(name) and name not in names and not name.endswith("_token_id")
    }
