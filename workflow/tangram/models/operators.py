"""Linear operators with fewer weights than a dense matrix, in plain torch: their base class, and low rank.

This file is copied into every child checkpoint that has the model's code, so it imports nothing but torch. Other
packages register operators as `tangram.operators`; their files are copied into the children that need them.

An operator is trained in its structured form. For inference, it runs in the mathematically equal form that is the
fastest for the number of tokens by a measured table (`MEASURED`): block by block, as two thin matrices, or as one dense
matrix.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional

Tensors: TypeAlias = tuple[torch.Tensor, ...]

# Cost model of a form: seconds = calls * call + tokens * MACs / rate, by device, family of kernels and tokens (the
# nearest row applies). Rows hold tokens, seconds per call and multiply-adds per second: medians on two idle cores of an
# AMD EPYC in float32, n = 576 to 14,336. tests/studies/benchmarks/bench_butterfly.py --table measures them again and
# prints the distance of the chosen forms from the best ones. A device without rows uses dense kernels only.
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
        bias: ``(out_features,)`` or None.
    """

    kernels: dict[str, str] = {"dense": "dense", "pair": "dense"}  # noqa: RUF012 - read only
    trained = "pair"  # the form that training computes with

    def __init__(self, in_features: int, out_features: int, bias: bool):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self._cache: dict[str, tuple[Any, Tensors]] = {}  # by form: the state of the weights, and its tensors

    def matrix(self) -> torch.Tensor:
        """Return the dense matrix, ``(out_features, in_features)``."""
        raise NotImplementedError

    def tensors(self, form: str) -> Tensors:
        """Return the factors of a form."""
        raise NotImplementedError

    def compute(self, form: str, x: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        """Map ``(tokens, in_features)`` to ``(tokens, out_features)`` in one form, without the bias."""
        return (_dense if form == "dense" else pair)(x, *tensors)

    def calls(self, form: str) -> int:
        """Return the number of kernels that a form launches."""
        return 1 if form == "dense" else 2

    def macs(self, form: str | None = None) -> int:
        """Return the multiply-adds per token of a form, without the bias; by default of the trained form."""
        raise NotImplementedError

    def bytes(self, form: str | None = None) -> int:
        """Return the bytes that a form reads, without the bias: all weights (trained form) or the form's tensors."""
        if form is None or form == self.trained:
            weights = [t for name, t in self.state_dict().items() if name != "bias"]
        else:
            with torch.no_grad():
                weights = list(self.tensors(form))
        return sum(tensor.numel() * tensor.element_size() for tensor in weights)

    def stored_weights(self) -> int:
        """Return the number of stored weights, without the bias."""
        return sum(t.numel() for name, t in self.state_dict().items() if name != "bias")

    def effective_weights(self) -> int:
        """Return the number of stored weights that can change the matrix."""
        return self.stored_weights()

    def seconds(self, form: str, tokens: int, device: str) -> float:
        """Return a form's predicted seconds for so many tokens, from the measured table."""
        rows = MEASURED[device][self.kernels[form]]
        _, call, rate = min(rows, key=lambda row: abs(math.log(row[0] / max(tokens, 1))))
        return self.calls(form) * call + tokens * self.macs(form) / rate

    def lower(self, tokens: int, device: str) -> str:
        """Return the predicted fastest form for so many tokens on a device (``'cpu'``, ``'cuda'``)."""
        if device in MEASURED:
            return min(self.kernels, key=lambda form: self.seconds(form, tokens, device))
        return min((form for form, kernel in self.kernels.items() if kernel == "dense"), key=self.macs)

    def _frozen(self, form: str) -> Tensors:
        """Return a form's tensors from a cache, which a change of the weights invalidates.

        Fused optimizers do not raise a tensor's version, so nothing is cached while parameters have gradients.
        """
        if any(weight.grad is not None for weight in self.parameters()):
            self._cache.clear()
            return self.tensors(form)
        weights = [*self.parameters(), *self.buffers()]
        state = [(weight.data_ptr(), weight.device, weight.dtype, _version(weight)) for weight in weights]
        if form not in self._cache or self._cache[form][0] != state:
            self._cache[form] = state, tuple(tensor.contiguous() for tensor in self.tensors(form))
        return self._cache[form][1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(..., in_features)`` to ``(..., out_features)``."""
        flat = x.reshape(-1, self.in_features)
        if torch.is_grad_enabled():
            self._cache.clear()  # the weights are about to change
            y = self.compute(self.trained, flat, *self.tensors(self.trained))
        else:
            form = self.lower(len(flat), x.device.type)
            y = self.compute(form, flat, *self._frozen(form))
        y = y.reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def factors(self) -> "Factors":
        """Return the operator as linear layers that share its tensors.

        Raises:
            NotImplementedError: its factors are no dense matrices.
        """
        raise NotImplementedError(f"{type(self).__name__} is no product of dense matrices")

    def extra_repr(self) -> str:
        """Describe the shape."""
        return f"{self.in_features} -> {self.out_features}, {self.stored_weights()} weights"


class Factors(nn.Sequential):
    """``y = U V x + b`` as two linear layers, `down` and `up`, each of which may have a precision."""

    def __init__(self, down: nn.Linear, up: nn.Linear):
        super().__init__(OrderedDict(down=down, up=up))
        self.in_features, self.out_features = down.in_features, up.out_features


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


class LowRankLinear(StructuredLinear):
    """``y = U V x`` with V ``(rank, in_features)`` and U ``(out_features, rank)``: the baseline of other operators."""

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

    def factors(self) -> Factors:
        """Return V and U as linear layers; U has the bias."""
        down = nn.Linear(self.in_features, self.rank, bias=False)
        up = nn.Linear(self.rank, self.out_features, self.bias is not None)
        down.weight, up.weight = nn.Parameter(self.down.detach()), nn.Parameter(self.up.detach())
        if self.bias is not None:
            up.bias = self.bias
        return Factors(down, up)


# Builds an operator of one family of variants from columns, rows, the number in the variant's name (0 without) and
# whether there is a bias; returns None if a matrix of this size has no such operator.
Factory: TypeAlias = Callable[[int, int, int, bool], StructuredLinear | None]


def low_rank(in_features: int, out_features: int, rank: int, bias: bool) -> StructuredLinear | None:
    """Return the operator of `lowrank-R`, or None if R exceeds the matrix's largest possible rank."""
    return LowRankLinear(in_features, out_features, rank, bias) if rank <= min(in_features, out_features) else None


OPERATORS: dict[str, Factory] = {"lowrank": low_rank}


def family_of(entry: str) -> str:
    """Return the family of a variant or of a config's entry: ``lowrank`` for ``lowrank-64`` and ``mlp=lowrank-64``."""
    return entry.rpartition("=")[2].partition("-")[0]


def factory_of(entry: str) -> Factory:
    """Return the factory of a variant's or a config entry's operators, from this file or from an installed package.

    Raises:
        ValueError: no installed package registers the family.
    """
    family = family_of(entry)
    if family not in OPERATORS:
        OPERATORS.update({entry.name: entry.load() for entry in entry_points(group="tangram.operators", name=family)})
    if family not in OPERATORS:
        raise ValueError(f"no installed package registers the operators of '{entry}'")
    return OPERATORS[family]


def structured_linear(variant: str, in_features: int, out_features: int, bias: bool) -> StructuredLinear | None:
    """Return the operator with which a variant replaces a matrix, or None if it has no fewer weights than the matrix.

    Args:
        variant: such as ``lowrank-64``.
        in_features: columns of the matrix.
        out_features: rows of the matrix.
        bias: whether the layer has a bias.

    Raises:
        ValueError: no installed package registers the variant's operators.
    """
    size = variant.partition("-")[2]
    operator = factory_of(variant)(in_features, out_features, int(size or 0), bias)
    return operator if operator is not None and operator.stored_weights() < in_features * out_features else None


def replace_projections(subblock: nn.Module, variant: str) -> nn.Module:
    """Replace a subblock's matrices by a variant's operators, in place, wherever the operator has fewer weights."""
    for name, linear in list(subblock.named_children()):
        if isinstance(linear, nn.Linear):
            operator = structured_linear(variant, linear.in_features, linear.out_features, linear.bias is not None)
            if operator is not None:
                setattr(subblock, name, operator)
    return subblock


def separate_factors(subblock: nn.Module) -> None:
    """Replace a subblock's operators by their factors, in place, so that each can have a precision.

    Raises:
        NotImplementedError: an operator's factors are no dense matrices.
    """
    for name, operator in list(subblock.named_children()):
        if isinstance(operator, StructuredLinear):
            setattr(subblock, name, operator.factors())
