"""Perplexity, KL and agreement of a model with its parent on held-out text."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from tangram.errors import TangramError
from tangram.metrics import compare_in_chunks, standard_error_by_sequence
from tangram.models.forward import logits_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.inference_mode()
def compare_on_text(
    model: PreTrainedModel,
    parent: PreTrainedModel,
    parent_final: torch.Tensor,
    input_ids: torch.Tensor,
    batch_size: int,
    label: str,
) -> dict[str, torch.Tensor]:
    """Compare a model's next-token predictions with its parent's on whole sequences.

    Args:
        model: the model, which may be the parent itself.
        parent: the parent, of which only the final norm and the LM head run.
        parent_final: the parent's hidden states before its final norm, ``(sequences, length, hidden)``.
        input_ids: ``(sequences, length)``.
        batch_size: sequences per forward pass.
        label: label of the progress bar and of errors.

    Returns:
        The metrics of `metrics.compare`, each ``(sequences, length - 1)``: the last position has no next token.

    Raises:
        TangramError: the model's loss or its KL is not finite.
    """
    parts: dict[str, list[torch.Tensor]] = {}
    batches = list(zip(input_ids.split(batch_size), parent_final.split(batch_size), strict=True))
    for ids, parent_hidden in tqdm(batches, desc=label, mininterval=5):
        ids = ids.to(model.device)
        parent_hidden = parent.model.norm(parent_hidden[:, :-1])
        if model is parent:
            hidden = parent_hidden
        else:
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        metrics = compare_in_chunks(
            hidden.flatten(0, 1),
            parent_hidden.flatten(0, 1),
            partial(logits_of, model),
            partial(logits_of, parent),
            ids[:, 1:].flatten(),
        )
        if not (metrics["loss"].isfinite() & metrics["kl"].isfinite()).all():
            raise TangramError(f"{label}: the model's outputs are not finite; its weights are broken, rebuild it")
        for name, values in metrics.items():
            parts.setdefault(name, []).append(values.unflatten(0, (len(ids), -1)).cpu())
    return {name: torch.cat(values) for name, values in parts.items()}


def text_rows(model: str, task: str, metrics: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    """Return the rows of `tables.EVALUATION` for one model: `lm_loss`, `perplexity`, `kl` and `agreement`.

    Standard errors are over sequences; the delta method gives that of the perplexity.

    Args:
        model: name of the model.
        task: name of the text.
        metrics: result of `compare_on_text`.
    """
    loss, loss_error = standard_error_by_sequence(metrics["loss"])
    estimates = {
        "lm_loss": (loss, loss_error),
        "perplexity": (math.exp(loss), math.exp(loss) * loss_error),
        "kl": standard_error_by_sequence(metrics["kl"]),
        "agreement": standard_error_by_sequence(metrics["agreement"]),
    }
    tokens = metrics["loss"].numel()
    return [
        {"model": model, "task": task, "metric": metric, "value": value, "standard_error": error, "n": tokens}
        for metric, (value, error) in estimates.items()
    ]


def sequence_rows(model: str, task: str, metrics: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    """Return the rows of `tables.SAMPLES` for one model: `lm_loss`, `kl` and `agreement` of every sequence.

    Two models read the same sequences, so their differences are paired.

    Args:
        model: name of the model.
        task: name of the text.
        metrics: result of `compare_on_text`.
    """
    return [
        {"model": model, "task": task, "sample": sample, "metric": metric, "value": value}
        for metric, values in (("lm_loss", "loss"), ("kl", "kl"), ("agreement", "agreement"))
        for sample, value in enumerate(metrics[values].double().mean(dim=1).tolist())
    ]
