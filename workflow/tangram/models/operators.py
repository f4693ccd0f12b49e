"""Linear operators of fewer weights than a dense matrix, in plain torch: what they share, and low rank.

This file travels with every child checkpoint, beside the model's code, so it imports nothing but torch. Operators of
other packages travel beside it, with the children that need them; they are registered as `tangram.operators`.

An operator is trained in its structured form. Where no gradients are recorded it runs in whichever exactly equal form
is the fastest at that number of tokens, by a measured table (`MEASURED`): block by block, as two thin matrices, or as
one dense matrix.
"""

import math
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional

Tensors: TypeAlias = tuple[torch.Tensor, ...]

# What a form takes: seconds = calls * call + tokens * MACs / rate, by device, by family of kernels and by tokens (the
# nearest row counts). Seconds per call and multiply-adds per second, from medians on two idle cores of an AMD EPYC in
# float32, n = 576 to 14,336; tests/studies/benchmarks/bench_butterfly.py --table makes them anew, and says how far the
# picked forms are from the best ones. A device without rows is taken to like dense kernels.
MEASURED: dict[str, dict[str, list[tuple[int, float, float]]]] = {
    "cpu": {
        "dense": [(1, 5.6e-06, 8.5e09), (8, 1.0e-05, 2.6e10), (64, 1.1e-05, 6.7e10), (1024, 2.6e-05, 8.9e10)],
        "feature": [(1, 1.2e-05, 3.8e09), (8, 1.5e-05, 1.2e10), (64, 1.6e-05, 6.6e10), (1024, 1.2e-06, 5.8e10)],
        "token": [(1, 2.8e-05, 4.4e09), (8, 5.6e-05, 1.2e10), (64, 9.6e-05, 2.8e10), (1024, 5.1e-04, 3.5e10)],
    }
}


def _dense(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, weight)


def pair(x: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return ``U V x`` of ``x`` ``(tokens, in)``, V ``(rank, in)`` and U ``(out, rank)``: ``(tokens, out)``."""
    return functional.linear(functional.linear(x, down), up)


class StructuredLinear(nn.Module):
    """A linear layer whose matrix has fewer weights than entries.

    Attributes:
        in_features: columns of the matrix.
        out_features: rows of the matrix.
        bias: ``(out_features,)``, or None.
    """

    kernels: dict[str, str] = {"dense": "dense", "pair": "dense"}  # noqa: RUF012 - read only
    trained = "pair"  # the form in which gradients flow

    def __init__(self, in_features: int, out_features: int, bias: bool):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self._made: dict[str, tuple[Any, Tensors]] = {}

    def matrix(self) -> torch.Tensor:
        """Return the whole matrix, ``(out_features, in_features)``."""
        raise NotImplementedError

    def tensors(self, form: str) -> Tensors:
        """Return what a form multiplies by."""
        raise NotImplementedError

    def compute(self, form: str, x: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        """Map ``(tokens, in_features)`` to ``(tokens, out_features)`` in one form, without the bias."""
        return (_dense if form == "dense" else pair)(x, *tensors)

    def calls(self, form: str) -> int:
        """Return how many kernels a form launches."""
        return 1 if form == "dense" else 2

    def macs(self, form: str | None = None) -> int:
        """Return the multiply-adds per token of a form, by default of the one that is trained; without the bias."""
        raise NotImplementedError

    def bytes(self, form: str | None = None) -> int:
        """Return the bytes that a form reads: all weights for the trained form, else its tensors; without the bias."""
        if form is None or form == self.trained:
            weights = [t for name, t in self.state_dict().items() if name != "bias"]
        else:
            with torch.no_grad():
                weights = list(self.tensors(form))
        return sum(tensor.numel() * tensor.element_size() for tensor in weights)

    def stored_weights(self) -> int:
        """Return how many numbers a checkpoint holds, without the bias."""
        return sum(t.numel() for name, t in self.state_dict().items() if name != "bias")

    def effective_weights(self) -> int:
        """Return how many stored weights can change the matrix."""
        return self.stored_weights()

    def seconds(self, form: str, tokens: int, device: str) -> float:
        """Return what a form takes by the measured table."""
        rows = MEASURED[device][self.kernels[form]]
        _, call, rate = min(rows, key=lambda row: abs(math.log(row[0] / max(tokens, 1))))
        return self.calls(form) * call + tokens * self.macs(form) / rate

    def lower(self, tokens: int, device: str) -> str:
        """Return the fastest of the exactly equal forms for so many tokens on a device (``'cpu'``, ``'cuda'``)."""
        if device in MEASURED:
            return min(self.kernels, key=lambda form: self.seconds(form, tokens, device))
        return min((form for form, kernel in self.kernels.items() if kernel == "dense"), key=self.macs)

    def _frozen(self, form: str) -> Tensors:
        """Return a form's tensors, made once, and again after the weights have changed.

        Fused optimizers change weights without a trace, but not without gradients: then nothing is kept.
        """
        if any(weight.grad is not None for weight in self.parameters()):
            self._made.clear()
            return self.tensors(form)
        weights = [*self.parameters(), *self.buffers()]
        state = [(weight.data_ptr(), weight.device, weight.dtype, _version(weight)) for weight in weights]
        if form not in self._made or self._made[form][0] != state:
            self._made[form] = state, tuple(tensor.contiguous() for tensor in self.tensors(form))
        return self._made[form][1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(..., in_features)`` to ``(..., out_features)``."""
        flat = x.reshape(-1, self.in_features)
        if torch.is_grad_enabled():
            self._made.clear()  # the weights are about to change
            y = self.compute(self.trained, flat, *self.tensors(self.trained))
        else:
            form = self.lower(len(flat), x.device.type)
            y = self.compute(form, flat, *self._frozen(form))
        y = y.reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Describe the shape."""
        return f"{self.in_features} -> {self.out_features}, {self.stored_weights()} weights"


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


class LowRankLinear(StructuredLinear):
    """``y = U V x``, V ``(rank, in_features)`` and U ``(out_features, rank)``: the control of every other operator."""

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = False):
        super().__init__(in_features, out_features, bias)
        self.rank = rank
        self.down, self.up = nn.Parameter(torch.empty(rank, in_features)), nn.Parameter(torch.empty(out_features, rank))
        for weight in (self.down, self.up):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))

    def matrix(self) -> torch.Tensor:
        """Return ``U V``."""
        return self.up @ self.down

    def tensors(self, form: str) -> Tensors:
        """Return V and U, or their product."""
        return (self.matrix(),) if form == "dense" else (self.down, self.up)

    def macs(self, form: str | None = None) -> int:
        """Return ``rank · (in + out)``, or ``in · out`` dense."""
        if form == "dense":
            return self.in_features * self.out_features
        return self.rank * (self.in_features + self.out_features)


# By the family of a variant: from columns, rows, the number in its name (0 without) and whether there is a bias; None
# where a matrix of this size has no such operator.
Factory: TypeAlias = Callable[[int, int, int, bool], StructuredLinear | None]


def low_rank(in_features: int, out_features: int, rank: int, bias: bool) -> StructuredLinear | None:
    """Return the operator of `lowrank-R`; None for a rank that the matrix cannot have."""
    return LowRankLinear(in_features, out_features, rank, bias) if rank <= min(in_features, out_features) else None


OPERATORS: dict[str, Factory] = {"lowrank": low_rank}


def family_of(entry: str) -> str:
    """Return the family of a variant, ``lowrank`` of ``lowrank-64``, or of a config's entry ``mlp=lowrank-64``."""
    return entry.rpartition("=")[2].partition("-")[0]


def factory_of(entry: str) -> Factory:
    """Return what makes the operators of a variant or of a config's entry, from here or from an installed package.

    Raises:
        ValueError: no installed package registers any.
    """
    family = family_of(entry)
    if family not in OPERATORS:
        OPERATORS.update({entry.name: entry.load() for entry in entry_points(group="tangram.operators", name=family)})
    if family not in OPERATORS:
        raise ValueError(f"no installed package has the operators of '{entry}'")
    return OPERATORS[family]


def structured_linear(variant: str, in_features: int, out_features: int, bias: bool) -> StructuredLinear | None:
    """Return the operator that a variant puts in place of a matrix, or None where it would hold no fewer weights.

    Args:
        variant: such as ``lowrank-R``.
        in_features: columns of the matrix.
        out_features: rows of the matrix.
        bias: whether it has a bias.

    Raises:
        ValueError: no installed package has such operators.
    """
    size = variant.partition("-")[2]
    operator = factory_of(variant)(in_features, out_features, int(size or 0), bias)
    return operator if operator is not None and operator.stored_weights() < in_features * out_features else None


def replace_projections(subblock: nn.Module, variant: str) -> nn.Module:
    """Put a variant's operators in place of a subblock's matrices, wherever that makes them smaller; in place."""
    for name, linear in list(subblock.named_children()):
        if isinstance(linear, nn.Linear):
            operator = structured_linear(variant, linear.in_features, linear.out_features, linear.bias is not None)
            if operator is not None:
                setattr(subblock, name, operator)
    return subblock
