"""Structured linear operators in plain torch: butterfly gadgets, Monarch, and low rank with a fixed random factor.

Child checkpoints that need this file contain a copy of it, so it imports only torch and `tangram.models.operators`.

Sources: the fixed butterfly structure of Ailon, Leibovitch and Nair (arXiv 2007.08864, sections 4 and 5), Monarch
matrices (Dao et al., arXiv 2204.00595), and layers factorized into a random and a trained matrix (Ailon and Shit, arXiv
2210.04807; its abstract does not say which of the two is trained, so both choices are implemented).
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from tangram.models.operators import LowRankLinear, StructuredLinear, Tensors


def primes_of(n: int) -> list[int]:
    """Return the prime factors of ``n``, from small to large."""
    factors, divisor = [], 2
    while n > 1:
        while n % divisor == 0:
            factors.append(divisor)
            n //= divisor
        divisor += 1
    return factors


def smooth(n: int) -> int:
    """Return the smallest number, at least ``n``, without prime factors above 7."""
    while max(primes_of(n), default=1) > 7:
        n += 1
    return n


def split(n: int, keep: int | None = None) -> tuple[int, int]:
    """Return the two most similar factors of ``n`` of which the first divides ``keep``."""
    divisors = [d for d in range(1, n + 1) if n % d == 0]
    fitting = [d for d in divisors if keep is None or keep % d == 0]
    first = min(fitting, key=lambda d: (abs(math.log(d * d / n)), d))
    return first, n // first


def fuse(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Return the stage that equals two consecutive ones.

    Args:
        low: ``(H, L, R, R)``: one R × R matrix per value of the higher and of the lower digits.
        high: ``(H / r, L · R, r, r)``: the stage of the next digit.

    Returns:
        ``(H / r, L, r · R, r · R)``.
    """
    _, lower, size, _ = low.shape
    higher, _, radix, _ = high.shape
    above = high.view(higher, size, lower, radix, radix)
    below = low.view(higher, radix, lower, size, size)
    return torch.einsum("halpj,hjlai->hlpaji", above, below).reshape(higher, lower, radix * size, radix * size)


def _orthonormal(radix: int) -> torch.Tensor:
    """Return the orthonormal Hadamard matrix for radix 2, the orthonormal DCT-II for others, ``(radix, radix)``."""
    if radix == 2:
        return torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2)
    places = torch.arange(radix, dtype=torch.float64)
    rows = torch.cos(math.pi / radix * (places + 0.5) * places[:, None]) * math.sqrt(2 / radix)
    rows[0] /= math.sqrt(2)
    return rows.float()


class ButterflyFactor(nn.Module):
    """A truncated butterfly network J, ``(keep, features)``: rows of a sparse product (2007.08864, section 4.1).

    The index of a feature is a number in mixed radix. Stage i mixes features that differ in digit i only, from the
    fastest digit to the slowest, with one small matrix per value of the other digits. Radices of 2 make the paper's
    network; two large ones ("free" blocks) make a Monarch matrix. It is computed as two fused stages for any radices.

    Args:
        features: columns of J.
        keep: rows of J, a random subset of the last stage's outputs; all of them by default.
        radices: sizes of the digits, from the fastest; by default the prime factors.
        free: use two large digits in place of the prime factors.
        truncation: ``'random'``, as in the paper, or ``'stratified'``: equally many rows from each of the last fused
            stage's matrices, so that no output is computed and dropped; random if ``keep`` does not allow it.
        padding: ``'smooth'``: zeros up to the next number without prime factors above 7, mostly none; ``'power-of-2'``:
            zeros up to the next power of 2, as in the paper (footnote 3).
        init: ``'fjlt'``: Hadamard (DCT for other radices) with random signs; ``'ortho'``: random orthogonal matrices;
            ``'identity'``.
        scale: norm of the initial rows: 1 makes them orthonormal, ``sqrt(features / keep)`` makes J a
            Johnson-Lindenstrauss transform.
        seed: seed of rows and initial weights.
    """

    def __init__(
        self,
        features: int,
        keep: int | None = None,
        *,
        radices: Sequence[int] | None = None,
        free: bool = False,
        truncation: Literal["random", "stratified"] = "stratified",
        padding: Literal["smooth", "power-of-2"] = "smooth",
        init: Literal["fjlt", "ortho", "identity"] = "fjlt",
        scale: float = 1.0,
        seed: int = 0,
    ):
        super().__init__()
        self.features, self.keep = features, features if keep is None else keep
        if not 0 < self.keep <= features:
            raise ValueError(f"a butterfly factor of {features} features keeps 1 to {features} rows, not {keep}")
        self.size = 1 << (features - 1).bit_length() if padding == "power-of-2" else smooth(features)
        if radices is not None:
            self.size = math.prod(radices)
        if self.size < features:
            raise ValueError(f"radices {tuple(radices or ())} make {self.size} features, fewer than {features}")
        stratified = truncation == "stratified" and self.size == features
        first, last = split(self.size, self.keep if stratified else None)
        if radices is None:
            radices = (first, last) if free else (*primes_of(first), *primes_of(last))
        self.radices = tuple(radices)
        prefixes = [math.prod(self.radices[:i]) for i in range(len(self.radices) + 1)]
        self.first = min(prefixes, key=lambda size: abs(size - first))  # outputs of the two fused stages' matrices
        self.last = self.size // self.first
        divisible = self.keep % self.first == 0 and stratified and self.keep < features
        self.per_block = self.keep // self.first if divisible else None
        self.stages = nn.ParameterList()
        with torch.device("cpu"):
            generator = torch.Generator().manual_seed(seed)
            self._rows = self._draw_rows(generator)
            values = self._initial(init, generator)
            values[-1] = values[-1] * scale
        for value in values:
            parameter = nn.Parameter(torch.empty(value.shape))
            with torch.no_grad():
                parameter.copy_(value)
            self.stages.append(parameter)

    def _draw_rows(self, generator: torch.Generator) -> list[list[int]]:
        """Draw the rows of J: a list per matrix of the last fused stage, or one list of all."""
        if self.per_block is not None:
            orders = [torch.randperm(self.last, generator=generator) for _ in range(self.first)]
            return [sorted(order[: self.per_block].tolist()) for order in orders]
        if self.keep == self.features:
            return [list(range(self.features))]
        return [sorted(torch.randperm(self.size, generator=generator)[: self.keep].tolist())]

    @property
    def rows(self) -> list[int]:
        """The outputs of the last stage that are rows of J, in their order."""
        if self.per_block is None:
            return self._rows[0]
        return [high * self.first + low for low, highs in enumerate(self._rows) for high in highs]

    def _initial(self, init: str, generator: torch.Generator) -> list[torch.Tensor]:
        """Return the stages' initial weights, ``(higher, lower, radix, radix)`` each."""
        values = []
        for i, radix in enumerate(self.radices):
            lower = math.prod(self.radices[:i])
            shape = (self.size // (lower * radix), lower, radix, radix)
            if init == "identity":
                value = torch.eye(radix).expand(shape)
            elif init == "ortho":
                q, r = torch.linalg.qr(torch.randn(shape, generator=generator))
                value = q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
            else:
                value = _orthonormal(radix).expand(shape)
                if i == 0:
                    value = value * (torch.randint(0, 2, (shape[0], 1, 1, radix), generator=generator) * 2 - 1)
            values.append(value)
        return values

    def extra_repr(self) -> str:
        """Describe the shape."""
        return f"{self.keep} x {self.features}, radices {self.radices}"

    def blocks(self, stages: Sequence[torch.Tensor] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the two fused stages: ``(last, first, first)`` and ``(first, last or rows of it, last)``.

        Args:
            stages: weights to use in place of the factor's.
        """
        low = high = None
        lower = 1
        for stage in self.stages if stages is None else stages:
            if lower < self.first:
                low = stage if low is None else fuse(low, stage)
            else:
                high = stage if high is None else fuse(high, stage)
            lower *= stage.shape[-1]
        unit = self.stages[0].new_ones(())
        first = unit.expand(self.last, 1, 1) if low is None else low[:, 0]
        last = unit.expand(self.first, 1, 1) if high is None else high[0]
        if self.per_block is not None:
            index = torch.tensor(self._rows, device=last.device)[..., None].expand(-1, -1, self.last)
            last = last.gather(1, index)
        return first, last

    def matrix(self, stages: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        """Return J, ``(keep, features)``; ``stages`` as in `blocks`.

        Exactly one path connects a feature with an output, so each entry is a product of two numbers.
        """
        first, last = self.blocks(stages)
        product = torch.einsum("loh,hli->lohi", last, first).flatten(2)  # (first, last or rows of it, size)
        if self.per_block is not None:
            return product.flatten(0, 1)[:, : self.features]
        return self._select(product.transpose(0, 1).flatten(0, 1), 0)[:, : self.features]

    def _select(self, y: torch.Tensor, axis: int) -> torch.Tensor:
        """Select J's rows from all outputs in natural order."""
        if self.keep == self.size:
            return y
        return y.index_select(axis, torch.tensor(self.rows, device=y.device))

    def _spread(self, z: torch.Tensor, axis: int) -> torch.Tensor:
        """Scatter J's rows into zeros, the transpose of `_select`."""
        if self.keep == self.size:
            return z
        shape = [*z.shape]
        shape[axis] = self.size
        return z.new_zeros(shape).index_copy(axis, torch.tensor(self.rows, device=z.device), z)

    def apply_feature_major(self, x: torch.Tensor, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Return ``J x``, ``(keep, batch)``, from ``x`` of any strides, ``(size, batch)``: two `bmm`, no copies."""
        y = torch.bmm(first, x.unflatten(0, (self.last, self.first)))  # (last, first, batch)
        y = torch.bmm(last, y.transpose(0, 1))  # (first, last or rows of it, batch)
        if self.per_block is not None:
            return y.flatten(0, 1)
        return self._select(y.transpose(0, 1).flatten(0, 1), 0)

    def transpose_feature_major(self, z: torch.Tensor, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Return ``Jᵀ z``, ``(size, batch)``, from ``z``, ``(keep, batch)``."""
        if self.per_block is not None:
            z = z.unflatten(0, (self.first, self.per_block))
        else:
            z = self._spread(z, 0).unflatten(0, (self.last, self.first)).transpose(0, 1)
        y = torch.bmm(last.transpose(1, 2), z)  # (first, last, batch)
        return torch.bmm(first.transpose(1, 2), y.transpose(0, 1)).flatten(0, 1)

    def apply_token_major(self, x: torch.Tensor, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Return ``x Jᵀ``, ``(batch, keep)``, from ``(batch, size)``: fastest for few tokens."""
        y = torch.bmm(x.unflatten(1, (self.last, self.first)).transpose(0, 1), first.transpose(1, 2))
        y = torch.bmm(y.permute(2, 1, 0), last.transpose(1, 2))  # (first, batch, last or rows of it)
        if self.per_block is not None:
            return y.transpose(0, 1).flatten(1)
        return self._select(y.permute(1, 2, 0).flatten(1), 1)

    def transpose_token_major(self, z: torch.Tensor, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Return ``z J``, ``(batch, size)``, from ``(batch, keep)``."""
        if self.per_block is not None:
            z = z.unflatten(1, (self.first, self.per_block)).transpose(0, 1)
        else:
            z = self._spread(z, 1).unflatten(1, (self.last, self.first)).permute(2, 0, 1)
        y = torch.bmm(z, last)  # (first, batch, last)
        return torch.bmm(y.permute(2, 1, 0), first).transpose(0, 1).flatten(1)

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """Pad tokens ``(batch, features)`` with zeros to ``(batch, size)``."""
        return functional.pad(x, (0, self.size - self.features)) if self.size > self.features else x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(..., features)`` to ``(..., keep)``."""
        flat = self.pad(x.reshape(-1, self.features))
        return self.apply_feature_major(flat.t(), *self.blocks()).t().reshape(*x.shape[:-1], self.keep)

    def effective_weights(self) -> int:
        """Return how many weights lie on a path from a feature to a row of J (2007.08864, appendix F)."""
        edges = [self._edges(i) for i in range(len(self.radices))]
        reached = torch.arange(self.size) < self.features
        alive = []
        for outputs, inputs in edges:
            alive.append(reached[inputs])
            reached = torch.zeros(self.size, dtype=torch.bool)
            reached[outputs[alive[-1]]] = True
        needed = torch.zeros(self.size, dtype=torch.bool)
        needed[self.rows] = True
        count = 0
        for (outputs, inputs), live in zip(reversed(edges), reversed(alive), strict=True):
            used = live & needed[outputs]
            count += int(used.sum())
            needed = torch.zeros(self.size, dtype=torch.bool)
            needed[inputs[used]] = True
        return count

    def _edges(self, stage: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the outputs and inputs that a stage's weights connect, ``(size · radix,)`` each."""
        radix, lower = self.radices[stage], math.prod(self.radices[:stage])
        outputs = torch.arange(self.size).repeat_interleave(radix)
        digit = torch.arange(radix).repeat(self.size)
        return outputs, outputs + (digit - outputs // lower % radix) * lower


class ButterflyLinear(StructuredLinear):
    """The gadget ``J2ᵀ W' J1`` in place of a dense matrix (2007.08864, section 4.2); its rank is at most min(k).

    Args:
        in_features: columns.
        out_features: rows.
        k_in: rows of J1.
        k_out: rows of J2.
        bias: add a bias.
        options: options of both factors, see `ButterflyFactor`.
    """

    kernels = {"dense": "dense", "pair": "dense", "feature": "feature", "token": "token"}  # noqa: RUF012
    trained = "feature"

    def __init__(self, in_features: int, out_features: int, k_in: int, k_out: int, bias: bool = False, **options: Any):
        super().__init__(in_features, out_features, bias)
        seed = options.pop("seed", 0)
        self.j1 = ButterflyFactor(in_features, k_in, seed=2 * seed, **options)
        self.j2 = ButterflyFactor(out_features, k_out, seed=2 * seed + 1, **options)
        self.core = nn.Parameter(torch.empty(k_out, k_in))
        nn.init.kaiming_uniform_(self.core, a=math.sqrt(5))

    def matrix(self) -> torch.Tensor:
        """Return ``J2ᵀ W' J1``."""
        return self.j2.matrix().t() @ self.core @ self.j1.matrix()

    def tensors(self, form: str) -> Tensors:
        """Return the fused stages and the core, two thin matrices, or the dense matrix."""
        if form == "dense":
            return (self.matrix(),)
        if form == "pair":
            j1, j2 = self.j1.matrix(), self.j2.matrix()
            wide = self.core.shape[0] >= self.core.shape[1]
            return (j1, j2.t() @ self.core) if wide else (self.core @ j1, j2.t())
        return (*self.j1.blocks(), self.core, *self.j2.blocks())

    def compute(self, form: str, x: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        """Map ``(tokens, in_features)`` to ``(tokens, out_features)`` in one form."""
        if form in ("dense", "pair"):
            return super().compute(form, x, *tensors)
        first1, last1, core, first2, last2 = tensors
        x = self.j1.pad(x)
        if form == "token":
            z = functional.linear(self.j1.apply_token_major(x, first1, last1), core)
            return self.j2.transpose_token_major(z, first2, last2)[:, : self.out_features]
        z = core @ self.j1.apply_feature_major(x.t(), first1, last1)
        return self.j2.transpose_feature_major(z, first2, last2)[: self.out_features].t()

    def calls(self, form: str) -> int:
        """Return the kernels of a form."""
        return {"dense": 1, "pair": 2}.get(form, 5)

    def macs(self, form: str | None = None) -> int:
        """Return the multiply-adds per token of a form."""
        if form == "dense":
            return self.in_features * self.out_features
        if form == "pair":
            return min(self.core.shape) * (self.in_features + self.out_features)
        return self.core.numel() + sum(
            j.size * j.first + (j.last if j.per_block is None else j.per_block) * j.first * j.last
            for j in (self.j1, self.j2)
        )

    def effective_weights(self) -> int:
        """Return the weights on a path from an input to an output."""
        return self.core.numel() + self.j1.effective_weights() + self.j2.effective_weights()


class NTKFactorLinear(LowRankLinear):
    """``y = U V x`` with one fixed random factor (2210.04807; restated from its abstract).

    Args:
        in_features: columns.
        out_features: rows.
        rank: inner width k.
        fixed: ``'V'``: a random projection of the input is fixed and U is trained; ``'U'``: the other way round.
        sketch: ``'gauss'``: entries N(0, 1/k); ``'fjlt'``: a fast Johnson-Lindenstrauss transform, with
            ``sqrt(n / k)`` times orthonormal rows (for U: columns).
        bias: add a bias.
        seed: seed of the fixed factor.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        fixed: Literal["U", "V"] = "V",
        sketch: Literal["gauss", "fjlt"] = "gauss",
        bias: bool = False,
        seed: int = 0,
    ):
        super().__init__(in_features, out_features, rank, bias)
        self.fixed = fixed
        width = in_features if fixed == "V" else out_features
        with torch.device("cpu"), torch.no_grad():
            if sketch == "fjlt":
                scale = math.sqrt(width / rank)
                random = ButterflyFactor(width, rank, truncation="random", scale=scale, seed=seed).matrix()
            else:
                random = torch.randn(rank, width, generator=torch.Generator().manual_seed(seed)) / math.sqrt(rank)
        name = "down" if fixed == "V" else "up"
        buffer = torch.empty_like(getattr(self, name), requires_grad=False)
        buffer.copy_(random if fixed == "V" else random.t())
        delattr(self, name)
        self.register_buffer(name, buffer)


class MonarchLinear(StructuredLinear):
    """A Monarch matrix: two block-diagonal factors and the transposition between them (arXiv 2204.00595).

    With inputs ``(i, p)`` and outputs ``(j, s)``: ``M[(j, s), (i, p)] = right[j, s, i] · left[i, j, p]``.
    """

    kernels = {"dense": "dense", "feature": "feature", "token": "token"}  # noqa: RUF012
    trained = "feature"

    def __init__(self, in_features: int, out_features: int, bias: bool = False):
        super().__init__(in_features, out_features, bias)
        inner, outer = split(in_features)[0], split(out_features)[0]
        self.left = nn.Parameter(torch.empty(inner, outer, in_features // inner))
        self.right = nn.Parameter(torch.empty(outer, out_features // outer, inner))
        for weight in (self.left, self.right):
            nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[-1]))

    def matrix(self) -> torch.Tensor:
        """Return the dense matrix."""
        return torch.einsum("jsi,ijp->jsip", self.right, self.left).reshape(self.out_features, self.in_features)

    def tensors(self, form: str) -> Tensors:
        """Return the two factors, or the dense matrix."""
        return (self.matrix(),) if form == "dense" else (self.left, self.right)

    def compute(self, form: str, x: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        """Map ``(tokens, in_features)`` to ``(tokens, out_features)`` in one form."""
        if form == "dense":
            return super().compute(form, x, *tensors)
        left, right = tensors
        blocks = x.unflatten(1, (left.shape[0], left.shape[2]))  # (tokens, i, p)
        if form == "token":
            y = torch.bmm(blocks.transpose(0, 1), left.transpose(1, 2))  # (i, tokens, j)
            return torch.bmm(y.permute(2, 1, 0), right.transpose(1, 2)).transpose(0, 1).flatten(1)
        y = torch.bmm(left, blocks.permute(1, 2, 0))  # (i, j, tokens)
        return torch.bmm(right, y.transpose(0, 1)).flatten(0, 1).t()

    def macs(self, form: str | None = None) -> int:
        """Return the weights of both factors, or ``in · out`` dense."""
        dense = form == "dense"
        return self.in_features * self.out_features if dense else self.left.numel() + self.right.numel()

    def calls(self, form: str) -> int:
        """Return the kernels of a form."""
        return 1 if form == "dense" else 2


def butterfly(in_features: int, out_features: int, k: int, bias: bool) -> StructuredLinear | None:
    """Return the operator of `butterfly-K`."""
    return ButterflyLinear(in_features, out_features, min(k, in_features), min(k, out_features), bias)


def monarch(in_features: int, out_features: int, size: int, bias: bool) -> StructuredLinear | None:
    """Return the operator of `monarch`."""
    return MonarchLinear(in_features, out_features, bias)


def ntk(in_features: int, out_features: int, k: int, bias: bool) -> StructuredLinear | None:
    """Return the operator of `ntk-K`; None for a rank above that of the matrix."""
    return NTKFactorLinear(in_features, out_features, k, bias=bias) if k <= min(in_features, out_features) else None
