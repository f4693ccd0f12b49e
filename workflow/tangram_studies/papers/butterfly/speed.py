"""Time of inference and of a training step, compared with dense and low-rank layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from tangram.models.operators import LowRankLinear
from tangram.timing import interleaved
from tangram_studies.blocks.operators import ButterflyLinear
from tangram_studies.papers.butterfly.common import Scale
from tangram_studies.plots import lines_figure
from tangram_studies.study import Claim, Study, interval

GADGET, LOW_RANK = "gadget k=n/4", "low rank, equal weights"
Ratios = dict[tuple[str, str, int], list[float]]


def speeds(study: Study, seeds: Sequence[int], scale: Scale) -> None:
    """Section 6.1, figures 10 and 11: time of inference and of a training step, beside dense and low rank."""
    n = scale.speed_n
    _claim(study, seeds, n, _measure(study, seeds, n))
    study.figures.append(
        lines_figure(
            "speed",
            f"Speed of inference beside dense, n = {n}",
            "Above 1: faster than the dense layer, in the same run.",
            {"": study.frame("speed, inference")},
            "tokens",
            "times as fast as dense",
            log="xy",
        )
    )


def _inference(module: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    @torch.inference_mode()
    def run() -> object:
        if isinstance(module, ButterflyLinear):
            form = "token" if len(x) < 8 else "feature"
            return module.compute(form, x, *module._frozen(form))
        return module(x)

    return run


def _training(module: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    def run() -> object:
        module.zero_grad()
        return module(x).square().mean().backward()

    return run


def _measure(study: Study, seeds: Sequence[int], n: int) -> Ratios:
    """Record dense seconds over each arm's seconds; return them by kind, arm and number of tokens."""
    k = n // 4
    torch.manual_seed(0)
    gadget = ButterflyLinear(n, n, k, k)
    arms: dict[str, nn.Module] = {
        "dense": nn.Linear(n, n, bias=False),
        GADGET: gadget,
        LOW_RANK: LowRankLinear(n, n, gadget.effective_weights() // (2 * n)),
    }

    ratios: Ratios = {}
    for kind, tokens in (("inference", 1), ("inference", 64), ("inference", 1024), ("training", 1024)):
        x = torch.randn(tokens, n, requires_grad=kind == "training")
        make = _inference if kind == "inference" else _training
        samples = interleaved({name: make(module, x) for name, module in arms.items()}, repeats=3 * len(seeds))
        for i, seed in enumerate(seeds):  # three interleaved samples make one repetition
            seconds = {name: float(np.median(values[3 * i : 3 * i + 3])) for name, values in samples.items()}
            for name in arms:
                ratio = seconds["dense"] / seconds[name]
                study.record(f"speed, {kind}", name, seed, "times dense", ratio, tokens)
                ratios.setdefault((kind, name, tokens), []).append(ratio)

    return ratios


def _claim(study: Study, seeds: Sequence[int], n: int, ratios: Ratios) -> None:
    def claim(short: str, statement: str, kind: str, tokens: int, other: str | None, note: str = "") -> None:
        speedups = np.array(ratios[kind, GADGET, tokens])
        speedups = speedups / np.array(ratios[kind, other, tokens]) if other else speedups
        study.claims.append(
            Claim.from_interval(
                interval(speedups),
                above=1.0,
                claim=short,
                statement=statement,
                where="section 6.1, figures 10 and 11",
                paper_value="less time",
                unit="times as fast",
                seeds=len(seeds),
                note=note or f"n = {n}, fused radix stages, interleaved timings; this machine, one thread",
            )
        )

    claim("8a inference, many tokens", "inference is faster than dense (1,024 tokens)", "inference", 1024, None)
    claim("8b inference, one token", "inference is faster than dense (1 token)", "inference", 1, None)
    claim("8c training step", "a training step is faster than dense", "training", 1024, None)
    claim(
        "8d beside low rank",
        "it is faster than low rank of equal weights (1,024 tokens)",
        "inference",
        1024,
        LOW_RANK,
        "a control that the paper lacks",
    )
