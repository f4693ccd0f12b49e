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
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import distributed, nn
from torch.distributed.tensor import DTensor

from tangram.errors import TangramError
from tangram.models.by_layer import load_by_layer, meta_model
from tangram.models.families import decoder_layers
from tangram.models.loading import load_model
from tangram.training.precision import Dtypes, Rounded, promote, round_back

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

    @contextlib.contextmanager
    def distribute(self, module: nn.Module, parts: Iterable[nn.Module], all_used: bool = True) -> Iterator[nn.Module]:
        """Yield a module for training: all processes average its gradients, and its weights are float32 meanwhile.

        Afterwards trained weights are rounded to the dtypes that they had; sharded ones only when `gather` is called.

        Args:
            module: its forward pass returns the loss.
            parts: those of its submodules that are gathered one by one when parameters are sharded.
            all_used: whether every parameter takes part in the loss.
        """
        dtypes = promote(module)
        if self.sharded:
            self.shard([*parts, module], dtypes)
            yield module
            return
        shared = Rounded(module, dtypes) if dtypes else module
        if self.size > 1:
            # One memory for gradients and what is exchanged.
            options: dict[str, Any] = {"find_unused_parameters": not all_used, "gradient_as_bucket_view": True}
            shared = nn.parallel.DistributedDataParallel(shared, **options)
        try:
            yield shared
        finally:
            round_back(dtypes)

    def shard(self, modules: Iterable[nn.Module], dtypes: Dtypes | None = None) -> None:
        """Leave every process a part of each module's parameters; they are gathered while it runs. See `sharded`.

        Args:
            modules: a submodule before the module that holds it.
            dtypes: what promoted parameters are rounded to before they are gathered; their gradients are averaged in
                float32.
        """
        if not self.sharded:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        mesh = init_device_mesh(self.device.split(":")[0], (self.size,))
        for module in modules:
            own = [parameter for parameter in module.parameters() if not isinstance(parameter, DTensor)]
            lower = {dtypes[parameter] for parameter in own if parameter in dtypes} if dtypes else set()
            assert len(lower) < 2, "one dtype per module"
            policy = MixedPrecisionPolicy(lower.pop(), torch.float32) if lower else MixedPrecisionPolicy()
            if own:  # a layer that is run by itself, as the teacher's are, would else stay whole after its first pass
                fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)

    def load(self, model: PreTrainedModel, folder: str | Path) -> None:
        """Read this process's parts of a sharded model that has no weights yet (`models.by_layer.meta_model`).

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
            there, saved = set(stored.keys()), model.state_dict().keys()
            tensors: dict[str, torch.Tensor] = dict(model.named_parameters())  # tied ones once
            tensors |= {name: buffer for name, buffer in model.named_buffers() if name in saved}
            for name, tensor in tensors.items():
                if name not in there:
                    raise TangramError(f"{path} lacks '{name}'; replace the checkpoint")
                if not isinstance(tensor, DTensor):
                    tensor.copy_(stored.get_tensor(name))
                    continue
                rows = -(-tensor.shape[0] // self.size)  # as FSDP2 cuts them
                own = tensor.to_local()
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
        model = meta_model(folder, dtype).requires_grad_(False)
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

    def gather(self, module: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Return a module's whole state, its parameters in ``dtype``; on the CPU and in the first process if sharded.

        The other processes of a sharded module get an empty state.
        """
        parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        state = {}
        for name, tensor in module.state_dict().items():
            tensor = tensor.to(dtype) if name in parameters else tensor  # before it is sent
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if not self.sharded:
                state[name] = whole
            elif self.rank == 0:
                state[name] = whole.cpu()
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
