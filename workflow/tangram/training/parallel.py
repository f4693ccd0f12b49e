"""Data-parallel training in several processes: DDP for a model that fits one device, FSDP2 for a larger one.

A command replaces itself by `torchrun`, under `srun` on several nodes. The processes divide each step's sequences among
themselves, so the loss curve equals that of one process with the same global batch.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import distributed, nn
from torch.distributed.tensor import DTensor

from tangram.errors import TangramError
from tangram.models.by_layer import load_by_layer, meta_model, rebuild_buffers
from tangram.models.families import decoder_layers
from tangram.models.loading import load_model
from tangram.training.precision import Dtypes, Rounded, promote, round_back

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Strategy = Literal["ddp", "fsdp"]
T = TypeVar("T")
_WORKER = "TORCHELASTIC_RUN_ID"  # torchrun sets this variable in every process that it starts


def launch(nodes: int, processes_per_node: int) -> None:
    """Replace this process by `torchrun` of the same command; a no-op in a worker, and for one process.

    On several nodes, `srun` starts one `torchrun` per node; the rendezvous endpoint is on the first node.

    Raises:
        TangramError: ``nodes`` is more than 1 outside a SLURM job.
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
    # srun sets SLURM_LAUNCH_NODE_IPADDR to the node that calls it, the job's first one.
    endpoint = f'--rdzv-endpoint="$SLURM_LAUNCH_NODE_IPADDR:{20_000 + int(job) % 20_000}"'
    run += [f"--nnodes={nodes}", "--rdzv-backend=c10d", f"--rdzv-id={job}"]
    line = f"exec {shlex.join(run)} {endpoint} {shlex.join(command)}"
    os.execvp("srun", ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "sh", "-c", line])


@dataclass(frozen=True)
class World:
    """The processes of one training, with the verbs of torch.distributed; by default one process.

    Attributes:
        rank: rank of this process.
        size: number of processes.
        strategy: ``'ddp'`` or ``'fsdp'``.
        device: device of this process.
    """

    rank: int = 0
    size: int = 1
    strategy: Strategy = "ddp"
    device: str = "cpu"

    @property
    def sharded(self) -> bool:
        """Whether every process holds only a shard of the parameters."""
        return self.size > 1 and self.strategy == "fsdp"

    def split(self, parts: tuple[torch.Tensor, ...]) -> list[tuple[torch.Tensor, float]]:
        """Return this process's micro-batches of a step, each with its weight in the step's mean loss.

        Collective operations need equally many micro-batches in all processes, so some processes repeat one with
        weight 0.
        """
        sequences = sum(len(part) for part in parts)
        local = [(part, len(part) / sequences) for part in parts[self.rank :: self.size]]
        return local + [(parts[0], 0.0)] * (-(-len(parts) // self.size) - len(local))

    @contextlib.contextmanager
    def distribute(self, module: nn.Module, parts: Iterable[nn.Module], all_used: bool = True) -> Iterator[nn.Module]:
        """Yield the module wrapped for training: float32 weights, and gradients averaged over all processes.

        On exit, trained weights are rounded to their previous dtypes; `gather` rounds sharded ones.

        Args:
            module: a module whose forward pass returns the loss.
            parts: the submodules that FSDP gathers one by one.
            all_used: whether the loss depends on every parameter.
        """
        dtypes = promote(module)
        if self.sharded:
            self.shard([*parts, module], dtypes)
            yield module
            return
        wrapped = Rounded(module, dtypes) if dtypes else module
        if self.size > 1:
            # Bucket views save a second copy of all gradients.
            options: dict[str, Any] = {"find_unused_parameters": not all_used, "gradient_as_bucket_view": True}
            wrapped = nn.parallel.DistributedDataParallel(wrapped, **options)
        try:
            yield wrapped
        finally:
            round_back(dtypes)

    def shard(self, modules: Iterable[nn.Module], dtypes: Dtypes | None = None) -> None:
        """Shard each module's parameters by FSDP2, which gathers them while the module runs; a no-op if not `sharded`.

        Args:
            modules: submodules, each before the module that contains it.
            dtypes: the dtype to which each promoted parameter is rounded before it is gathered; gradients are averaged
                in float32.
        """
        if not self.sharded:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        mesh = init_device_mesh(self.device.split(":")[0], (self.size,))
        for module in modules:
            unsharded = [parameter for parameter in module.parameters() if not isinstance(parameter, DTensor)]
            lower = {dtypes[parameter] for parameter in unsharded if parameter in dtypes} if dtypes else set()
            assert len(lower) < 2, "one dtype per module"
            policy = MixedPrecisionPolicy(lower.pop(), torch.float32) if lower else MixedPrecisionPolicy()
            if unsharded:  # the teacher's layers run alone: as a root module, each must reshard after its forward pass
                fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)

    def load(self, model: PreTrainedModel, folder: str | Path) -> None:
        """Load this process's shards of a model without weights (`models.by_layer.meta_model`).

        Raises:
            TangramError: the checkpoint lacks a tensor.
        """
        from safetensors import safe_open

        model.to_empty(device=self.device)
        if not isinstance(model.get_input_embeddings().weight, DTensor):
            model.tie_weights()
        rebuild_buffers(model, self.device)
        path = Path(folder) / "model.safetensors"
        with safe_open(path, framework="pt") as stored, torch.no_grad():
            stored_names, persistent = set(stored.keys()), model.state_dict().keys()
            tensors: dict[str, torch.Tensor] = dict(model.named_parameters())  # tied parameters occur once
            tensors |= {name: buffer for name, buffer in model.named_buffers() if name in persistent}
            for name, tensor in tensors.items():
                if name not in stored_names:
                    raise TangramError(f"{path} lacks '{name}'; replace the checkpoint")
                if not isinstance(tensor, DTensor):
                    tensor.copy_(stored.get_tensor(name))
                    continue
                rows = -(-tensor.shape[0] // self.size)  # FSDP2's rows per shard
                local = tensor.to_local()
                if len(local):
                    local.copy_(stored.get_slice(name)[rows * self.rank : rows * (self.rank + 1)])

    def load_teacher(self, folder: str, dtype: str, runs: bool) -> PreTrainedModel:
        """Load the frozen parent.

        Args:
            folder: the parent's checkpoint.
            dtype: name of a torch type.
            runs: whether its layers run (streamed activations), or only its final norm and LM head.
        """
        if not self.sharded:
            return load_model(folder, dtype, self.device)
        if not runs:
            return load_by_layer(folder, dtype, self.device)
        model = meta_model(folder, dtype).requires_grad_(False)
        self.shard(decoder_layers(model))
        self.load(model, folder)
        return model

    def no_sync(self, module: object, enabled: bool) -> contextlib.AbstractContextManager[None]:
        """Return a context in which DDP does not synchronize gradients if ``enabled``; else a no-op context."""
        if isinstance(module, nn.parallel.DistributedDataParallel) and enabled:
            return module.no_sync()
        return contextlib.nullcontext()

    def all_reduce(self, values: Mapping[str, float], device: torch.device) -> dict[str, float]:
        """Return the sum of every value over all processes."""
        if self.size == 1:
            return dict(values)
        total = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
        distributed.all_reduce(total)
        return dict(zip(values, total.tolist(), strict=True))

    def broadcast(self, value: T) -> T:
        """Broadcast rank 0's value, so that all ranks take the same decisions from their clocks."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            distributed.barrier()

    def gather(self, module: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Return a module's full state.

        If sharded, the parameters are rounded to ``dtype``; rank 0 gets the state on the CPU, and the other ranks get
        an empty state.
        """
        if not self.sharded:
            return dict(module.state_dict())
        parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        state = {}
        for name, tensor in module.state_dict().items():
            tensor = tensor.to(dtype) if name in parameters else tensor  # before the gather: fewer bytes to send
            full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if self.rank == 0:
                state[name] = full.cpu()
        return state


@contextlib.contextmanager
def process_group(device: str, strategy: Strategy) -> Iterator[World]:
    """Initialize the process group and destroy it on exit; a no-op in a single process."""
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
