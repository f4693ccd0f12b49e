"""What became here of "Efficient NTK using Dimensionality Reduction" (arXiv 2210.04807).

Only the abstract could be read: its theorems are restated by us from the analyses that it builds on (Du et al., arXiv
1810.02054; Arora et al., arXiv 1901.08584), and so are marked. The network is ``f(x) = aᵀ relu(W x) / √m`` with random
signs a; W ``(m, d)`` is trained, or W = U V through an inner width k with one factor random and fixed, the other
trained: *V fixed* (a random projection of the inputs) or *U fixed* (trainable weights independent of m).
"""

# ruff: noqa: RUF001 - the typographic signs are meant

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tangram.images import Images
from tangram.report.style import number
from tangram.studies.lines import lines_figure
from tangram.studies.study import Claim, Interval, NotReproduced, Study, interval
from tangram.timing import interleaved

DENSE, V_FIXED, U_FIXED = ARMS = ("dense", "V fixed", "U fixed")
RESTATED = "restated by us: only the abstract was readable"


@dataclass(frozen=True)
class Size:
    """How large the experiments are."""

    points: int
    width: int
    widths: tuple[int, ...]
    ranks: tuple[int, ...]
    steps: int
    train: int
    test: int
    image_width: int


SIZES = {
    "small": Size(100, 2048, (512, 2048, 8192), (8, 16, 32, 64), 120, 400, 1000, 1024),
    "full": Size(200, 4096, (1024, 4096, 16384), (16, 32, 64, 128, 256), 400, 1000, 4000, 4096),
}


class TwoLayer:
    """A two-layer ReLU network in the NTK parametrisation, with its tangent kernel in closed form.

    Args:
        d: inputs.
        m: width.
        k: inner width; None for the dense W.
        fixed: ``'V fixed'`` or ``'U fixed'``.
        seed: of all weights.
    """

    def __init__(self, d: int, m: int, k: int | None, fixed: str, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.signs = torch.randint(0, 2, (m,), generator=generator) * 2.0 - 1
        self.m, self.k, self.fixed, self.d = m, k, fixed, d
        self.up = self.down = torch.empty(0)
        if k is None:
            self.trained = torch.randn(m, d, generator=generator)
            return
        self.up = torch.randn(m, k, generator=generator)
        self.down = torch.randn(k, d, generator=generator)
        if fixed == V_FIXED:  # E‖Vx‖² = ‖x‖², and rows of U are N(0, I)
            self.down = self.down / math.sqrt(k)
            self.trained = self.up
        else:
            self.up = self.up / math.sqrt(k)
            self.trained = self.down

    @property
    def trainable(self) -> int:
        """Weights that are trained."""
        return self.trained.numel()

    @property
    def macs(self) -> int:
        """Multiply-adds per example of W x."""
        return self.m * self.d if self.k is None else self.k * (self.m + self.d)

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``W x``, ``(n, m)``, of ``(n, d)``."""
        if self.k is None:
            return x @ self.trained.t()
        if self.fixed == V_FIXED:
            return (x @ self.down.t()) @ self.trained.t()
        return (x @ self.trained.t()) @ self.up.t()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return f, ``(n,)``."""
        return self.hidden(x).relu() @ self.signs / math.sqrt(self.m)

    def features(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return two matrices, ``(n, ·)`` each, whose Gram matrices multiply entry by entry to the kernel."""
        gates = (self.hidden(x) > 0) * self.signs / math.sqrt(self.m)
        if self.k is None:
            return x, gates
        return (x @ self.down.t(), gates) if self.fixed == V_FIXED else (x, gates @ self.up)

    def kernel(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        """Return the tangent kernel ``⟨∂f(x_i)/∂θ, ∂f(x_j)/∂θ⟩`` over the trained factor, ``(n, n')``."""
        left, right = self.features(x), self.features(x if other is None else other)
        return (left[0] @ right[0].t()) * (left[1] @ right[1].t())

    def step(self, x: torch.Tensor, y: torch.Tensor, rate: float) -> float:
        """Descend one step of ``½ ‖f − y‖²``; return ``‖f − y‖²`` before it."""
        hidden = self.hidden(x)
        error = hidden.relu() @ self.signs / math.sqrt(self.m) - y
        gates = (hidden > 0) * self.signs / math.sqrt(self.m) * error[:, None]  # (n, m)
        if self.k is None:
            gradient = gates.t() @ x
        elif self.fixed == V_FIXED:
            gradient = gates.t() @ (x @ self.down.t())
        else:
            gradient = (gates @ self.up).t() @ x
        self.trained = self.trained - rate * gradient
        return float(error.square().sum())


def limit_kernel(x: torch.Tensor) -> torch.Tensor:
    """Return the kernel of infinite width for unit inputs, ``x_i·x_j (π − arccos(x_i·x_j)) / 2π``, ``(n, n)``."""
    cosine = (x @ x.t()).clamp(-1, 1)
    return cosine * (math.pi - torch.arccos(cosine)) / (2 * math.pi)


def _least(kernel: torch.Tensor) -> float:
    return float(torch.linalg.eigvalsh(kernel.double())[0])


def _off(kernel: torch.Tensor, reference: torch.Tensor) -> float:
    return float((kernel - reference).norm() / reference.norm())


def unit_points(n: int, d: int, seed: int) -> torch.Tensor:
    """Return random points on the sphere, ``(n, d)``."""
    points = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return points / points.norm(dim=1, keepdim=True)


def image_points(images: Images, count: int, seed: int, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pullovers against coats, centred unit rows ``(n, 784)``, and ±1 labels ``(n,)``.

    Args:
        images: Fashion-MNIST.
        count: how many.
        seed: which ones.
        split: ``'train'`` or ``'test'``.
    """
    pictures, labels = getattr(images, f"{split}_images"), getattr(images, f"{split}_labels")
    two = np.flatnonzero((labels == 2) | (labels == 4))  # not separable at a glance
    chosen = np.random.default_rng(seed).choice(two, min(count, len(two)), replace=False)
    centre = images.train_images[(images.train_labels == 2) | (images.train_labels == 4)].mean(0)
    x = torch.from_numpy(((pictures[chosen] - centre) / 255).reshape(len(chosen), -1).astype(np.float32))
    y = torch.from_numpy(np.where(labels[chosen] == 2, 1.0, -1.0).astype(np.float32))
    return x / x.norm(dim=1, keepdim=True), y


def kernels(study: Study, seeds: Sequence[int], size: Size, images: Images) -> None:
    """Closeness of the factorised tangent kernel to the dense one, and its least eigenvalue, over k."""
    n = size.points
    for seed in seeds:
        from sklearn.datasets import load_digits

        digits = load_digits().data.astype(np.float32)
        some = digits[np.random.default_rng(seed).choice(len(digits), n, replace=False)] - digits.mean(0)
        data = {
            "d = n": unit_points(n, n, seed),
            "d = n / 5": unit_points(n, n // 5, seed),
            "digits": torch.from_numpy(some / np.linalg.norm(some, axis=1, keepdims=True)),
            "Fashion-MNIST": image_points(images, n, seed, "train")[0],
        }
        for name, x in data.items():
            limit = limit_kernel(x)
            dense = TwoLayer(x.shape[1], size.width, None, "", seed).kernel(x)
            for arm in (V_FIXED, U_FIXED):
                for k in size.ranks:
                    kernel = TwoLayer(x.shape[1], size.width, k, arm, seed).kernel(x)
                    share = _least(kernel) / _least(limit)
                    study.record(f"least eigenvalue, {name}", arm, seed, "of the infinite width's", share, k)
                    study.record(f"kernel distance, {name}", arm, seed, "relative", _off(kernel, dense), k)
            share = _least(dense) / _least(limit)
            for k in size.ranks:
                study.record(f"least eigenvalue, {name}", DENSE, seed, "of the infinite width's", share, k)
    for short, arm, k in (("12a", U_FIXED, size.ranks[-2]), ("12b", V_FIXED, size.ranks[-2])):
        rows = study.frame("least eigenvalue, d = n")
        found = interval(rows[(rows["arm"] == arm) & (rows["x"] == k)]["value"].to_numpy())
        study.claims.append(
            Claim.from_interval(
                found,
                above=0.5,
                claim=f"{short} least eigenvalue, {arm}",
                statement="a factorised layer of inner width k ≪ d keeps the kernel's least eigenvalue (here ≥ λ₀/2)",
                where="abstract: 'similar guarantees'",
                unit=f"of λ₀ at k = {k}, d = n = {n}",
                seeds=len(seeds),
                note=RESTATED,
            )
        )
    slopes = {}
    for arm in (V_FIXED, U_FIXED):
        rows = study.frame("kernel distance, d = n")
        table = rows[rows["arm"] == arm].pivot(index="seed", columns="x", values="value")
        x = np.log(np.array(table.columns, dtype=float))
        slopes[arm] = interval([-float(np.polyfit(x, np.log(row), 1)[0]) for row in table.to_numpy()])
    found = slopes[V_FIXED]
    study.claims.append(
        Claim.from_interval(
            found,
            above=0.25,
            claim="12c kernel distance",
            statement="the kernel comes near to the dense one as k grows, like k^−1/2 (Johnson-Lindenstrauss)",
            where="abstract",
            paper_value="exponent 0.5",
            measured=f"exponent {found} with V fixed, {slopes[U_FIXED]} with U fixed",
            unit="exponent",
            seeds=len(seeds),
            note=f"{RESTATED}; with U fixed the finite width m = {size.width} bounds the distance from below",
        )
    )
    names = ("d = n", "digits", "Fashion-MNIST")
    study.figures.append(
        lines_figure(
            "least-eigenvalue",
            "Least eigenvalue of the tangent kernel",
            f"Relative to infinite width; m = {size.width}, n = {n} points. With U fixed, few trained weights suffice.",
            {name: study.frame(f"least eigenvalue, {name}") for name in names},
            "inner width k",
            "λ_min / λ₀",
            arms=ARMS,
            log_x=True,
        )
    )
    study.figures.append(
        lines_figure(
            "kernel-distance",
            "Distance to the dense tangent kernel",
            "Frobenius norm, relative.",
            {name: study.frame(f"kernel distance, {name}") for name in names},
            "inner width k",
            "‖K − K_dense‖ / ‖K_dense‖",
            arms=ARMS,
            log_x=True,
            log_y=True,
        )
    )


@dataclass(frozen=True)
class Descent:
    """One training by full-batch gradient descent, and what theory says of it."""

    rate: float
    predicted_first: float
    predicted_last: float
    drift: float
    movement: float
    final: float


def descend(net: TwoLayer, x: torch.Tensor, y: torch.Tensor, steps: int) -> tuple[Descent, list[float]]:
    """Train with the largest safe step, ``1 / λ_max``; rates are of ``log ‖f − y‖²`` per step, on the last half.

    The slowest mode of the linearised dynamics falls by ``2 log(1 − η λ_min)``.
    """
    first, begin = net.kernel(x), net.trained
    eigenvalues = torch.linalg.eigvalsh(first.double())
    rate = 1 / float(eigenvalues[-1])
    losses = [net.step(x, y, rate) for _ in range(steps)]
    last = net.kernel(x)
    floor = 1e-10 * losses[0]  # float32's
    usable = [i for i in range(len(losses) // 2, len(losses)) if losses[i] > floor]
    if len(usable) < 8:
        usable = [i for i in range(len(losses)) if losses[i] > floor][-16:]
    slope = float(np.polyfit(usable, np.log([losses[i] for i in usable]), 1)[0])
    predictions = [2 * math.log1p(-min(rate * max(_least(kernel), 0.0), 0.999999)) for kernel in (first, last)]
    movement = float((net.trained - begin).norm(dim=1).max() / begin.norm(dim=1).mean())
    return Descent(slope, predictions[0], predictions[1], _off(last, first), movement, losses[-1]), losses


def convergence(study: Study, seeds: Sequence[int], size: Size) -> None:
    """Linear convergence: the rate against the kernel's, and what the drift of the kernel depends on."""
    n, middle = size.points, size.ranks[len(size.ranks) // 2]
    ratios: dict[str, list[float]] = {}
    for seed in seeds:
        x = unit_points(n, n, seed)
        y = torch.randint(0, 2, (n,), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1
        for arm in ARMS:
            for k in size.ranks if arm != DENSE else size.ranks[:1]:
                net = TwoLayer(n, size.width, None if arm == DENSE else k, arm, seed)
                run, losses = descend(net, x, y, size.steps)
                study.record("drift by k", arm, seed, "‖K_T − K_0‖ / ‖K_0‖", run.drift, k)
                study.record("rate by k", f"{arm}: measured", seed, "per step", -run.rate, k)
                study.record("rate by k", f"{arm}: from K_0", seed, "per step", -run.predicted_first, k)
                study.record("rate by k", f"{arm}: from K_T", seed, "per step", -run.predicted_last, k)
                if k == middle or arm == DENSE:
                    for step in range(0, len(losses), max(1, size.steps // 12)):
                        study.record("loss curve", arm, seed, "‖f − y‖² / ‖y‖²", max(losses[step] / n, 1e-12), step)
                if k == middle:
                    ratios.setdefault(f"{arm} K_0", []).append(run.rate / run.predicted_first)
                    ratios.setdefault(f"{arm} K_T", []).append(run.rate / run.predicted_last)
            for m in size.widths:
                net = TwoLayer(n, m, None if arm == DENSE else middle, arm, seed)
                run, _ = descend(net, x, y, size.steps)
                study.record("drift by m", arm, seed, "‖K_T − K_0‖ / ‖K_0‖", run.drift, m)
                study.record("movement by m", arm, seed, "largest row's, relative", run.movement, m)

    def exponents(experiment: str, arm: str) -> Interval:
        rows = study.frame(experiment)
        table = rows[rows["arm"] == arm].pivot(index="seed", columns="x", values="value")
        x = np.log(np.array(table.columns, dtype=float))
        return interval([-float(np.polyfit(x, np.log(row), 1)[0]) for row in table.to_numpy()])

    for short, arm in (("13a", V_FIXED), ("13b", U_FIXED)):
        found, last = interval(ratios[f"{arm} K_0"]), interval(ratios[f"{arm} K_T"])
        near = found.low > 0.7 and found.high < 1.3
        far = found.high < 0.7 or found.low > 1.3
        study.claims.append(
            Claim(
                claim=f"{short} linear rate, {arm}",
                statement="gradient descent converges linearly at the rate of the initial kernel (here within 30 %)",
                where="abstract; Du et al. theorem 4.1",
                paper_value="1",
                measured=f"measured / predicted {found} from the initial kernel, {last} from the final one",
                verdict="supported" if near else "refuted" if far else "inconclusive",
                estimate=found.estimate,
                low=found.low,
                high=found.high,
                unit="of the predicted rate",
                seeds=len(seeds),
                note=f"{RESTATED}; k = {middle}, m = {size.width}, n = d = {n}, random labels",
            )
        )
    for short, arm in (("13c", V_FIXED), ("13d", U_FIXED)):
        by_m, by_k = exponents("drift by m", arm), exponents("drift by k", arm)
        study.claims.append(
            Claim.from_interval(
                by_m,
                above=0.25,
                claim=f"{short} lazy by width, {arm}",
                statement="the kernel moves less as the width m grows, like m^−1/2: wide networks are lazy",
                where="abstract: 'large width'; Du et al.",
                paper_value="exponent 0.5",
                measured=f"exponent {by_m} in m at k = {middle}; {by_k} in k at m = {size.width}",
                unit="exponent in m",
                seeds=len(seeds),
                note=RESTATED + ("" if arm == V_FIXED else "; what counts here is k: U mixes m gates into k numbers"),
            )
        )
    study.figures.append(
        lines_figure(
            "drift",
            "How far training moves the tangent kernel",
            f"Left: at inner width {middle}; right: at width {size.width}.",
            {
                "by width m": study.frame("drift by m"),
                "by inner width k": study.frame("drift by k").query("arm != 'dense'"),
            },
            "width",
            "‖K_T − K_0‖ / ‖K_0‖",
            arms=ARMS,
            log_x=True,
            log_y=True,
        )
    )
    study.figures.append(
        lines_figure(
            "loss-curves",
            f"Gradient descent at inner width {middle}",
            "Random labels; step 1 / λ_max of each network's own initial kernel.",
            {"": study.frame("loss curve")},
            "step",
            "‖f − y‖² / ‖y‖²",
            arms=ARMS,
            log_y=True,
        )
    )


def step_seconds(x: torch.Tensor, y: torch.Tensor, m: int, k: int, seed: int) -> dict[str, float]:
    """Return the median seconds of a descent step by arm, timed in turns.

    Args:
        x: inputs, ``(n, d)``.
        y: targets, ``(n,)``.
        m: width.
        k: inner width of the factorised arms.
        seed: of the weights.
    """

    def step_of(arm: str) -> Callable[[], object]:
        net = TwoLayer(x.shape[1], m, None if arm == DENSE else k, arm, seed)
        return lambda: net.step(x, y, 0.0)

    samples = interleaved({arm: step_of(arm) for arm in ARMS}, repeats=7)
    return {arm: float(np.median(values)) for arm, values in samples.items()}


def generalisation(study: Study, seeds: Sequence[int], size: Size, images: Images) -> None:
    """Accuracy of kernel regression, the bound on its risk, and what training costs, dense and factorised."""
    k = size.ranks[-1]
    for seed in seeds:
        train_x, train_y = image_points(images, size.train, seed, "train")
        test_x, test_y = image_points(images, size.test, seed, "test")
        d = train_x.shape[1]
        for arm in ARMS:
            net = TwoLayer(d, size.image_width, None if arm == DENSE else k, arm, seed)
            kernel = net.kernel(train_x).double()
            kernel += 1e-3 * kernel.diagonal().mean() * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
            weights = torch.linalg.solve(kernel, train_y.double())
            predicted = net.kernel(test_x, train_x).double() @ weights
            accuracy = float((predicted.sign() == test_y.double()).double().mean())
            bound = math.sqrt(2 * float(train_y.double() @ weights) / len(train_y))
            for metric, value in (
                ("test accuracy", accuracy),
                ("√(2 yᵀK⁻¹y / n)", bound),
                ("multiply-adds", net.macs),
                ("trained weights", net.trainable),
            ):
                study.record("Fashion-MNIST, two classes", arm, seed, metric, value)
        for arm, seconds in step_seconds(train_x, train_y, size.image_width, k, seed).items():
            study.record("Fashion-MNIST, two classes", arm, seed, "seconds per step", seconds)
    experiment = "Fashion-MNIST, two classes"

    def values(metric: str, arm: str) -> np.ndarray:
        rows = study.frame(experiment)
        return rows[(rows["arm"] == arm) & (rows["metric"] == metric)].sort_values("seed")["value"].to_numpy()

    for short, arm in (("14a", U_FIXED), ("14b", V_FIXED)):
        found = study.paired(experiment, "test accuracy", arm, DENSE)
        own, dense = (float(values("√(2 yᵀK⁻¹y / n)", name).mean()) for name in (arm, DENSE))
        accuracy = float(values("test accuracy", DENSE).mean())
        study.claims.append(
            Claim.from_interval(
                found,
                above=-0.01,
                claim=f"{short} accuracy, {arm}",
                statement="the factorised kernel generalises like the dense one (here: loses less than 0.01)",
                where="abstract: 'similar guarantees'",
                measured=f"{found}; dense {number(accuracy)}; bounds on the risk {number(own)} and {number(dense)}",
                unit="accuracy, factorised − dense",
                seeds=len(seeds),
                note=f"{RESTATED}; pullovers against coats, n = {size.train}, d = 784, k = {k}, m = {size.image_width}",
            )
        )
    faster = interval(values("seconds per step", DENSE) / values("seconds per step", U_FIXED))
    macs = number(values("multiply-adds", DENSE)[0] / values("multiply-adds", U_FIXED)[0])
    weights = {arm: values("trained weights", arm)[0] for arm in (DENSE, U_FIXED, V_FIXED)}
    fewer = " and ".join(f"{number(weights[DENSE] / weights[arm])} x ({arm})" for arm in (U_FIXED, V_FIXED))
    study.claims.append(
        Claim.from_interval(
            faster,
            above=1.0,
            claim="14c cost",
            statement="training costs less: k (m + d) multiply-adds instead of m d",
            where="abstract: 'reducing training and inference resource costs'",
            measured=f"{faster} x as fast per step; {macs} x fewer multiply-adds, {fewer} fewer trained weights",
            unit="times as fast",
            seeds=len(seeds),
            note=f"d = 784, m = {size.image_width}, k = {k}",
        )
    )


def gain_by_dimension(study: Study, seeds: Sequence[int], size: Size) -> None:
    """The abstract: the gain grows when the dimension is of the order of the number of points."""
    n, k = size.points, size.ranks[1]
    for seed in seeds:
        for d in (n // 4, n, 4 * n):
            x, y = unit_points(n, d, seed), torch.ones(n)
            seconds = step_seconds(x, y, size.width, k, seed)
            for arm in (U_FIXED, V_FIXED):
                study.record("gain by dimension", arm, seed, "times as fast", seconds[DENSE] / seconds[arm], d / n)
    rows = study.frame("gain by dimension")
    table = rows[rows["arm"] == U_FIXED].pivot(index="seed", columns="x", values="value")
    found = interval((table[1.0] / table[0.25]).to_numpy())
    study.claims.append(
        Claim.from_interval(
            found,
            above=1.0,
            claim="14d gain by dimension",
            statement="the gain increases when the data's dimension is of the order of the number of points",
            where="abstract",
            measured=f"{found}: speed-up at d = n over that at d = n/4",
            unit="ratio of speed-ups",
            seeds=len(seeds),
            note=f"n = {n}, m = {size.width}, k = {k}; U fixed",
        )
    )
    study.figures.append(
        lines_figure(
            "gain",
            "Speed of a training step beside dense",
            f"Inner width {k}, width {size.width}, {n} points.",
            {"": rows},
            "d / n",
            "times as fast as dense",
            arms=ARMS,
            log_x=True,
        )
    )


def ntk_study(images: Images, scale: str, seeds: int, progress: Callable[[str], None] = print) -> Study:
    """Run every experiment.

    Args:
        images: Fashion-MNIST.
        scale: ``'small'`` or ``'full'``.
        seeds: repetitions.
        progress: told of each experiment before it starts.
    """
    size, repeats = SIZES[scale], range(seeds)
    study = Study("ntk", "Efficient NTK using dimensionality reduction: what holds, measured", "2210.04807")
    for name, experiment in (
        ("kernels", lambda: kernels(study, repeats, size, images)),
        ("convergence", lambda: convergence(study, repeats, size)),
        ("generalisation", lambda: generalisation(study, repeats, size, images)),
        ("gain by dimension", lambda: gain_by_dimension(study, repeats, size)),
    ):
        progress(name)
        experiment()
    study.notes += [
        "Only the abstract was readable. Which factor is fixed, the initialisation and every theorem are restated by "
        "us, and both choices are measured.",
        "Both factors are Gaussian here; NTKFactorLinear also offers a fast Johnson-Lindenstrauss transform.",
    ]
    study.not_reproduced += [
        NotReproduced("the paper's own theorems and constants", "full text not readable", "replace what is restated"),
        NotReproduced(
            "networks deeper than two layers", "no closed form this short", "torch.func.jacrev on the network"
        ),
    ]
    return study
