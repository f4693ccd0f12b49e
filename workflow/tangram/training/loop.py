"""The training loop: AdamW, schedule, gradient accumulation and clipping, checkpoints with exact resume, metrics."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from tangram.errors import TangramError
from tangram.files import check_tensors, write_tensors, write_text
from tangram.training.parallel import World

BatchLoss = Callable[[torch.Tensor], tuple[torch.Tensor, dict[str, float]]]


@dataclass(frozen=True)
class TrainingPlan:
    """Length, batch sizes and learning rate of a training.

    Attributes:
        examples: number of sequences.
        epochs: passes over the sequences, each in another order.
        batch_size: sequences per optimizer step.
        micro_batch_size: sequences per forward pass.
        learning_rate: peak; linear warm-up, then cosine decay to a tenth.
        warmup_fraction: share of the steps in the warm-up.
        weight_decay: AdamW's weight decay.
        clip_norm: largest norm of the gradient.
        seed: seed of the order of the sequences.
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
        """Optimizer steps per epoch."""
        return math.ceil(self.examples / self.batch_size)

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return self.epochs * self.steps_per_epoch

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, then cosine decay to a tenth of the peak."""
        warmup = max(1, round(self.warmup_fraction * self.steps))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        progress = (step - warmup) / max(1, self.steps - warmup)
        return self.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))

    def batch(self, step: int) -> torch.Tensor:
        """Return the indices of a step's sequences; they depend on seed and step alone, so a resumed run agrees."""
        epoch, position = divmod(step, self.steps_per_epoch)
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


def train(
    module: nn.Module,
    batch_loss: BatchLoss,
    plan: TrainingPlan,
    label: str | None = None,
    checkpointing: Checkpointing | None = None,
    world: World = World(),  # noqa: B008 (frozen)
) -> list[dict[str, Any]]:
    """Train the parameters of ``module`` that require gradients, in place.

    Args:
        module: the module to train.
        batch_loss: maps the indices of sequences to their mean loss and metrics.
        plan: length, batch sizes and learning rate.
        label: label of a progress bar; without it, there is no bar.
        checkpointing: where states are saved; training resumes from the latest state, bit for bit.
        world: the processes of this training; with several, ``batch_loss`` is the module from `World.distribute`.

    Returns:
        One row per step and metric: step, metric, value.

    Raises:
        TangramError: the loss is not finite.
        ValueError: a parameter is of low precision, which would round most updates to zero; see `World.distribute`.
    """
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if low := [name for name, p in parameters.items() if p.dtype.itemsize < 4]:
        raise ValueError(f"{low[0]} is {parameters[low[0]].dtype}; train it as float32")
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=plan.learning_rate, betas=(0.9, 0.95), weight_decay=plan.weight_decay, fused=True
    )
    first, rows = 0, list[dict[str, Any]]()
    if checkpointing:
        first, rows = _restore(parameters, optimizer, checkpointing, world)
        if first and world.rank == 0:
            print(f"{label or 'training'}: resuming from step {first} of {plan.steps}", file=sys.stderr)
    saved = time.monotonic()
    steps = tqdm(
        range(first, plan.steps),
        desc=label,
        disable=label is None or world.rank > 0,
        mininterval=5,
        initial=first,
        total=plan.steps,
    )
    device = next(iter(parameters.values())).device
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(step)
        optimizer.zero_grad(set_to_none=True)
        means = _accumulate(batch_loss, plan.batch(step).split(plan.micro_batch_size), world, device)
        if not math.isfinite(means["loss"]):
            where = f"{label or 'training'}: the loss is {means['loss']} at step {step}"
            raise TangramError(f"{where}; lower learning_rate")
        nn.utils.clip_grad_norm_(parameters.values(), plan.clip_norm)
        optimizer.step()
        rows += [{"step": step, "metric": name, "value": value} for name, value in means.items()]
        steps.set_postfix({name: f"{value:.4f}" for name, value in means.items()}, refresh=False)
        last = step + 1 == plan.steps
        if checkpointing and not last and world.broadcast(time.monotonic() - saved > checkpointing.seconds):
            _save(parameters, optimizer, rows, step + 1, checkpointing, world)
            saved = time.monotonic()
    return rows


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
    next_step: int,
    checkpointing: Checkpointing,
    world: World,
) -> None:
    """Write a state, then its step into `latest`; after a kill in between, `latest` names the previous state."""
    tensors = {}
    states = optimizer.state_dict()["state"]  # by position; a parameter without gradients has no state
    for index, (name, parameter) in enumerate(parameters.items()):
        tensors[f"parameter.{name}"] = _local(parameter).contiguous()
        for key, value in states.get(index, {}).items():
            tensors[f"{key}.{name}"] = _local(value).contiguous()
    if world.rank == 0 or world.sharded:
        metadata = {"identity": checkpointing.identity, "rows": json.dumps(rows)}
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
) -> tuple[int, list[dict[str, Any]]]:
    """Load the latest state and return its step and rows; 0 and no rows without a state of an equal identity."""
    from safetensors import SafetensorError, safe_open

    latest = checkpointing.path / "latest"
    if not latest.exists():
        return 0, []
    path = _file(step := latest.read_text(), checkpointing, world)
    if not path.exists():  # another number of processes wrote the shards
        return 0, []
    check_tensors(path)
    try:
        with safe_open(path, framework="pt") as state:
            metadata = state.metadata()
            if metadata["identity"] != checkpointing.identity:
                return 0, []
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
    return int(step), json.loads(metadata["rows"])
