"""Training of embeddings with the pipeline's training loop."""

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
    """Train ``module`` in place; see `tangram.training.loop.train` for the schedule, the rows and the errors.

    Args:
        module: the module to train; it is in training mode meanwhile, and in evaluation mode afterwards.
        step_loss: maps a step's indices and a generator to its loss and metrics. All steps' indices together are a
            permutation of ``0 .. steps * batch_size - 1``; ``index % len(dataset)`` visits examples equally often.
        steps: optimizer steps.
        batch_size: indices per step.
        learning_rate: peak learning rate.
        seed: seed of the permutation and of the generator.
        weight_decay: weight decay of AdamW.

    Raises:
        TangramError: the loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    plan = TrainingPlan(
        examples=steps * batch_size,
        steps=steps,
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
        images: images on the module's device.
        batch_size: images per forward pass.
    """
    owner = getattr(module, "__self__", module)
    assert isinstance(owner, nn.Module)
    was_training = owner.training
    owner.eval()
    embeddings = torch.cat([module(part).float().cpu() for part in images.split(batch_size)])
    owner.train(was_training)
    return embeddings
