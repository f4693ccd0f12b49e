"""Training by comparison, through the pipeline's one training loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tangram.training.loop import TrainingPlan, train

StepLoss = Callable[[torch.Tensor, torch.Generator], tuple[torch.Tensor, dict[str, float]]]


def fit(
    module: nn.Module,
    step_loss: StepLoss,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    weight_decay: float = 1e-4,
) -> list[dict[str, Any]]:
    """Train ``module`` in place for so many steps; see `distill.trainer.train` for the schedule, the rows and errors.

    Args:
        module: what is trained; it is put into training mode, and back into evaluation mode at the end.
        step_loss: maps a step's tickets and a generator to its loss and metrics. Tickets are ``batch_size`` whole
            numbers that no other step has: their remainders visit every example of a set evenly.
        steps: optimizer steps.
        batch_size: tickets per step.
        learning_rate: its peak.
        seed: of tickets and generator.
        weight_decay: AdamW's.

    Raises:
        TangramError: the loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    plan = TrainingPlan(
        examples=steps * batch_size,
        epochs=1,
        batch_size=batch_size,
        micro_batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_fraction=0.05,
        weight_decay=weight_decay,
        seed=seed,
    )
    order = torch.randperm(plan.examples, generator=generator)
    module.train()
    rows = train(module, lambda batch: step_loss(order[batch], generator), plan)
    module.eval()
    return rows


@torch.inference_mode()
def embed(module: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, batch_size: int = 500) -> torch.Tensor:
    """Return the embeddings of ``images`` ``(n, …)`` on the CPU, ``(n, d)``, always in evaluation mode.

    Args:
        module: a module, or a bound method of one, such as ``net.pooled``.
        images: on the module's device.
        batch_size: images at a time.
    """
    owner = getattr(module, "__self__", module)
    assert isinstance(owner, nn.Module)
    was_training = owner.training
    owner.eval()
    found = torch.cat([module(part).float().cpu() for part in images.split(batch_size)])
    owner.train(was_training)
    return found
