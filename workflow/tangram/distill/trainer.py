"""The one training loop: AdamW, schedule, accumulation, clipping, checkpoints with exact resume, metrics."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from tangram.errors import TangramError
from tangram.files import write_tensors

BatchLoss = Callable[[torch.Tensor], tuple[torch.Tensor, dict[str, float]]]


@dataclass(frozen=True)
class TrainingPlan:
    """How long and how fast to train.

    Attributes:
        examples: number of sequences.
        epochs: passes over them, each in its own order.
        batch_size: sequences per optimiser step.
        micro_batch_size: sequences per forward pass.
        learning_rate: peak; linear warm-up, then cosine to a tenth.
        warmup_fraction: share of the steps that warm up.
        weight_decay: AdamW's.
        clip_norm: gradient norm limit.
        seed: of the order of the sequences.
    """

    examples: int
    epochs: int
    batch_size: int
    micro_batch_size: int
    learning_rate: float
    warmup_fraction: float
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    seed: int = 0

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one pass."""
        return math.ceil(self.examples / self.batch_size)

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return self.epochs * self.steps_per_epoch

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, then cosine decay to a tenth of the peak."""
        warmup = max(1, round(self.warmup_fraction * self.steps))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        progress = (step - warmup) / max(1, self.steps - warmup)
        return self.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))

    def batch(self, step: int) -> torch.Tensor:
        """Return the indices of a step's sequences: a function of seed and step alone, so a resumed run agrees."""
        epoch, position = divmod(step, self.steps_per_epoch)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.examples, generator=generator)
        return order[position * self.batch_size : (position + 1) * self.batch_size]


@dataclass(frozen=True)
class Checkpointing:
    """Where and how often a long training leaves a state to resume from.

    Attributes:
        path: the state's file, outside the rule's declared outputs.
        seconds: time between two states.
        identity: what the training is a function of; a state of another identity is not resumed.
    """

    path: Path
    seconds: float
    identity: str


def train(
    module: nn.Module,
    batch_loss: BatchLoss,
    plan: TrainingPlan,
    label: str | None = None,
    checkpointing: Checkpointing | None = None,
) -> list[dict[str, Any]]:
    """Train the parameters of ``module`` that require gradients, in place.

    Args:
        module: what is trained.
        batch_loss: maps the indices of sequences to their mean loss and metrics.
        plan: length, batches and learning rate.
        label: shown on a progress bar; none without it.
        checkpointing: where states go; a run that finds one continues from it, bit for bit.

    Returns:
        One row per step and metric: step, tokens (filled by the caller), metric, value.

    Raises:
        TangramError: the loss is not finite.
    """
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(
        parameters.values(), lr=plan.learning_rate, betas=(0.9, 0.95), weight_decay=plan.weight_decay, fused=True
    )
    first, rows = 0, list[dict[str, Any]]()
    if checkpointing and checkpointing.path.exists():
        first, rows = _restore(parameters, optimiser, checkpointing)
    saved = time.monotonic()
    steps = tqdm(
        range(first, plan.steps), desc=label, disable=label is None, mininterval=5, initial=first, total=plan.steps
    )
    for step in steps:
        for group in optimiser.param_groups:
            group["lr"] = plan.rate(step)
        optimiser.zero_grad(set_to_none=True)
        batch = plan.batch(step)
        sums: dict[str, float] = {}
        for part in batch.split(plan.micro_batch_size):
            loss, metrics = batch_loss(part)
            share = len(part) / len(batch)
            (loss * share).backward()
            for name, value in {"loss": loss.item(), **metrics}.items():
                sums[name] = sums.get(name, 0.0) + value * share
        if not math.isfinite(sums["loss"]):
            raise TangramError(f"{label or 'training'}: the loss is {sums['loss']} at step {step}; lower learning_rate")
        nn.utils.clip_grad_norm_(parameters.values(), plan.clip_norm)
        optimiser.step()
        rows += [{"step": step, "metric": name, "value": value} for name, value in sums.items()]
        steps.set_postfix({name: f"{value:.4f}" for name, value in sums.items()}, refresh=False)
        if checkpointing and step + 1 < plan.steps and time.monotonic() - saved > checkpointing.seconds:
            _save(parameters, optimiser, rows, step + 1, checkpointing)
            saved = time.monotonic()
    return rows


def _save(
    parameters: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    rows: list[dict[str, Any]],
    next_step: int,
    checkpointing: Checkpointing,
) -> None:
    tensors = {}
    for name, parameter in parameters.items():
        state = optimiser.state[parameter]
        tensors[f"parameter.{name}"] = parameter.detach()
        for key in ("step", "exp_avg", "exp_avg_sq"):
            tensors[f"{key}.{name}"] = state[key]
    metadata = {"identity": checkpointing.identity, "next_step": str(next_step), "rows": json.dumps(rows)}
    write_tensors(checkpointing.path, tensors, metadata)


def _restore(
    parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer, checkpointing: Checkpointing
) -> tuple[int, list[dict[str, Any]]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(checkpointing.path, framework="pt") as state:
            metadata = state.metadata()
            if metadata["identity"] != checkpointing.identity:
                return 0, []
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(state.get_tensor(f"parameter.{name}"))
                    optimiser.state[parameter] = {
                        key: state.get_tensor(f"{key}.{name}").to(parameter.device if key != "step" else "cpu")
                        for key in ("step", "exp_avg", "exp_avg_sq")
                    }
    except (SafetensorError, KeyError) as error:
        raise TangramError(
            f"{checkpointing.path} is damaged ({error}); delete it to train from the beginning"
        ) from error
    return int(metadata["next_step"]), json.loads(metadata["rows"])
