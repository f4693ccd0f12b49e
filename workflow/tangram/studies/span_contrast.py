"""Span-contrastive distillation, after spatial contrasting (arXiv 1610.00243): does it help over cosine and KL?"""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tangram.activations import StreamedActivations
from tangram.checkpoint import load_model, load_tokenizer
from tangram.config import Finetune, Readout, SpanContrast, Studies
from tangram.corpus import read_tokens
from tangram.distill.end_to_end import finetune
from tangram.evaluation.readout import Texts, embed_texts, read_out
from tangram.evaluation.text import compare_on_text
from tangram.families import decoder_layers
from tangram.report.document import Figure
from tangram.studies.experiments import Map, Outcome, Run, Setting, grid, words, workers
from tangram.studies.pictures import draw_arms, draw_lines
from tangram.studies.study import Claim, Interval, NotReproduced, Study, interval

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PLAIN, FREE, PROJECTED, LONGER = "cosine + KL", "+ spans", "+ spans, projected", "cosine + KL, as long"
PROJECTION = 128
RATES, WEIGHTS = (1e-4, 3e-4), (0.03, 0.1, 0.3)


@dataclass(frozen=True)
class Scale:
    """The size of the study: sequences that a run trains on, and that a tuning run does; texts read out."""

    sequences: int
    tuning_sequences: int
    texts: int


SCALES = {"small": Scale(16, 6, 280), "full": Scale(4_000, 1_000, 10_000)}


@dataclass(frozen=True)
class Files:
    """Where models and tokens are: checkpoint folders of parent and child, tables of `tables.CORPUS`."""

    parent: str
    child: str
    finetune: str
    score: str
    heldout: str
    device: str
    dtype: str


@dataclass(frozen=True)
class _Loaded:
    parent: PreTrainedModel
    child: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    tokens: dict[str, torch.Tensor]
    final: dict[str, torch.Tensor]


@functools.lru_cache(maxsize=1)
def _load(files: Files) -> _Loaded:
    """Return models and tokens, and the parent's last hidden states where children are judged; once per process."""
    parent = load_model(files.parent, files.dtype, files.device).requires_grad_(False)
    child = load_model(files.child, files.dtype, files.device)
    tokens = {name: read_tokens(getattr(files, name)) for name in ("finetune", "score", "heldout")}
    last = len(decoder_layers(parent))
    final = {name: StreamedActivations(parent, tokens[name], 2).hidden(last) for name in ("score", "heldout")}
    return _Loaded(parent, child, load_tokenizer(files.parent), tokens, final)


class _Held:
    """The parent's hidden states of a run's sequences, in memory: its forward pass is no part of the seconds."""

    def __init__(self, model: PreTrainedModel, tokens: torch.Tensor):
        stream = StreamedActivations(model, tokens, 2)
        self._states = [stream.hidden(layer) for layer in range(len(decoder_layers(model)) + 1)]

    def hidden(self, layer: int) -> torch.Tensor:
        """Return one layer's input, ``(sequences, length, hidden)``."""
        return self._states[layer]

    def of_sequences(self, sequences: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
        """Return some layers' inputs for some sequences."""
        return [self._states[layer][sequences] for layer in layers]


def _seconds(device: str) -> float:
    """Return a clock: on a CPU of this process' one thread, which others do not slow; else the wall's."""
    return time.process_time() if device == "cpu" else time.monotonic()


def perform(run: Run, files: Files, base: Finetune, scale: Scale, texts: Texts | None, labels: int) -> Outcome:
    """Finetune the child on its seed's sequences, and compare it with its parent on text that neither saw.

    Scores: ``kl`` and ``lm_loss`` in nats per token, negated ``objective``, and ``nearest``, ``linear`` accuracies of
    classes of texts from a few labels.

    Args:
        run: its setting has ``rate``, ``weight`` and ``sequences``, which is 0 for the scale's number.
        files: models and tokens.
        base: config section `finetune`; all but its rate and its spans is kept.
        scale: sizes.
        texts: what is read out; nothing without.
        labels: per class.
    """
    loaded = _load(files)
    tokens = loaded.tokens["finetune"]
    wanted = int(run.setting["sequences"]) or (scale.tuning_sequences if run.tuning else scale.sequences)
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(run.seed))
    chosen = tokens[order.repeat(math.ceil(wanted / len(order)))[:wanted]]
    spans = SpanContrast(weight=run.setting["weight"], projection=PROJECTION if run.arm == PROJECTED else 0)
    settings = base.model_copy(
        update={
            "learning_rate": run.setting["rate"],
            "span_contrast": spans,
            "epochs": 1,
            "batch_size": 1,
            "micro_batch_size": 1,
        }
    )
    child = copy.deepcopy(loaded.child)
    states = _Held(loaded.parent, chosen)
    begin = _seconds(files.device)
    curve = finetune(child, loaded.parent, states, chosen, settings, run.seed)
    outcome = Outcome({}, seconds=_seconds(files.device) - begin)
    child.eval()
    where = "score" if run.tuning else "heldout"
    with torch.inference_mode():
        found = compare_on_text(child, loaded.parent, loaded.final[where], loaded.tokens[where], 2, run.arm)
    outcome.scores = {"kl": found["kl"].mean().item(), "lm_loss": found["loss"].mean().item()}
    outcome.scores["objective"] = -outcome.scores["kl"]
    outcome.curve = [(row["step"], row["value"]) for row in curve if row["metric"] == "kl"]
    if texts is not None and not run.tuning:
        readout = Readout(labels=(labels,), draws=5)
        embeddings = embed_texts(child, loaded.tokenizer, texts.texts, 1.0, 32, run.arm)
        read = read_out(embeddings, texts.labels, readout, seed=0)
        for metric in ("nearest", "linear"):
            outcome.scores[metric] = read[f"{metric}_accuracy, {labels} labels"].mean().item()
    return outcome


def experiment(
    study: Study, files: Files, base: Finetune, scale: Scale, seeds: int, texts: Texts | None, labels: int, mapped: Map
) -> dict[str, Setting]:
    """Tune the rate without spans, then each form's weight at that rate; repeat; record it in ``study``.

    Returns:
        The setting of each arm; that of `LONGER` trains on as many more sequences as its seconds allow.
    """
    train = functools.partial(perform, files=files, base=base, scale=scale, texts=texts, labels=labels)

    def tune(arm: str, settings: list[Setting]) -> list[tuple[Run, Outcome]]:
        runs = [Run(arm, setting, seeds, True) for setting in settings]
        found = list(zip(runs, mapped(train, runs, f"study_span_contrast: tuning {arm}"), strict=True))
        for run, outcome in found:
            name = f"{arm}: {words({key: value for key, value in run.setting.items() if key != 'sequences'})}"
            study.record("tuning", name, run.seed, "kl (nats/token)", outcome.scores["kl"])
        return found

    def best(found: list[tuple[Run, Outcome]]) -> Setting:
        return max(found, key=lambda pair: pair[1].scores["objective"])[0].setting

    plain = tune(PLAIN, grid(rate=RATES, weight=(0.0,), sequences=(0,)))
    chosen = {PLAIN: best(plain)}
    forms = {}
    for arm in (FREE, PROJECTED):
        forms[arm] = tune(arm, grid(rate=(chosen[PLAIN]["rate"],), weight=WEIGHTS, sequences=(0,)))
        chosen[arm] = best(forms[arm])
    runs = [Run(arm, chosen[arm], seed) for seed in range(seeds) for arm in (PLAIN, FREE, PROJECTED)]
    outcomes = list(zip(runs, mapped(train, runs, f"study_span_contrast: {seeds} seeds"), strict=True))
    seconds = {arm: sorted(o.seconds for r, o in outcomes if r.arm == arm)[seeds // 2] for arm in chosen}
    ratio = max(seconds[FREE], seconds[PROJECTED]) / seconds[PLAIN]
    more = max(scale.sequences, math.ceil(scale.sequences * ratio))  # rounded to the plain arm's favour
    chosen[LONGER] = {**chosen[PLAIN], "sequences": more}
    runs = [Run(LONGER, chosen[LONGER], seed) for seed in range(seeds)]
    outcomes += list(zip(runs, mapped(train, runs, "study_span_contrast: equal seconds"), strict=True))
    units = {"kl": "kl (nats/token)", "lm_loss": "lm_loss (nats/token)"}
    for run, outcome in outcomes:
        for score, value in outcome.scores.items():
            if score != "objective":
                percent = score not in units
                metric = units.get(score, f"{score} accuracy, {labels} labels (%)")
                study.record("finetuning", run.arm, run.seed, metric, 100 * value if percent else value)
        study.record("finetuning", run.arm, run.seed, "training (s)", outcome.seconds)
        for step, value in outcome.curve:
            study.record("curve", run.arm, run.seed, "training kl (nats/token)", value, step)
    return chosen


def span_contrast(settings: Studies, base: Finetune, files: Files, texts: Texts | None, processes: int) -> Study:
    """Return the finished study.

    Args:
        settings: config section `studies`.
        base: config section `finetune`.
        files: models and tokens.
        texts: a classification to read out; left out where there is no archive of tasks.
        processes: trainings side by side.
    """
    scale, seeds, labels = SCALES[settings.scale], settings.seeds, 5
    if texts is not None:
        some = torch.randperm(len(texts.texts), generator=torch.Generator().manual_seed(0))[: scale.texts]
        texts = Texts(tuple(texts.texts[i] for i in some.tolist()), texts.labels[some], texts.classes)
    study = Study("span_contrast", "Span-contrastive distillation, after spatial contrasting", "1610.00243")
    with workers(processes) as mapped:
        chosen = experiment(study, files, base, scale, seeds, texts, labels, mapped)
    rows = study.frame("finetuning")

    def gain(metric: str, arm: str, other: str) -> Interval:
        """Return by how much an arm is better than another, paired by seed; losses are better lower."""
        found = study.paired("finetuning", metric, arm, other)
        return Interval(-found.estimate, -found.high, -found.low) if "nats" in metric else found

    kl, nearest = "kl (nats/token)", f"nearest accuracy, {labels} labels (%)"
    for arm in (FREE, PROJECTED):
        for other, how in ((PLAIN, "equal tokens"), (LONGER, "equal seconds")):
            study.claims.append(
                Claim.from_interval(
                    gain(kl, arm, other),
                    claim=f"{arm}: held-out KL at {how}",
                    statement="contrasting spans brings the child nearer its parent than cosine and KL alone",
                    where="section 6 names sequences as future work; the loss on spans is ours",
                    unit="nats/token",
                    seeds=seeds,
                    note="KL without the term minus KL with it, held-out text",
                )
            )
        if texts is not None:
            study.claims.append(
                Claim.from_interval(
                    gain(nearest, arm, LONGER),
                    claim=f"{arm}: few-label readout at equal seconds",
                    statement="contrasting spans keeps more of what the hidden states tell of a text",
                    where="arXiv 1910.10699 and 2009.14167 report such gains for other models",
                    unit="points",
                    seeds=seeds,
                    note=f"nearest of {labels} labelled texts a class, 7 intents",
                )
            )
    arms = [PLAIN, FREE, PROJECTED, LONGER]
    panels = {"KL(parent ‖ child), held out": kl, "few labels, nearest, %": nearest}
    shown = {
        title: {
            arm: interval(rows[(rows["metric"] == metric) & (rows["arm"] == arm)]["value"].to_numpy()) for arm in arms
        }
        for title, metric in panels.items()
        if metric in set(rows["metric"])
    }
    curves = study.frame("curve")
    lines = {
        arm: [
            (step, interval(curves[(curves["arm"] == arm) & (curves["x"] == step)]["value"].to_numpy()))
            for step in sorted(set(curves[curves["arm"] == arm]["x"]))
        ]
        for arm in (PLAIN, FREE, PROJECTED)
    }
    study.figures = [
        Figure(
            draw_arms("span-arms", "Every arm's KL and readout.", shown, ""),
            "Bars are 95 % intervals over seeds, not paired.",
            "After finetuning",
        ),
        Figure(
            draw_lines("span-curves", "KL while training.", lines, "step", "KL on the batch, nats/token"),
            "KL on each step's own sequence; bands are 95 % intervals over seeds.",
            "Learning curves",
        ),
    ]
    used = {arm: rows[(rows["arm"] == arm) & (rows["metric"] == "training (s)")]["value"].mean() for arm in arms}
    study.notes = [
        f"The headline's best child, finetuned on {scale.sequences} sequences of the finetune split, drawn and ordered "
        f"by the seed, one a step. Seeds share the child and the text they draw from: intervals speak of this child.",
        "Chosen on the score split with a seed of its own: "
        + "; ".join(f"{arm}: rate {s['rate']:g}, weight {s['weight']:g}" for arm, s in chosen.items())
        + ".",
        "Seconds of training, mean, of one thread: "
        + "; ".join(f"{arm} {value:.1f}" for arm, value in used.items())
        + f". '{LONGER}' has {chosen[LONGER]['sequences']:g} sequences, rounded up: to the plain arm's favour.",
        "Spans of 4 to 32 tokens, 16 a sequence, at three depths; hidden states standardised by the parent's own mean "
        "and deviation; overlapping and identical spans are not contrasted.",
    ]
    study.not_reproduced = [
        NotReproduced(
            "longer training and larger models",
            "a few thousand tokens are what two cores can train on",
            "studies.scale: full, device: cuda, a larger corpus.finetune; or finetune.span_contrast.weight in a run",
        )
    ]
    return study
