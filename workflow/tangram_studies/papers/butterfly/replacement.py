"""Gadgets in place of a net's dense layers: accuracy, convergence, and SGD against Adam."""

# ruff: noqa: RUF001 - the typographic signs are meant

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tangram.models.operators import LowRankLinear
from tangram_studies.blocks.operators import ButterflyLinear, MonarchLinear
from tangram_studies.data.fashion_mnist import Images
from tangram_studies.papers.butterfly.common import Scale, generator
from tangram_studies.plots import lines_figure
from tangram_studies.study import Claim, Interval, Study, interval

TUNING_SEED = 1000  # seed of the runs that choose learning rates, which no result uses
MARGIN = 0.005  # loss of accuracy that still counts as equal
ARMS = (
    "hidden: dense",
    "hidden: k=log n",
    "hidden: k=n/16",
    "hidden: k=n/4",
    "hidden: k=n/16, frozen J",
    "hidden: low rank n/16",
    "hidden: low rank, weights of n/16",
    "hidden: narrow dense",
    "hidden: Monarch",
    "last: k=log n",
    "last: low rank, weights of log n",
)
CNN_ARMS = ("hidden: dense", "hidden: k=n/16", "hidden: low rank, weights of n/16")
RATES = (1e-3, 4e-3)
SGD_RATES = (0.03, 0.1)
WHERE = "section 6.1, table 1"


def _accuracy(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    with torch.no_grad():
        return float((net(x).argmax(1) == y).float().mean())


@dataclass(frozen=True)
class Task:
    """A classification problem in memory."""

    train_x: torch.Tensor
    train_y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor
    hidden: int
    epochs: int
    convolutional: bool = False


def _tasks(images: Images, scale: Scale) -> dict[str, Task]:
    from sklearn.datasets import load_breast_cancer, load_digits

    random = np.random.default_rng(0)
    chosen = random.permutation(len(images.train_images))[: scale.train]
    x = [
        torch.from_numpy(a.reshape(len(a), -1) / np.float32(255))
        for a in (images.train_images[chosen], images.test_images)
    ]
    y = [torch.from_numpy(a.astype(np.int64)) for a in (images.train_labels[chosen], images.test_labels)]
    tasks = {"Fashion-MNIST": Task(x[0], y[0], x[1][: scale.test], y[1][: scale.test], scale.hidden, scale.epochs)}
    for name, data, epochs in (("digits", load_digits(), 10), ("breast cancer", load_breast_cancer(), 10)):
        order = random.permutation(len(data.data))
        features = (data.data - data.data.mean(0)) / (data.data.std(0) + 1e-6)
        inputs, labels = torch.from_numpy(features[order].astype(np.float32)), torch.from_numpy(data.target[order])
        cut = 2 * len(inputs) // 3
        tasks[name] = Task(inputs[:cut], labels[:cut], inputs[cut:], labels[cut:], 128, epochs)
    return tasks


def _gadget(n: int, m: int, k_in: int, k_out: int, seed: int, frozen: bool = False) -> ButterflyLinear:
    """Return the paper's gadget: random truncation, powers of two, Johnson-Lindenstrauss scale ``sqrt(n / k)``."""
    gadget = ButterflyLinear(n, m, k_in, k_out, bias=True, truncation="random", padding="power-of-2", seed=seed)
    with torch.no_grad():
        gadget.j1.stages[-1].mul_(math.sqrt(n / k_in))
        gadget.j2.stages[-1].mul_(math.sqrt(m / k_out))
    if frozen:
        gadget.j1.requires_grad_(False)
        gadget.j2.requires_grad_(False)
    return gadget


def _log2(n: int) -> int:
    return max(1, math.ceil(math.log2(n)))


def network(task: Task, arm: str, seed: int) -> nn.Sequential:
    """Return ``inputs -> h -> h -> classes`` with the arm's replacement of the hidden or the last matrix.

    In a convolutional task, convolutions replace the first matrix.
    """
    torch.manual_seed(seed)
    n, h, classes = task.train_x.shape[1], task.hidden, int(task.train_y.max()) + 1
    position, _, variant = arm.partition(": ")
    rows, columns = (h, h) if position == "hidden" else (h, classes)
    middle: nn.Module = nn.Linear(h, h)
    last: nn.Module = nn.Linear(h, classes)
    k_in = _log2(rows) if "log n" in variant else h // 4 if "n/4" in variant else h // 16
    k_out = min(_log2(columns) if "log n" in variant else k_in, columns)
    gadget = _gadget(rows, columns, k_in, k_out, seed, frozen="frozen" in variant)
    budget = gadget.effective_weights()
    if variant.startswith("k="):
        replacement: nn.Module = gadget
    elif variant.startswith("low rank"):
        equal = max(1, budget // (rows + columns))
        replacement = LowRankLinear(rows, columns, equal if "weights" in variant else k_in, bias=True)
    elif variant == "Monarch":
        replacement = MonarchLinear(rows, columns, bias=True)
    else:
        replacement = nn.Linear(rows, columns)
    if variant == "narrow dense":
        narrow = max(1, budget // h)
        middle, last = nn.Linear(h, narrow), nn.Linear(narrow, classes)
    elif position == "hidden":
        middle = replacement
    else:
        last = replacement
    first = _convolutions(h) if task.convolutional else nn.Linear(n, h)
    return nn.Sequential(first, nn.ReLU(), middle, nn.ReLU(), last)


def _convolutions(features: int) -> nn.Module:
    """Return a small convolutional net over flat images of 28 x 28."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, features),
    )


def train_network(task: Task, arm: str, seed: int, rate: float, optimizer: str = "adam") -> tuple[list[float], float]:
    """Train one network; return its loss at every step and its accuracy on the test set."""
    net = network(task, arm, seed)
    weights = [p for p in net.parameters() if p.requires_grad]
    adam = optimizer == "adam"
    stepper = torch.optim.Adam(weights, lr=rate) if adam else torch.optim.SGD(weights, lr=rate, momentum=0.9)
    order, losses = generator(seed), []
    batches = [b for _ in range(task.epochs) for b in torch.randperm(len(task.train_x), generator=order).split(128)]
    for step, batch in enumerate(batches):
        stepper.param_groups[0]["lr"] = rate * (0.1 + 0.45 * (1 + math.cos(math.pi * step / len(batches))))
        loss = functional.cross_entropy(net(task.train_x[batch]), task.train_y[batch])
        losses.append(loss.item())
        stepper.zero_grad()
        loss.backward()
        stepper.step()
    return losses, _accuracy(net, task.test_x, task.test_y)


def replacements(study: Study, seeds: Sequence[int], scale: Scale, images: Images) -> None:
    """Section 6.1: accuracy and convergence with a gadget in place of a dense layer, and SGD against Adam."""
    tasks = _tasks(images, scale)
    cnn = replace(tasks["Fashion-MNIST"], convolutional=True)
    rates = _train_all(study, seeds, {**tasks, "Fashion-MNIST, CNN": cnn})
    early = _first_epochs(study, seeds, tasks["Fashion-MNIST"], rates["Fashion-MNIST", "hidden: dense"])
    _claim_accuracy(study, seeds, scale, tasks)
    _claim_controls(study, seeds, tasks)
    _claim_cnn(study, seeds)
    _claim_convergence(study, seeds, tasks, early)
    study.figures.append(
        lines_figure(
            "replacements",
            "Training with a replaced hidden layer, Fashion-MNIST",
            "Training loss, averaged over twelfths of the training; learning rates tuned per arm.",
            {"": study.frame("loss curve")},
            "step",
            "training loss, nats",
            arms=[arm for arm in ARMS if arm.startswith("hidden")],
            log="y",
            height=3.6,
        )
    )


def _train_all(study: Study, seeds: Sequence[int], tasks: dict[str, Task]) -> dict[tuple[str, str], float]:
    """Train every arm on every task with the better of its rates; return the rates by task and arm."""
    chosen: dict[tuple[str, str], float] = {}
    for name, task in tasks.items():
        for arm in CNN_ARMS if task.convolutional else ARMS:
            losses_by_rate = {rate: float(np.mean(train_network(task, arm, TUNING_SEED, rate)[0])) for rate in RATES}
            chosen[name, arm] = min(losses_by_rate, key=lambda rate: losses_by_rate[rate])
            for seed in seeds:
                losses, accuracy = train_network(task, arm, seed, chosen[name, arm])
                study.record(f"accuracy, {name}", arm, seed, "test accuracy", accuracy)
                study.record(f"convergence, {name}", arm, seed, "mean loss over training", float(np.mean(losses)))
                if name == "Fashion-MNIST":
                    for step in range(0, len(losses), max(1, len(losses) // 12)):
                        part = losses[step : step + max(1, len(losses) // 12)]
                        study.record("loss curve", arm, seed, "loss", float(np.mean(part)), step)
    return chosen


def _first_epochs(study: Study, seeds: Sequence[int], task: Task, dense_rate: float) -> list[float]:
    """Return by seed the first epoch's mean loss, dense with Adam minus gadget with SGD."""
    first_epoch = -(-len(task.train_x) // 128)
    arm = "hidden: k=n/16"
    losses_by_rate = {
        r: float(np.mean(train_network(task, arm, TUNING_SEED, r, "sgd")[0][:first_epoch])) for r in SGD_RATES
    }
    sgd_rate = min(losses_by_rate, key=lambda rate: losses_by_rate[rate])
    early = []
    for seed in seeds:
        sgd = float(np.mean(train_network(task, arm, seed, sgd_rate, "sgd")[0][:first_epoch]))
        adam = float(np.mean(train_network(task, "hidden: dense", seed, dense_rate)[0][:first_epoch]))
        early.append(adam - sgd)
        study.record("first epoch", "gadget, SGD", seed, "mean loss", sgd)
        study.record("first epoch", "dense, Adam", seed, "mean loss", adam)
    return early


def _difference(
    study: Study,
    tasks: Collection[str],
    arm: str,
    baseline: str,
    metric: str = "test accuracy",
    experiment: str = "accuracy",
) -> Interval:
    """Return the interval over seeds of ``arm - baseline``, averaged over the tasks."""
    parts = []
    for task in tasks:
        rows = study.frame(f"{experiment}, {task}")
        rows = rows[rows["metric"] == metric].pivot(index="seed", columns="arm", values="value")
        parts.append((rows[arm] - rows[baseline]).sort_index().to_numpy())
    return interval(np.mean(parts, axis=0))


def _claim_accuracy(study: Study, seeds: Sequence[int], scale: Scale, tasks: Collection[str]) -> None:
    for short, arm, k in (
        ("7a last layer", "last: k=log n", "log n"),
        ("7b hidden, k=log n", "hidden: k=log n", "log n"),
        ("7c hidden, k=n/16", "hidden: k=n/16", "n/16"),
    ):
        difference = _difference(study, tasks, arm, "hidden: dense")
        study.claims.append(
            Claim.from_interval(
                difference,
                above=-MARGIN,
                claim=short,
                statement=f"a gadget with k = {k} in place of the {arm.split(': ')[0]} dense layer keeps its accuracy",
                where=WHERE,
                paper_value="better or equal",
                unit="accuracy, gadget − dense",
                seeds=len(seeds),
                note=f"mean over Fashion-MNIST ({scale.epochs} epochs), digits, breast cancer; margin 0.005"
                + ("" if arm.startswith("last") else "; the paper replaced last layers only"),
            )
        )


def _claim_controls(study: Study, seeds: Sequence[int], tasks: Collection[str]) -> None:
    for short, one, other, statement in (
        ("7d beside low rank, last", "last: k=log n", "last: low rank, weights of log n", "last layer, k = log n"),
        ("7e beside low rank, hidden", "hidden: k=n/16", "hidden: low rank, weights of n/16", "hidden, k = n/16"),
        (
            "7f learned factors",
            "hidden: k=n/16",
            "hidden: k=n/16, frozen J",
            "beside the gadget with frozen factors",
        ),
        ("7g beside narrow dense", "hidden: k=n/16", "hidden: narrow dense", "beside a narrower dense layer"),
    ):
        study.claims.append(
            Claim.from_interval(
                _difference(study, tasks, one, other),
                claim=short,
                statement=f"the butterfly itself helps, at equal weights: {statement}",
                where="a control that the paper lacks",
                unit=f"accuracy, {one.split(': ')[1]} − {other.split(': ')[1]}",
                seeds=len(seeds),
            )
        )


def _claim_cnn(study: Study, seeds: Sequence[int]) -> None:
    for short, other, above, statement in (
        ("7h small CNN", "hidden: dense", -MARGIN, "keeps the accuracy of a small CNN"),
        ("7i beside low rank, CNN", "hidden: low rank, weights of n/16", 0.0, "… and beats low rank of equal weights"),
    ):
        study.claims.append(
            Claim.from_interval(
                study.paired("accuracy, Fashion-MNIST, CNN", "test accuracy", "hidden: k=n/16", other),
                above=above,
                claim=short,
                statement=f"a gadget with k = n/16 in place of the hidden dense layer {statement}",
                where=WHERE,
                paper_value="better or equal" if above else "-",
                unit=f"accuracy, gadget − {other.split(': ')[1]}",
                seeds=len(seeds),
                note="Fashion-MNIST, two convolutions before the dense layers",
            )
        )


def _claim_convergence(study: Study, seeds: Sequence[int], tasks: Collection[str], early: list[float]) -> None:
    area = _difference(study, tasks, "hidden: dense", "hidden: k=n/16", "mean loss over training", "convergence")
    low_rank = _difference(
        study, tasks, "hidden: low rank n/16", "hidden: k=n/16", "mean loss over training", "convergence"
    )
    study.claims.append(
        Claim.from_interval(
            area,
            claim="9a convergence",
            statement="with gadgets training converges faster",
            where="section 6.1, figures 1R and 12",
            paper_value="better in almost all cases",
            unit="nats, mean loss over training, dense − gadget",
            seeds=len(seeds),
            note=f"learning rate tuned per arm; against low rank of the same k: {low_rank}",
        )
    )
    study.claims.append(
        Claim.from_interval(
            interval(early),
            claim="9b SGD against Adam",
            statement="with gadgets and SGD the first epochs go better than dense with Adam",
            where="section 6.1, PreActResNet18",
            paper_value="better",
            unit="nats, mean loss of the first epoch, dense Adam − gadget SGD",
            seeds=len(seeds),
            note="Fashion-MNIST, momentum 0.9, both rates tuned",
        )
    )
