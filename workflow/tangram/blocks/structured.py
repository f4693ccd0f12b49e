"""Structured matrices in place of a subblock's dense ones: `butterfly-K`, `monarch`, `lowrank-R`, `ntk-K`.

The operators themselves are in `child/structured.py`, which travels with every child; how they begin, in `fitting.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tangram.blocks.base import CONFIG_NAME, FITTED_TOKENS, Block
from tangram.errors import TangramError
from tangram.models.families import Shape

if TYPE_CHECKING:
    import torch

    from tangram.blocks.calibration import Calibration

LEARNING_STEPS = 40  # of a butterfly's angles, before it is trained like any other piece
NAMES = ("butterfly", "lowrank", "ntk", "monarch")


def second_moment(inputs: torch.Tensor, calibration: Calibration) -> torch.Tensor:
    """Return ``E[x xᵀ]`` with the calibration's weights, plus its ridge, ``(n, n)``, float64.

    Args:
        inputs: ``(tokens, n)``.
        calibration: weights and ridge.
    """
    import torch

    weights = (calibration.weights / calibration.weights.sum())[:, None]
    moment = torch.zeros(2 * inputs.shape[1:], dtype=torch.float64, device=inputs.device)
    for x, weight in zip(inputs.split(FITTED_TOKENS), weights.split(FITTED_TOKENS), strict=True):
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        moment += x.t() @ (x * weight.to(x))
    moment = (moment + moment.t()) / 2
    strength = max(calibration.ridge, 1e-8) * moment.diagonal().mean().clamp_min(1e-30)
    return moment + strength * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)


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


class StructuredProjections(Block):
    """Every matrix of a subblock whose operator is smaller than itself; the others stay as they are."""

    def overrides(self, shape: Shape) -> dict[str, Any]:
        """Return the mark that `child/modeling.py` builds the operators from.

        Raises:
            TangramError: no matrix of this parent would become smaller.
        """
        import torch

        from tangram.models.operators import structured_linear

        heads, kv_heads = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        inner = (heads, kv_heads) if self.kind == "attention" else (shape.intermediate,)
        with torch.device("meta"):
            operators = [structured_linear(self.variant, shape.hidden, width, False) for width in inner]
        if not any(operators):
            raise TangramError(
                f"{self.kind} '{self.variant}' has no fewer weights than the parent's matrices of "
                f"{shape.hidden} x {' and '.join(map(str, inner))}; choose a smaller number"
            )
        return {"structured": [f"{CONFIG_NAME[self.kind]}={self.variant}"]}

    def initialise(self, parent: Any, shape: Shape, calibration: Calibration) -> dict[str, torch.Tensor]:
        """Fit every operator to its matrix on the calibration tokens; biases are the parent's."""
        import torch

        from tangram.blocks.fitting import from_dense
        from tangram.models.operators import structured_linear

        weights = dict(parent.state_dict())
        for name, inputs in projection_inputs(parent, self.kind, calibration).items():
            dense = getattr(parent, name)
            operator = structured_linear(self.variant, dense.in_features, dense.out_features, dense.bias is not None)
            if operator is None:
                continue
            with torch.enable_grad():
                operator = operator.to(dense.weight.device)
                moment = second_moment(inputs.detach(), calibration)
                from_dense(operator, dense.weight.detach(), moment, LEARNING_STEPS)
            del weights[f"{name}.weight"]
            state = {f"{name}.{part}": tensor for part, tensor in operator.state_dict().items()}
            weights = {**weights, **state, **{n: t for n, t in weights.items() if n == f"{name}.bias"}}
        return weights
