"""Blocks that keep a subblock's form, and put an operator of fewer weights in place of each of its matrices.

The operators themselves are in `models/operators.py`, which travels with every child that needs it.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from tangram.blocks.base import CONFIG_NAME, KINDS, Block, Kind
from tangram.errors import TangramError

if TYPE_CHECKING:
    import torch

    from tangram.blocks.calibration import Calibration


def projection_inputs(parent: Any, kind: str, calibration: Calibration) -> dict[str, torch.Tensor]:
    """Return what each of a subblock's matrices reads on the calibration tokens, ``(tokens, features)``, by name.

    What `o_proj` reads is recovered from the outputs: exactly where the matrix is square and invertible, else the part
    of it that reaches the outputs.
    """
    import torch

    x = calibration.inputs
    if kind == "ffn":
        hidden = parent.act_fn(parent.gate_proj(x)) * parent.up_proj(x)
        return {"gate_proj": x, "up_proj": x, "down_proj": hidden}
    outputs = calibration.outputs if parent.o_proj.bias is None else calibration.outputs - parent.o_proj.bias
    # A pseudo-inverse and no least squares: on a GPU these hold for matrices of full rank only.
    attended = outputs.double() @ torch.linalg.pinv(parent.o_proj.weight.double()).t()
    return {"q_proj": x, "k_proj": x, "v_proj": x, "o_proj": attended}


class Projections(Block):
    """Every matrix of a subblock whose operator is smaller than itself; the others stay as they are."""

    kinds: ClassVar[tuple[Kind, ...]] = KINDS

    @abstractmethod
    def weights_of(self, columns: int, rows: int) -> float:
        """Return about how many weights its operator has in place of a matrix; without torch, for the config's check.

        Never more than it really has, so that what is certainly no smaller than the matrix can be refused early.
        """

    @abstractmethod
    def fit(self, operator: Any, weight: torch.Tensor, moment: torch.Tensor) -> None:
        """Set an operator's weights so that its outputs are near those of a matrix; in place.

        Args:
            operator: of this block.
            weight: the matrix, ``(rows, columns)``.
            moment: ``E[x xᵀ]`` of its inputs, ``(columns, columns)``.
        """

    def operator(self, columns: int, rows: int, bias: bool) -> Any | None:
        """Return the operator in place of a matrix; None where it would have no fewer weights."""
        from tangram.models.operators import structured_linear

        return structured_linear(str(self.variant), columns, rows, bias)

    def overrides(self) -> dict[str, Any]:
        """Return the mark that `models/modeling_tangram.py` builds the operators from.

        Raises:
            TangramError: no matrix of this parent would become smaller.
        """
        import torch

        with torch.device("meta"):
            operators = [self.operator(self.shape.hidden, inner, False) for inner in self._inner()]
        if not any(operators):
            raise TangramError(f"{self.kind} '{self.variant}'{self._no_fewer_weights()}")
        return {"structured": [f"{CONFIG_NAME[self.kind]}={self.variant}"]}

    def initialize(self, parent: Any, calibration: Calibration) -> dict[str, torch.Tensor]:
        """Fit every operator to its matrix on the calibration tokens; biases are the parent's."""
        import torch

        from tangram.blocks.calibration import second_moment

        weights = dict(parent.state_dict())
        for name, inputs in projection_inputs(parent, self.kind, calibration).items():
            dense = getattr(parent, name)
            operator = self.operator(dense.in_features, dense.out_features, dense.bias is not None)
            if operator is None:
                continue
            with torch.enable_grad():
                operator = operator.to(dense.weight.device)
                self.fit(operator, dense.weight.detach(), second_moment(inputs.detach(), calibration))
            del weights[f"{name}.weight"]
            state = {f"{name}.{part}": tensor for part, tensor in operator.state_dict().items()}
            weights = {**weights, **state, **{n: t for n, t in weights.items() if n == f"{name}.bias"}}
        return weights

    def relative_size(self) -> float:
        """Return the share of weights that are left where operators stand in."""
        hidden, inner = self.shape.hidden, self._inner()
        left = [min(self.weights_of(hidden, width), hidden * width) for width in inner]
        return sum(left) / (hidden * sum(inner))

    def too_large(self) -> str | None:
        """Refuse operators of which none is smaller than its matrix."""
        hidden = self.shape.hidden
        if any(self.weights_of(hidden, width) < hidden * width for width in self._inner()):
            return None
        return self._no_fewer_weights()

    def _inner(self) -> tuple[int, ...]:
        """Return the widths that matrices map between, besides the hidden one; each has equally many matrices."""
        shape = self.shape
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        return (queries, keys) if self.kind == "attention" else (shape.intermediate,)

    def _no_fewer_weights(self) -> str:
        inner = " and ".join(str(width) for width in sorted(set(self._inner())))
        return (
            f" has no fewer weights than the parent's matrices of {self.shape.hidden} x {inner}; "
            "choose a smaller number"
        )
