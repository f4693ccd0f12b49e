"""The forward passes that are timed: prefill and decode steps, of whole models and of decoder layers alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Cache, DynamicCache, PreTrainedModel

from tangram.config import Scenario
from tangram.costs.measurement import decode_window
from tangram.models.families import decoder_layers
from tangram.models.packed_attention import GrowingLayer
from tangram.timing import interleaved


@contextmanager
def fastest_kernels() -> Iterator[None]:
    """Disable torch's deterministic mode, which is slower: it fills new memory and avoids some kernels."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def synchronize(device: str) -> Callable[[], None]:
    """Return a function that waits for a device to finish its work."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def fork(cache: Cache) -> Cache:
    """Return a copy of a cache that shares its tensors; tokens added to the copy do not change the original."""
    forked = copy.copy(cache)
    forked.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in forked.layers:
        if isinstance(layer, GrowingLayer):
            layer.take_over()
    return forked


def random_ids(model: PreTrainedModel, batch: int, length: int) -> torch.Tensor:
    """Return random tokens, ``(batch, length)``."""
    return torch.randint(model.config.vocab_size, (batch, length)).to(model.device)


@torch.inference_mode()
def advance(model: PreTrainedModel, input_ids: torch.Tensor, cache: Cache | None = None) -> tuple[torch.Tensor, Cache]:
    """Run the model on tokens and choose the next token greedily.

    Args:
        model: a causal language model.
        input_ids: ``(batch, tokens)``.
        cache: cache of the past tokens, extended in place; a new one by default.

    Returns:
        The next token of each sequence, ``(batch, 1)``, and the cache.
    """
    output = model(input_ids=input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return output.logits[:, -1].argmax(dim=-1, keepdim=True), output.past_key_values


@dataclass(frozen=True)
class Passes:
    """The two timed functions: a prefill of the whole prompt, and `steps` decode steps; both can be repeated.

    Both return their last result: the next token, or the last layer's output.
    """

    prefill: Callable[[], torch.Tensor]
    decode: Callable[[], torch.Tensor]
    steps: int

    @classmethod
    def of_model(cls, model: PreTrainedModel, prompt: torch.Tensor, past: torch.Tensor, steps: int) -> Passes:
        """Prepare a whole model, with a prefill of ``past`` and one decode step, which warm up.

        Args:
            model: a causal language model.
            prompt: tokens of the prefill, ``(batch, prefill)``.
            past: tokens in the cache before the first decode step, ``(batch, tokens)``.
            steps: number of decode steps.
        """
        first, cache = advance(model, past)
        advance(model, first, fork(cache))

        def decode() -> torch.Tensor:
            token, growing = first, fork(cache)
            for _ in range(steps):
                token, growing = advance(model, token, growing)
            return token

        return cls(lambda: advance(model, prompt)[0], decode, steps)

    @classmethod
    def of_layers(cls, model: PreTrainedModel, prompt: torch.Tensor, past: torch.Tensor, steps: int) -> Passes:
        """Prepare a model's decoder layers alone, with the arguments that the model passes to them; see `of_model`.

        The model computes masks, rotary angles and the empty cache once per pass for all layers. They are computed here
        and not timed.
        """
        layers = decoder_layers(model)
        calls: list[tuple[torch.Tensor, list[dict[str, Any]]]] = []  # the first layer's input, every layer's arguments

        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if module is layers[0]:
                calls.append((args[0], []))
            calls[-1][1].append(kwargs)

        recorders = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in layers]
        advance(model, prompt)
        token, cache = advance(model, past)
        growing = fork(cache)
        for _ in range(steps):
            token, growing = advance(model, token, growing)
        for recorder in recorders:
            recorder.remove()
        prefill, _, *decode = calls
        empty = DynamicCache(config=model.config)

        @torch.inference_mode()
        def run(recorded: list[tuple[torch.Tensor, list[dict[str, Any]]]], past_key_values: Cache) -> torch.Tensor:
            for inputs, arguments in recorded:
                hidden = inputs
                for layer, kwargs in zip(layers, arguments, strict=True):
                    hidden = layer(hidden, **{**kwargs, "past_key_values": past_key_values})
            return hidden

        return cls(lambda: run([prefill], fork(empty)), lambda: run(decode, fork(cache)), steps)

    @classmethod
    def of_heads(cls, heads: Sequence[nn.Module], hidden: torch.Tensor, steps: int) -> Passes:
        """Prepare copies of an LM head with the greedy choice; a pass runs every copy once.

        Args:
            heads: the copies; together larger than the processor's caches.
            hidden: last hidden states of the prompt, ``(batch, prefill, hidden)``.
            steps: number of decode steps.
        """

        @torch.inference_mode()
        def run(states: torch.Tensor) -> torch.Tensor:
            return torch.stack([head(states[:, -1:])[:, -1].argmax(dim=-1) for head in heads])

        def decode() -> torch.Tensor:
            last = hidden[:, -1:].contiguous()
            return torch.stack([run(last) for _ in range(steps)])

        return cls(lambda: run(hidden), decode, steps)


def mean_length_passes(
    prepare: Callable[[PreTrainedModel, torch.Tensor, torch.Tensor, int], Passes],
    model: PreTrainedModel,
    scenario: Scenario,
    batch: int,
) -> Passes:
    """Prepare a scenario's prefill, and a few decode steps at the mean length of its cache."""
    before, steps = decode_window(scenario)
    return prepare(model, random_ids(model, batch, scenario.prefill), random_ids(model, batch, before), steps)


def time_passes(
    passes: Mapping[str, Passes], repeats: int, device: str, warmup: int = 2
) -> dict[str, dict[str, list[float]]]:
    """Time models round-robin; return samples by phase and name, in seconds per prefill and per decode step."""
    samples = {}
    with fastest_kernels():
        for phase in ("prefill", "decode"):
            functions = {name: getattr(p, phase) for name, p in passes.items()}
            samples[phase] = interleaved(functions, repeats, warmup, synchronize(device))
    for name, p in passes.items():
        samples["decode"][name] = [seconds / p.steps for seconds in samples["decode"][name]]
    return samples
