"""Few-label readout: classification of texts from hidden states, a measure of the preserved representation.

Perplexity and KL measure the output distribution over tokens; the readout measures the hidden states. The mean state
over a text's tokens, standardized per dimension, is classified by the nearest labeled text, by a linear classifier, and
by the readouts that packages register as `tangram.readouts` (`tangram_studies`: a metric embedding, arXiv 1611.01449).
All models use the same texts and draws of labels, so their differences are paired.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from tangram import extensions
from tangram.blocks.base import PARENT
from tangram.config import Readout
from tangram.corpus.framing import opened, opening
from tangram.errors import TangramError
from tangram.evaluation.classifiers import draw_per_class, linear_accuracy, nearest_neighbor_accuracy
from tangram.metrics import standard_error_by_sequence
from tangram.models.families import decoder_layers
from tangram.models.forward import embed, layer_contexts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEST_SHARE = 0.4  # share of the texts in the test set; labels are drawn from the others


@dataclass(frozen=True)
class Texts:
    """Labeled texts; ``labels`` ``(texts,)`` are indices into ``classes``."""

    texts: tuple[str, ...]
    labels: torch.Tensor
    classes: tuple[str, ...]


def read_classification(archive: str | Path, name: str) -> Texts:
    """Read a BIG-bench classification task: all questions have the same choices, one of which is right.

    Raises:
        TangramError: the archive lacks the task, or its choices differ between questions.
    """
    from tangram.archives import read_members

    ((_, content),) = read_members(archive, [f"*/benchmark_tasks/{name}/task.json"])
    examples = [e for e in json.loads(content).get("examples", []) if "target_scores" in e]
    classes = sorted({choice for example in examples for choice in example["target_scores"]})
    if not examples or any(set(example["target_scores"]) != set(classes) for example in examples):
        raise TangramError(
            f"config.evaluation.readout.task: '{name}' is no classification task, its questions have different "
            "choices; name a classification task, such as 'intent_recognition'"
        )
    right = [max(example["target_scores"], key=example["target_scores"].get) for example in examples]
    return Texts(
        tuple(example["input"] for example in examples),
        torch.tensor([classes.index(choice) for choice in right]),
        tuple(classes),
    )


@torch.inference_mode()
def embed_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    depth: float,
    batch_size: int,
    label: str,
) -> torch.Tensor:
    """Return the mean hidden state of every text without its first token, ``(texts, hidden)`` float32 on the CPU.

    Args:
        model: parent or child.
        tokenizer: the model's tokenizer.
        texts: texts to embed, in batches from long to short, padded on the right, which causal attention ignores.
        depth: depth of the states as a share of the layers; 1 is the last layer's output, before the final norm.
        batch_size: texts per forward pass.
        label: label of the progress bar and of errors.

    Raises:
        TangramError: the hidden states are not finite.
    """
    layers = decoder_layers(model)[: max(1, round(depth * len(decoder_layers(model))))]
    first = opening(tokenizer)
    tokens = [torch.tensor(opened(text, tokenizer, first)) for text in texts]
    order = sorted(range(len(texts)), key=lambda i: -len(tokens[i]))
    means: dict[int, torch.Tensor] = {}
    for start in tqdm(range(0, len(order), batch_size), desc=label, mininterval=5):
        batch = order[start : start + batch_size]
        ids = torch.nn.utils.rnn.pad_sequence([tokens[i] for i in batch], batch_first=True).to(model.device)
        hidden = embed(model, ids)
        for layer, context in zip(layers, layer_contexts(model, hidden)[: len(layers)], strict=True):
            hidden = layer(hidden, **context)
        for row, i in enumerate(batch):
            length = len(tokens[i])
            means[i] = hidden[row, min(1, length - 1) : length].float().mean(0).cpu()
    embeddings = torch.stack([means[i] for i in range(len(texts))])
    if not embeddings.isfinite().all():
        raise TangramError(f"{label}: the model's hidden states are not finite; its weights are broken, rebuild it")
    return embeddings


def read_out(embeddings: torch.Tensor, labels: torch.Tensor, settings: Readout, seed: int) -> dict[str, torch.Tensor]:
    """Return accuracies by ``'{metric}, {labels} labels'``, each ``(draws,)``.

    Args:
        embeddings: ``(texts, hidden)``; this function standardizes them per dimension over all texts.
        labels: ``(texts,)``.
        settings: config section `evaluation.readout`.
        seed: seed of the train-test split and of the draws of labels.

    Raises:
        TangramError: a class has too few texts.
    """
    standard = (embeddings - embeddings.mean(0)) / embeddings.std(0).clamp_min(1e-6)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    held_out = round(TEST_SHARE * len(labels))
    test, pool = order[:held_out], order[held_out:]
    group = "tangram.readouts"
    registered = {name: extensions.load(group, name) for name in extensions.registered(group)}
    by_metric: dict[str, list[float]] = {}
    for draw in range(settings.draws):
        for count in settings.labels:
            train = pool[draw_per_class(labels[pool], count, (seed * 1_000 + draw) % 2**63)]
            data = (standard[train], labels[train], standard[test], labels[test])
            accuracies = {
                "nearest_accuracy": nearest_neighbor_accuracy(*data),
                **{name: read(*data, unlabeled=standard[pool], seed=draw) for name, read in registered.items()},
                "linear_accuracy": linear_accuracy(*data, strength=0.1),
            }
            for metric, value in accuracies.items():
                by_metric.setdefault(f"{metric}, {count} labels", []).append(value)
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in by_metric.items()}


def readout_rows(task: str, answers: Mapping[str, Mapping[str, torch.Tensor]]) -> list[dict[str, Any]]:
    """Return the rows of `tables.EVALUATION` for the readouts of some models.

    The task ``'{task}, {labels} labels'`` has each accuracy, and for every model but the parent its difference to the
    parent's, paired by draw. ``n`` is the number of draws; standard errors are over draws, for fixed texts.

    Args:
        task: name of the task.
        answers: results of `read_out`, by model.
    """
    rows = []
    for model, accuracies in answers.items():
        for name, values in accuracies.items():
            metric, _, labels = name.partition(", ")
            samples = {metric: values}
            if model != PARENT and PARENT in answers:
                samples[metric.replace("accuracy", "difference")] = values - answers[PARENT][name]
            for quantity, draws in samples.items():
                value, error = standard_error_by_sequence(draws[:, None])
                row = {"model": model, "task": f"{task}, {labels}", "metric": quantity, "value": value}
                rows.append({**row, "standard_error": error, "n": len(draws)})
    return rows
