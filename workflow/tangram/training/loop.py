"""The training loop: AdamW, schedule, gradient accumulation and clipping, checkpoints with exact resume, metrics."""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from tangram.errors import TangramError
from tangram.files import check_tensors, write_tensors, write_text
from tangram.training.parallel import World

BatchLoss = Callable[[torch.Tensor], tuple[torch.Tensor, dict[str, float]]]
Schedule = Literal["cosine", "linear", "constant"]
TIMED_STEPS, TIMED_SHARE = 4, 0.02  # the timing of a budget in seconds takes at least these steps and this share of it


def steps_of(sequences: int, examples: int, batch_size: int) -> int:
    """Return the optimizer steps that read some sequences: whole passes over all examples, then a part of one."""
    passes, rest = divmod(sequences, examples)
    return passes * math.ceil(examples / batch_size) + math.ceil(rest / batch_size)


@dataclass(frozen=True)
class TrainingPlan:
    """Length, batch sizes and learning rate of a training.

    Attributes:
        examples: number of sequences; each pass over them is in another order.
        steps: optimizer steps in all (`steps_of`).
        batch_size: sequences per optimizer step.
        micro_batch_size: sequences per forward pass.
        learning_rate: peak.
        warmup_fraction: share of the steps in the linear warm-up.
        schedule: after the warm-up, `cosine` to a tenth of the peak, `linear` to zero, or `constant`.
        weight_decay: AdamW's weight decay.
        clip_norm: largest norm of the gradient.
        seed: seed of the order of the sequences.
        seconds: if given, `train` replaces ``steps`` by the number of steps that take these seconds.
        first: steps of an earlier training, after whose sequences this one goes on in the same order.
    """

    examples: int
    steps: int
    batch_size: int
    micro_batch_size: int
    learning_rate: float
    warmup_fraction: float
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    seed: int = 0
    schedule: Schedule = "cosine"
    seconds: float | None = None
    first: int = 0

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        return math.ceil(self.examples / self.batch_size)

    def sequences(self, steps: int) -> int:
        """Return the number of sequences that the first steps read."""
        return self._read(self.first + steps) - self._read(self.first)

    def _read(self, steps: int) -> int:
        passes, rest = divmod(steps, self.steps_per_epoch)
        return passes * self.examples + min(rest * self.batch_size, self.examples)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        warmup = max(1, round(self.warmup_fraction * self.steps))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        if self.schedule == "constant":
            return self.learning_rate
        progress = (step - warmup) / max(1, self.steps - warmup)
        if self.schedule == "linear":
            return self.learning_rate * (1 - progress)
        return self.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))

    def batch(self, step: int) -> torch.Tensor:
        """Return the indices of a step's sequences; they depend on seed and step alone, so a resumed run agrees."""
        epoch, position = divmod(self.first + step, self.steps_per_epoch)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**64)  # torch's range of seeds
        order = torch.randperm(self.examples, generator=generator)
        return order[position * self.batch_size : (position + 1) * self.batch_size]


@dataclass(frozen=True)
class Checkpointing:
    """Where and how often a training saves its state.

    Attributes:
        path: the state's folder, outside the rule's declared outputs.
        seconds: time between two states.
        identity: fingerprint of all inputs of the training; only a state with an equal identity is resumed.
    """

    path: Path
    seconds: float
    identity: str


@dataclass(frozen=True)
class Validation:
    """A measurement during training, at steps that `milestones` chooses.

    Attributes:
        measure: returns a metric of the module with its present weights; it must not change them.
        metric: the metric's name.
        sequences: sequences that one measurement reads.
    """

    measure: Callable[[], float]
    metric: str
    sequences: int

    def milestones(self, plan: TrainingPlan) -> set[int]:
        """Return the steps before which to measure: a half, a quarter, ... of all, while the cost stays small.

        Between two measurements, training reads at least as many sequences as one measurement.
        """
        gap, step, chosen = math.ceil(self.sequences / plan.batch_size), plan.steps // 2, set[int]()
        while step >= max(1, gap):
            chosen.add(step)
            step //= 2
        return chosen


def train(
    module: nn.Module,
    batch_loss: BatchLoss,
    plan: TrainingPlan,
    label: str | None = None,
    checkpointing: Checkpointing | None = None,
    world: World = World(),  # noqa: B008 (frozen)
    validation: Validation | None = None,
) -> list[dict[str, Any]]:
    """Train the parameters of ``module`` that require gradients, in place.

    Args:
        module: the module to train.
        batch_loss: maps the indices of sequences to their mean loss and metrics.
        plan: length, batch sizes and learning rate.
        label: label of a progress bar; without it, there is no bar.
        checkpointing: where states are saved; training resumes from the latest state, bit for bit.
        world: the processes of this training; with several, ``batch_loss`` is the module from `World.distribute`.
        validation: a measurement before some of the steps.

    Returns:
        One row per step and metric: step, metric, value. The metrics are those before the step.

    Raises:
        TangramError: the loss is not finite.
        ValueError: a parameter is of low precision, which would round most updates to zero; see `World.distribute`.
    """
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if low := [name for name, p in parameters.items() if p.dtype.itemsize < 4]:
        raise ValueError(f"{low[0]} is {parameters[low[0]].dtype}; train it as float32")
    optimizer = _optimizer(parameters.values(), plan)
    first, rows, steps = 0, list[dict[str, Any]](), 0
    if checkpointing:
        first, rows, steps = _restore(parameters, optimizer, checkpointing, world)
    name = label or "training"
    if plan.seconds is not None:
        plan = replace(plan, steps=steps or _steps_within(plan.seconds, parameters, batch_loss, plan, world, name))
    if first and world.rank == 0:
        print(f"{name}: resuming from step {first} of {plan.steps}", file=sys.stderr)
    milestones = validation.milestones(plan) if validation else set()
    saved = time.monotonic()
    progress = tqdm(
        range(first, plan.steps),
        desc=label,
        disable=label is None or world.rank > 0,
        mininterval=5,
        initial=first,
        total=plan.steps,
    )
    for step in progress:
        optimizer.zero_grad(set_to_none=True)
        if validation and step in milestones:
            rows.append({"step": step, "metric": validation.metric, "value": validation.measure()})
        means = _step(parameters, optimizer, batch_loss, plan, step, world)
        if not math.isfinite(means["loss"]):
            raise TangramError(f"{name}: the loss is {means['loss']} at step {step}; lower learning_rate")
        rows += [{"step": step, "metric": metric, "value": value} for metric, value in means.items()]
        progress.set_postfix({metric: f"{value:.4f}" for metric, value in means.items()}, refresh=False)
        last = step + 1 == plan.steps
        if checkpointing and not last and world.broadcast(time.monotonic() - saved > checkpointing.seconds):
            _save(parameters, optimizer, rows, (step + 1, plan.steps), checkpointing, world)
            saved = time.monotonic()
    return rows


def _optimizer(parameters: Iterable[nn.Parameter], plan: TrainingPlan) -> torch.optim.Optimizer:
    """Return AdamW; every step sets its own learning rate."""
    return torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.95), weight_decay=plan.weight_decay, fused=True)


def _step(
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    batch_loss: BatchLoss,
    plan: TrainingPlan,
    step: int,
    world: World,
    rate: float | None = None,
) -> dict[str, float]:
    """Take a step with the plan's learning rate or another; return the means of loss and metrics before it.

    A step whose loss is not finite changes nothing.
    """
    for group in optimizer.param_groups:
        group["lr"] = plan.rate(step) if rate is None else rate
    device = next(iter(parameters.values())).device
    means = _accumulate(batch_loss, plan.batch(step).split(plan.micro_batch_size), world, device)
    if math.isfinite(means["loss"]):
        nn.utils.clip_grad_norm_(parameters.values(), plan.clip_norm)
        optimizer.step()
    return means


def _steps_within(
    seconds: float,
    parameters: Mapping[str, nn.Parameter],
    batch_loss: BatchLoss,
    plan: TrainingPlan,
    world: World,
    label: str,
) -> int:
    """Return how many steps fit into some seconds, less those of the timing: of steps with learning rate 0.

    They change no weight, so the training equals one whose plan has this number of steps.
    """
    optimizer, times, begin = _optimizer(parameters.values(), plan), list[float](), time.monotonic()
    while world.broadcast(len(times) < TIMED_STEPS or time.monotonic() - begin < TIMED_SHARE * seconds):
        start = time.monotonic()
        optimizer.zero_grad(set_to_none=True)
        _step(parameters, optimizer, batch_loss, plan, len(times), world, rate=0.0)
        times.append(time.monotonic() - start)
    each = statistics.median(times[1:])  # the first one allocates memory
    steps = world.broadcast(max(1, int((seconds - (time.monotonic() - begin)) / each)))
    if world.rank == 0:
        print(f"{label}: {steps} steps of {each:.3g} s fit into {seconds / 60:.3g} min", file=sys.stderr)
    return steps


def _accumulate(
    batch_loss: BatchLoss, parts: tuple[torch.Tensor, ...], world: World, device: torch.device
) -> dict[str, float]:
    """Accumulate the gradients of a step's micro-batches over all processes; return the means of loss and metrics."""
    sums: dict[str, float] = {}
    local_parts = world.split(parts)
    for index, (part, weight) in enumerate(local_parts):
        with world.no_sync(batch_loss, enabled=index + 1 < len(local_parts)):
            loss, metrics = batch_loss(part)
            (loss * (weight * world.size)).backward()  # the all-reduce averages gradients over processes
        for name, value in {"loss": loss.item(), **metrics}.items():
            sums[name] = sums.get(name, 0.0) + value * weight
    return world.all_reduce(sums, device)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's shard of a sharded tensor, or the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def _file(step: int | str, checkpointing: Checkpointing, world: World) -> Path:
    """Return the file of a state: one for all processes, or one per process if parameters are sharded."""
    part = f".{world.rank}-of-{world.size}" if world.sharded else ""
    return checkpointing.path / f"{step}{part}.safetensors"


def _save(
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    rows: list[dict[str, Any]],
    position: tuple[int, int],
    checkpointing: Checkpointing,
    world: World,
) -> None:
    """Write a state, then its step into `latest`; after a kill in between, `latest` names the previous state.

    Args:
        position: the next step, and the number of all steps.
    """
    tensors, (next_step, steps) = {}, position
    states = optimizer.state_dict()["state"]  # by position; a parameter without gradients has no state
    for index, (name, parameter) in enumerate(parameters.items()):
        tensors[f"parameter.{name}"] = _local(parameter).contiguous()
        for key, value in states.get(index, {}).items():
            tensors[f"{key}.{name}"] = _local(value).contiguous()
    if world.rank == 0 or world.sharded:
        metadata = {"identity": checkpointing.identity, "rows": json.dumps(rows), "steps": str(steps)}
        write_tensors(_file(next_step, checkpointing, world), tensors, metadata)
    world.barrier()
    if world.rank == 0:
        write_text(checkpointing.path / "latest", str(next_step))
        for path in checkpointing.path.glob("*.safetensors"):
            if path.name.split(".")[0] != str(next_step):
                path.unlink()
    world.barrier()


def _restore(
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    checkpointing: Checkpointing,
    world: World,
) -> tuple[int, list[dict[str, Any]], int]:
    """Load the latest state; return its step, its rows and the number of all steps.

    Without a state of an equal identity, these are 0, no rows and 0.
    """
    from safetensors import SafetensorError, safe_open

    latest = checkpointing.path / "latest"
    if not latest.exists():
        return 0, [], 0
    path = _file(step := latest.read_text(), checkpointing, world)
    if not path.exists():  # another number of processes wrote the shards
        return 0, [], 0
    check_tensors(path)
    try:
        with safe_open(path, framework="pt") as state:
            metadata = state.metadata()
            if metadata["identity"] != checkpointing.identity:
                return 0, [], 0
            names, states = set(state.keys()), dict[int, dict[str, torch.Tensor]]()
            with torch.no_grad():
                for index, (name, parameter) in enumerate(parameters.items()):
                    _local(parameter).copy_(state.get_tensor(f"parameter.{name}"))
                    if f"step.{name}" in names:
                        states[index] = {"step": state.get_tensor(f"step.{name}")}
                        for key in ("exp_avg", "exp_avg_sq"):
                            moment = torch.zeros_like(parameter)
                            _local(moment).copy_(state.get_tensor(f"{key}.{name}"))
                            states[index][key] = moment
            # load_state_dict moves every state to the device that the optimizer's kernels need.
            optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    except (SafetensorError, KeyError, OSError) as error:
        raise TangramError(f"{path} is damaged ({error}); delete it to train from the beginning") from error
    return int(step), json.loads(metadata["rows"]), int(metadata["steps"])
