"""Base class of blocks that replace each matrix of a subblock by an operator with fewer weights.

The operators are in `models/operators.py`, which is copied into every child that needs it.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from tangram.blocks.base import CONFIG_NAME, KINDS, Block, Kind
from tangram.errors import TangramError

if TYPE_CHECKING:
    import torch

    from tangram.blocks.calibration import Calibration
    from tangram.blocks.moments import Moments


def projection_moments(kind: str, moments: Moments) -> dict[str, torch.Tensor]:
    """Return the second moments ``E[x xᵀ]`` of the inputs of each matrix of a subblock, ``(n, n)``, by name."""
    first = ("q_proj", "k_proj", "v_proj") if kind == "attention" else ("gate_proj", "up_proj")
    last = "o_proj" if kind == "attention" else "down_proj"
    return {**dict.fromkeys(first, moments.input_moment), last: moments.inner_moment}


class Projections(Block):
    """Replaces every matrix of a subblock whose operator has fewer weights; the other matrices do not change."""

    kinds: ClassVar[tuple[Kind, ...]] = KINDS
    uses_moments: ClassVar[bool] = True
    precisions: ClassVar[tuple[str, ...]] = ()  # unless all factors are dense matrices
    formats: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def weights_of(self, columns: int, rows: int) -> float:
        """Return a lower bound on the weights of the operator that replaces a matrix; without torch.

        The config check refuses an operator whose bound is no smaller than the matrix.
        """

    @abstractmethod
    def fit(self, operator: Any, weight: torch.Tensor, moment: torch.Tensor) -> None:
        """Set an operator's weights in place so that its outputs approximate those of a matrix.

        Args:
            operator: the operator that `operator` returns.
            weight: the matrix, ``(rows, columns)``.
            moment: ``E[x xᵀ]`` of its inputs, ``(columns, columns)``.
        """

    def operator(self, columns: int, rows: int, bias: bool) -> Any | None:
        """Return the operator that replaces a matrix, or None if it has no fewer weights."""
        from tangram.models.operators import structured_linear

        return structured_linear(str(self.variant.source), columns, rows, bias)

    def overrides(self) -> dict[str, Any]:
        """Return the entry from which `models/modeling_tangram.py` builds the operators.

        Raises:
            TangramError: no operator has fewer weights than the matrix that it replaces.
        """
        import torch

        with torch.device("meta"):
            operators = [self.operator(self.shape.hidden, inner, False) for inner in self._inner_widths()]
        if not any(operators):
            raise TangramError(f"{self.kind} '{self.variant}'{self._no_fewer_weights()}")
        return {"structured": [f"{CONFIG_NAME[self.kind]}={self.variant.source}"]}

    def initialize(self, parent: Any, calibration: Calibration) -> dict[str, torch.Tensor]:
        """Fit every operator to its matrix on the calibration tokens; copy the parent's biases."""
        import torch

        from tangram.blocks.moments import damped

        weights = dict(parent.state_dict())
        for name, moment in projection_moments(self.kind, calibration.moments(parent)).items():
            dense = getattr(parent, name)
            operator = self.operator(dense.in_features, dense.out_features, dense.bias is not None)
            if operator is None:
                continue
            with torch.enable_grad():
                operator = operator.to(dense.weight.device)
                self.fit(operator, dense.weight.detach(), damped(moment, calibration.ridge))
            del weights[f"{name}.weight"]
            state = {f"{name}.{part}": tensor for part, tensor in operator.state_dict().items()}
            weights = {**weights, **state, **{n: t for n, t in weights.items() if n == f"{name}.bias"}}
        return weights

    def relative_size(self) -> float:
        """Return the share of weights that remain."""
        hidden, inner = self.shape.hidden, self._inner_widths()
        remaining = [min(self.weights_of(hidden, width), hidden * width) for width in inner]
        return sum(remaining) / (hidden * sum(inner))

    def too_large(self) -> str | None:
        """Refuse a variant of which no operator has fewer weights than its matrix."""
        hidden = self.shape.hidden
        if any(self.weights_of(hidden, width) < hidden * width for width in self._inner_widths()):
            return None
        return self._no_fewer_weights()

    def _inner_widths(self) -> tuple[int, ...]:
        """Return the widths of the matrices' other side than the hidden one; each width has equally many matrices."""
        shape = self.shape
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        return (queries, keys) if self.kind == "attention" else (shape.intermediate,)

    def _no_fewer_weights(self) -> str:
        inner = " and ".join(str(width) for width in sorted(set(self._inner_widths())))
        return (
            f" has no fewer weights than the parent's matrices of {self.shape.hidden} x {inner}; "
            "choose a smaller number"
        )
