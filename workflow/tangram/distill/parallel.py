"""Several processes, one training: DDP where the model fits one device, FSDP2 where it does not.

A command that is to run in several processes replaces itself by `torchrun`, under `srun` when they are on several
nodes. Every process takes its share of each step's sequences, so the loss curve is that of one process at the same
global batch.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import distributed, nn
from torch.distributed.tensor import DTensor

from tangram.checkpoint import load_by_layer, load_model, skeleton
from tangram.errors import TangramError
from tangram.families import decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Strategy = Literal["ddp", "fsdp"]
_WORKER = "TORCHELASTIC_RUN_ID"  # torchrun sets it for every process that it starts


def launch(nodes: int, processes_per_node: int) -> None:
    """Replace this process by `torchrun` of the same command; return at once in a worker, or where one is enough.

    On several nodes, `srun` starts one `torchrun` on each; the first node's address is the meeting point.

    Raises:
        TangramError: several nodes were asked for outside a SLURM job.
    """
    if nodes * processes_per_node == 1 or _WORKER in os.environ:
        return
    job = os.environ.get("SLURM_JOB_ID")
    if nodes > 1 and job is None:
        raise TangramError("finetune.parallel.nodes is more than 1, which needs a SLURM job: use --profile slurm")
    module = sys.modules["__main__"].__spec__
    assert module is not None, "commands run as `python -m`"
    run = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes_per_node}"]
    command = ["-m", module.name, *sys.argv[1:]]
    sys.stdout.flush()
    sys.stderr.flush()
    if nodes == 1 or job is None:
        os.execv(run[0], [*run, "--standalone", *command])
    # srun tells its tasks where it was called, which is on the job's first node.
    meet = f'--rdzv-endpoint="$SLURM_LAUNCH_NODE_IPADDR:{20_000 + int(job) % 20_000}"'
    run += [f"--nnodes={nodes}", "--rdzv-backend=c10d", f"--rdzv-id={job}"]
    line = f"exec {shlex.join(run)} {meet} {shlex.join(command)}"
    os.execvp("srun", ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "sh", "-c", line])


@dataclass(frozen=True)
class World:
    """The processes of one training, seen from one of them; by default there is only this one.

    Attributes:
        rank: this process.
        size: how many there are.
        strategy: how they share the work.
        device: of this process.
    """

    rank: int = 0
    size: int = 1
    strategy: Strategy = "ddp"
    device: str = "cpu"

    @property
    def sharded(self) -> bool:
        """Whether every process holds only its part of the parameters."""
        return self.size > 1 and self.strategy == "fsdp"

    def share(self, parts: tuple[torch.Tensor, ...]) -> list[tuple[torch.Tensor, float]]:
        """Return this process's micro-batches of a step, each with its weight in the step's mean loss.

        All processes get equally many, as each must take part in every exchange; surplus ones weigh nothing.
        """
        sequences = sum(len(part) for part in parts)
        own = [(part, len(part) / sequences) for part in parts[self.rank :: self.size]]
        return own + [(parts[0], 0.0)] * (-(-len(parts) // self.size) - len(own))

    def distribute(self, module: nn.Module, layers: Iterable[nn.Module], all_used: bool = True) -> nn.Module:
        """Return a module whose gradients all processes average.

        Args:
            module: its forward pass returns the loss.
            layers: those of its submodules that are gathered one by one when parameters are sharded.
            all_used: whether every parameter takes part in the loss.
        """
        if self.size == 1:
            return module
        if self.strategy == "ddp":
            return nn.parallel.DistributedDataParallel(module, find_unused_parameters=not all_used)
        self.shard(layers)
        self.shard([module])
        return module

    def shard(self, modules: Iterable[nn.Module]) -> None:
        """Leave every process a part of each module's parameters; they are gathered while it runs. See `sharded`."""
        if not self.sharded:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        for module in modules:
            fully_shard(module, mesh=init_device_mesh(self.device.split(":")[0], (self.size,)))

    def load(self, model: PreTrainedModel, folder: str | Path) -> None:
        """Read this process's parts of a sharded model that has no weights yet (`checkpoint.skeleton`).

        Raises:
            TangramError: the checkpoint lacks a tensor.
        """
        from safetensors import safe_open

        model.to_empty(device=self.device)
        if not isinstance(model.get_input_embeddings().weight, DTensor):
            model.tie_weights()
        model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config).to(self.device)
        path = Path(folder) / "model.safetensors"
        with safe_open(path, framework="pt") as stored, torch.no_grad():
            there = set(stored.keys())
            for name, parameter in model.named_parameters():  # tied ones once
                if name not in there:
                    raise TangramError(f"{path} lacks '{name}'; replace the checkpoint")
                if not isinstance(parameter, DTensor):
                    parameter.copy_(stored.get_tensor(name))
                    continue
                rows = -(-parameter.shape[0] // self.size)  # as FSDP2 cuts them
                own = parameter.to_local()
                if len(own):
                    own.copy_(stored.get_slice(name)[rows * self.rank : rows * (self.rank + 1)])

    def teacher(self, folder: str, dtype: str, runs: bool) -> PreTrainedModel:
        """Return the frozen parent.

        Args:
            folder: its checkpoint.
            dtype: name of a torch type.
            runs: whether its layers run (states are streamed), or only its final norm and LM head.
        """
        if not self.sharded:
            return load_model(folder, dtype, self.device)
        if not runs:
            return load_by_layer(folder, dtype, self.device)
        model = skeleton(folder, dtype).requires_grad_(False)
        self.shard(decoder_layers(model))
        self.load(model, folder)
        return model

    def exchange(self, module: object, now: bool) -> contextlib.AbstractContextManager[None]:
        """Return a context for a micro-batch's backward pass: gradients are exchanged in it only if ``now``."""
        if isinstance(module, nn.parallel.DistributedDataParallel) and not now:
            return module.no_sync()
        return contextlib.nullcontext()

    def sum(self, values: Mapping[str, float], device: torch.device) -> dict[str, float]:
        """Add up every value over the processes."""
        if self.size == 1:
            return dict(values)
        total = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
        distributed.all_reduce(total)
        return dict(zip(values, total.tolist(), strict=True))

    def agree(self, value: bool) -> bool:
        """Return the first process's value in all of them: clocks differ."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            distributed.barrier()

    def gather(self, module: nn.Module) -> dict[str, torch.Tensor]:
        """Return a module's whole state on the CPU in the first process; empty in the others when it is sharded."""
        if not self.sharded:
            return dict(module.state_dict())
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state: dict[str, torch.Tensor] = get_model_state_dict(module, options=options)  # type: ignore[assignment]
        return state


@contextlib.contextmanager
def join(device: str, strategy: Strategy) -> Iterator[World]:
    """Meet the other processes of this training, and part with them at the end."""
    if _WORKER not in os.environ:
        yield World(device=device)
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield World(distributed.get_rank(), distributed.get_world_size(), strategy, device)
    finally:
        distributed.destroy_process_group()
