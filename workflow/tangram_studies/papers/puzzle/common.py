"""All that the experiments share: scale, texts, the base library with its scores and costs, and children by task."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from tangram.blocks.architecture import Architecture
from tangram.blocks.base import KINDS, NO_OP, PARENT
from tangram.config import Costs, Scenario
from tangram.costs import torch_engine
from tangram.costs.calibration import calibrate
from tangram.costs.measurement import MODEL
from tangram_studies.papers.puzzle import laboratory
from tangram_studies.papers.puzzle.laboratory import FINETUNE, OWN, Lab, Metrics
from tangram_studies.papers.puzzle.space import SCENARIO, Space, plain
from tangram_studies.papers.puzzle.work import Work
from tangram_studies.study import Claim, Interval, Study, print_progress

BASE = "base"  # name of the library of all layers
DISTILL = "distill"  # name of the text of block distillation

Timing = dict[str, Any]  # config section `costs` and one scenario


def settings_of(timing: Timing) -> tuple[Costs, Scenario]:
    """Return the settings of measurements of time."""
    return Costs.model_validate(timing["costs"]), Scenario.model_validate(timing["scenario"])


@dataclass(frozen=True)
class Scale:
    """The size of the study.

    Attributes:
        seeds: draws of score text, orders of finetuning, draws of distill text.
        length: tokens per training or score sequence.
        distill: distill tokens of the base library.
        score: score tokens per draw.
        finetune: tokens of global distillation.
        budgets: smaller budgets of it (table 6).
        bld_budgets: smaller budgets of block distillation (table 10), in sequences.
        passages: held-out passages.
        passage_tokens: tokens per passage.
        attention: the attention variants of the search space besides the parent's, as in the paper.
        ffn: its FFN variants.
        speeds: targets of the search, multiples of the packed parent's throughput, mild to strong.
        speed: the target of which most claims are made.
        map_speeds: targets of the heat map (figure 8).
        every: stride of the layers in which the libraries of tables 8, 9 and 10 have pieces.
        epochs: passes of block distillation.
        lengths: tokens of the questions about long texts: 1, 2 and 4 times ``length``.
        questions: per task and length.
        children: per target, whose sums of scores are compared with their losses.
        finetuned: of them.
        tasks: of BIG-bench, multiple choice.
        asked: questions per draw of scores by accuracy.
        answered: other questions, which children answer.
        answered_by_many: of them, asked of ``children`` children.
        ranks: of uniform low rank (table 18).
        precisions: of the uniformly quantized parents.
        costs: how often pieces are timed.
        rounds: how often whole models are timed.
        scenario: the workload.
    """

    seeds: int = 3
    length: int = 256
    distill: int = 3072
    score: int = 768
    finetune: int = 3072
    budgets: tuple[int, ...] = (768, 1536)
    bld_budgets: tuple[int, ...] = (3, 6)
    passages: int = 16
    passage_tokens: int = 128
    attention: tuple[str, ...] = ("gqa-mean-1", "linear", NO_OP)
    ffn: tuple[str, ...] = ("width-0.5", "width-0.25", NO_OP)
    speeds: tuple[float, ...] = (1.15, 1.3, 1.5)
    speed: float = 1.3
    map_speeds: tuple[float, ...] = (1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.35, 1.4, 1.45, 1.5, 1.6)
    every: int = 4
    epochs: int = 1
    ranks: tuple[int, ...] = (96, 144, 192)
    lengths: tuple[int, ...] = (256, 512, 1024)
    questions: int = 6
    children: int = 50
    finetuned: int = 10
    tasks: tuple[str, ...] = ("general_knowledge", "similarities_abstraction", "phrase_relatedness")
    asked: int = 40
    answered: int = 128
    answered_by_many: int = 48
    precisions: tuple[str, ...] = ("bf16", "int8")
    costs: Costs = field(default_factory=Costs)
    rounds: int = 11
    scenario: Scenario = field(default_factory=lambda: Scenario(prefill=128, generate=32, batch_sizes=(4,)))

    @property
    def timing(self) -> Timing:
        """Settings of measurements of time, as plain arguments."""
        return {"costs": self.costs.model_dump(mode="json"), "scenario": self.scenario.model_dump(mode="json")}

    @property
    def variants(self) -> dict[str, tuple[str, ...]]:
        """The variants by kind."""
        return {"attention": self.attention, "ffn": self.ffn}


@dataclass(frozen=True)
class Bench:
    """The shared material of the experiments."""

    lab: Lab
    work: Work
    scale: Scale
    space: Space

    def text(self, seed: int) -> str:
        """Return the distill text of a seed."""
        return DISTILL if seed == 0 else f"{DISTILL}-{seed}"

    def children(self, architectures: Sequence[Architecture], library: str = BASE) -> list[Metrics]:
        """Return the metrics of assembled children."""
        tasks = [
            {"lab": self.lab, "architecture": plain(architecture), "library": library} for architecture in architectures
        ]
        return self.work.run(laboratory.measure_child, tasks, "children")

    def finetuned(self, tasks: Sequence[Mapping[str, Any]], label: str) -> list[Metrics]:
        """Return the metrics of children after global distillation; see `laboratory.measure_child`."""
        whole = [{"lab": self.lab, "library": BASE, **task} for task in tasks]
        return self.work.run(laboratory.measure_child, whole, label)


def record_child(study: Study, experiment: str, arm: str, seed: int, metrics: Metrics, x: float | None = None) -> None:
    """Add a child's measurements: means over its passages, in nats per token, and the agreement as a fraction."""
    for name, values in metrics.items():
        study.record(experiment, arm, seed, name, sum(values) / len(values), x)


def add_claim(study: Study, quantity: Interval, claim: str, statement: str, **others: Any) -> None:
    """Add a claim that an interval decides, by default in nats of KL per token; see `Claim.from_interval`."""
    fields = {"unit": "nats of KL per token", "paper_value": "-", **others}
    study.claims.append(Claim.from_interval(quantity, claim=claim, statement=statement, **fields))


def make_texts(lab: Lab, work: Work, scale: Scale) -> None:
    """Write the texts of all experiments and the parent's activations on them."""
    work.run(laboratory.write_heldout, [{"lab": lab}], "held-out passages")
    sizes = {DISTILL: scale.distill, FINETUNE: scale.finetune}
    sizes |= {f"{DISTILL}-{seed}": scale.distill for seed in range(1, scale.seeds)}
    sizes |= {f"score-{seed}": scale.score for seed in range(scale.seeds)}
    tasks = [
        {"lab": lab, "text": text, "source": OWN, "tokens": size, "seed": lab.seed + 101 + number}
        for number, (text, size) in enumerate(sizes.items())
    ]
    work.run(laboratory.write_text, tasks, "texts")


def train_library(
    bench_lab: Lab,
    work: Work,
    library: str,
    text: str,
    variants: Mapping[str, Sequence[str]],
    layers: Sequence[int],
    epochs: int,
    seed: int = 0,
    sequences: int | None = None,
) -> list[dict[str, Any]]:
    """Train (or with ``epochs`` 0 only initialize) the pieces of a library; see `laboratory.train_piece`."""
    tasks = [
        {
            "lab": bench_lab,
            "library": library,
            "text": text,
            "kind": kind,
            "variant": variant,
            "layer": layer,
            "epochs": epochs,
            "seed": seed,
            "sequences": sequences,
        }
        for kind, names in variants.items()
        for variant, layer in itertools.product(names, layers)
    ]
    return work.run(laboratory.train_piece, tasks, f"library {library}")


def score_library(
    lab: Lab, work: Work, library: str, text: str, variants: Mapping[str, Sequence[str]], layers: Sequence[int]
) -> pd.DataFrame:
    """Return the score table of a library on a text; no-ops, which are alike in all, are scored once per text."""
    tasks = [
        {
            "lab": lab,
            "library": BASE if variant == NO_OP else library,
            "text": text,
            "kind": kind,
            "variant": variant,
            "layer": layer,
        }
        for kind, names in variants.items()
        for layer, variant in itertools.product(layers, names)
    ]
    rows = work.run(laboratory.score_piece, tasks, f"scores of {library} on {text}")
    return pd.DataFrame(list(itertools.chain.from_iterable(rows)))


def prepare(lab: Lab, work: Work, alone: Work, scale: Scale) -> Bench:
    """Make texts, the base library, its scores on every draw of text, and its costs.

    Args:
        lab: the laboratory.
        work: runs tasks in several processes.
        alone: runs tasks in this process, with all its threads: measurements of time.
        scale: size of the study.
    """
    make_texts(lab, work, scale)
    layers, variants = range(lab.layers), scale.variants
    train_library(lab, work, BASE, DISTILL, variants, layers, scale.epochs)
    scores = tuple(score_library(lab, work, BASE, f"score-{seed}", variants, layers) for seed in range(scale.seeds))
    print_progress("puzzle: costs")
    work.close()  # so that the measurements of time have the machine to themselves
    pieces = [(MODEL, PARENT), ("head", PARENT)]
    pieces += [(kind, variant) for kind in KINDS for variant in (PARENT, *variants[kind])]
    tasks = [{"lab": lab, "timing": scale.timing, "kind": kind, "variant": variant} for kind, variant in pieces]
    costs = list(itertools.chain.from_iterable(alone.run(costs_of, tasks, "costs")))
    names = {kind: list(names) for kind, names in variants.items()}
    whole = {"lab": lab, "timing": scale.timing, "costs": costs, "variants": names}
    (calibration,) = alone.run(calibration_of, [whole], "whole models")
    space = Space(scores, pd.DataFrame(costs), pd.DataFrame(calibration), scale.scenario, lab.layers)
    return Bench(lab, work, scale, space)


def costs_of(lab: Lab, timing: Timing, kind: str, variant: str) -> list[dict[str, Any]]:
    """Return the rows of `tables.COSTS` of one variant; nothing else must run meanwhile."""
    costs, scenario = settings_of(timing)
    return torch_engine.measure(lab.parent, kind, variant, costs, {SCENARIO: scenario}, lab.device, lab.dtype)


def calibration_of(lab: Lab, timing: Timing, costs: list[dict[str, Any]], variants: Any) -> list[dict[str, Any]]:
    """Return the rows of `tables.CALIBRATION`; nothing else must run meanwhile."""
    settings, scenario = settings_of(timing)
    architectures = torch_engine.calibration_architectures(variants, lab.layers)
    measured = torch_engine.measure_whole(
        lab.parent, architectures, settings, {SCENARIO: scenario}, lab.device, lab.dtype
    )
    return calibrate(pd.DataFrame(costs), architectures, measured)


def working_folder(page_folder: Path) -> Path:
    """Return the folder of a study's intermediate files, beside the run's other checkpoints."""
    return page_folder.parents[1] / "checkpoints" / "study_puzzle"
