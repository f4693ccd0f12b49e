"""Span-contrastive distillation, after spatial contrasting (arXiv 1610.00243), compared with cosine and KL losses."""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tangram.activations import Activations, StreamedActivations, open_activations
from tangram.archives import fetch_archive
from tangram.cli import model_folder, use_threads
from tangram.config import Budget, Finetune, PackageFile, Readout, Section, SpanContrast, Studies
from tangram.corpus.tokens import read_tokens
from tangram.evaluation.readout import Texts, embed_texts, read_classification, read_out
from tangram.evaluation.text import compare_on_text
from tangram.finetune import finetune
from tangram.models.families import decoder_layers
from tangram.models.loading import load_model, load_tokenizer
from tangram.report.document import Figure, Table
from tangram.report.style import number
from tangram_studies.experiments import Map, Outcome, Run, Setting, describe, grid, workers
from tangram_studies.metric_learning.spans import PulledSpanContrast
from tangram_studies.plots import draw_arms, draw_series
from tangram_studies.study import Claim, Interval, Job, NotReproduced, Study

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PLAIN, FREE, PROJECTED = "cosine + KL", "+ spans contrasted", "+ spans contrasted, projected"
PULLED, MORE, LONGER = "+ spans pulled", "cosine + KL, more sequences", "cosine + KL, as long"
PROJECTION = 128
RATES = (1e-4, 3e-4)
# The contrastive loss divides cosines by a temperature of 0.1, so the weights of plain cosines are ten times larger.
WEIGHTS = {FREE: (0.03, 0.1, 0.3), PROJECTED: (0.03, 0.1, 0.3), PULLED: (0.3, 1.0, 3.0)}


class Settings(Section):
    """The slices of config that this study depends on."""

    studies: Studies
    finetune: Finetune
    archive: PackageFile | None


@dataclass(frozen=True)
class Scale:
    """The size of the study: training sequences of a run and of a tuning run, and texts of the readout."""

    sequences: int
    tuning_sequences: int
    texts: int


SCALES = {"small": Scale(8, 4, 140), "full": Scale(4_000, 1_000, 10_000)}


@dataclass(frozen=True)
class Files:
    """Paths of checkpoint folders of parent and child, and of tables of `tables.CORPUS`; device and dtype.

    ``activations`` is the cache of the parent's activations on the finetune split; without it every training runs the
    parent.
    """

    parent: str
    child: str
    finetune: str
    score: str
    heldout: str
    device: str
    dtype: str
    activations: str | None = None


@dataclass(frozen=True)
class _Loaded:
    parent: PreTrainedModel
    child: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    tokens: dict[str, torch.Tensor]
    final: dict[str, torch.Tensor]
    states: Activations


@functools.lru_cache(maxsize=1)
def _load(files: Files) -> _Loaded:
    """Return models, tokens, and the parent's last hidden states on the evaluation splits; once per process."""
    parent = load_model(files.parent, files.dtype, files.device).requires_grad_(False)
    child = load_model(files.child, files.dtype, files.device)
    tokens = {name: read_tokens(getattr(files, name)) for name in ("finetune", "score", "heldout")}
    last = len(decoder_layers(parent))
    final = {name: StreamedActivations(parent, tokens[name], 2).hidden(last) for name in ("score", "heldout")}
    states = open_activations(files.activations, parent, tokens["finetune"], 2)
    return _Loaded(parent, child, load_tokenizer(files.parent), tokens, final, states)


class _Subset:
    """The parent's hidden states of a subset of a split's sequences."""

    def __init__(self, states: Activations, chosen: torch.Tensor):
        self._states, self._chosen = states, chosen

    def hidden(self, layer: int) -> torch.Tensor:
        """Return one layer's input, ``(sequences, length, hidden)``."""
        return self._states.hidden(layer)[self._chosen]

    def of_sequences(self, sequences: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
        """Return the inputs of ``layers`` for ``sequences``, indices into the subset."""
        return self._states.of_sequences(self._chosen[sequences], layers)


def _seconds(device: str) -> float:
    """Return CPU seconds of this process on a CPU, since other processes share it; else monotonic seconds."""
    return time.process_time() if device == "cpu" else time.monotonic()


def perform(run: Run, files: Files, base: Finetune, scale: Scale, texts: Texts | None, labels: int) -> Outcome:
    """Finetune the child on its seed's sequences, and compare it with its parent on held-out text.

    Scores: ``kl`` and ``lm_loss`` in nats per token, ``objective`` (the negated KL), and ``nearest`` and ``linear``
    accuracies of few-label readouts of text classes.

    Args:
        run: a run whose setting has ``rate``, ``weight`` and ``sequences`` (0 for the scale's number).
        files: models and tokens.
        base: config section `finetune`, of which rate, batch size, budget and spans are replaced.
        scale: size of the study.
        texts: texts of the readout; None for no readout.
        labels: labels per class.
    """
    loaded = _load(files)
    tokens = loaded.tokens["finetune"]
    count = int(run.setting["sequences"]) or (scale.tuning_sequences if run.tuning else scale.sequences)
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(run.seed))
    chosen = order.repeat(math.ceil(count / len(order)))[:count]
    kind = PulledSpanContrast if run.arm == PULLED else SpanContrast
    spans = kind(weight=run.setting["weight"], projection=PROJECTION if run.arm == PROJECTED else 0)
    once = {"budget": Budget(epochs=1), "batch_size": 1, "micro_batch_size": 1}
    settings = base.model_copy(update={**once, "learning_rate": run.setting["rate"], "span_contrast": spans})
    child = copy.deepcopy(loaded.child)
    states = _Subset(loaded.states, chosen)
    begin = _seconds(files.device)
    curve = finetune(child, loaded.parent, states, tokens[chosen], settings, run.seed)
    outcome = Outcome({}, seconds=_seconds(files.device) - begin)
    child.eval()
    split = "score" if run.tuning else "heldout"
    with torch.inference_mode():
        metrics = compare_on_text(child, loaded.parent, loaded.final[split], loaded.tokens[split], 2, run.arm)
    outcome.scores = {"kl": metrics["kl"].mean().item(), "lm_loss": metrics["loss"].mean().item()}
    outcome.scores["objective"] = -outcome.scores["kl"]
    outcome.curve = [(row["step"], row["value"]) for row in curve if row["metric"] == "kl"]
    if texts is not None and not run.tuning:
        readout = Readout(labels=(labels,), draws=5)
        embeddings = embed_texts(child, loaded.tokenizer, texts.texts, 1.0, 32, run.arm)
        accuracies = read_out(embeddings, texts.labels, readout, seed=0)
        for metric in ("nearest", "linear"):
            outcome.scores[metric] = accuracies[f"{metric}_accuracy, {labels} labels"].mean().item()
    return outcome


def _interpolate(start: Outcome, end: Outcome, share: float) -> Outcome:
    """Return the linear interpolation of two outcomes; 0 is ``start``, 1 is ``end``."""
    scores = {name: (1 - share) * value + share * end.scores[name] for name, value in start.scores.items()}
    return Outcome(scores, seconds=(1 - share) * start.seconds + share * end.seconds)


def experiment(
    study: Study,
    files: Files,
    base: Finetune,
    scale: Scale,
    seeds: int,
    texts: Texts | None,
    labels: int,
    parallel_map: Map,
) -> dict[str, Setting]:
    """Tune the rate without spans, then each term's weight at that rate; repeat; record everything in ``study``.

    Returns:
        The setting of each arm. `LONGER` trains for the seconds of the slowest arm. Its number of sequences is usually
        not an integer, so its scores are interpolated between those of `PLAIN` and of `MORE`, the next integer.
    """
    run_one = functools.partial(perform, files=files, base=base, scale=scale, texts=texts, labels=labels)

    def tune(runs: list[Run], hyperparameter: str) -> dict[str, Setting]:
        tuned = parallel_map(run_one, runs, f"study_span_contrast: tuning {hyperparameter}")
        for run, outcome in zip(runs, tuned, strict=True):
            name = f"{run.arm}: {describe({key: value for key, value in run.setting.items() if key != 'sequences'})}"
            study.record("tuning", name, run.seed, "kl (nats/token)", outcome.scores["kl"])
        best: dict[str, tuple[float, Setting]] = {}
        for run, outcome in zip(runs, tuned, strict=True):
            if run.arm not in best or outcome.scores["objective"] > best[run.arm][0]:
                best[run.arm] = outcome.scores["objective"], run.setting
        return {arm: setting for arm, (_, setting) in best.items()}

    def tuning(arm: str, **axes: Sequence[float]) -> list[Run]:
        return [Run(arm, setting, seeds, True) for setting in grid(**axes, sequences=(0,))]

    chosen = tune(tuning(PLAIN, rate=RATES, weight=(0.0,)), "rate")
    rate = (chosen[PLAIN]["rate"],)
    chosen |= tune([run for arm in WEIGHTS for run in tuning(arm, rate=rate, weight=WEIGHTS[arm])], "weights")
    runs = [Run(arm, chosen[arm], seed) for seed in range(seeds) for arm in (PLAIN, *WEIGHTS)]
    outcomes = list(zip(runs, parallel_map(run_one, runs, f"study_span_contrast: {seeds} seeds"), strict=True))
    seconds = {arm: sorted(o.seconds for r, o in outcomes if r.arm == arm)[seeds // 2] for arm in chosen}
    affordable = scale.sequences * max(seconds.values()) / seconds[PLAIN]
    more = max(scale.sequences + 1, math.ceil(affordable))
    chosen[MORE] = {**chosen[PLAIN], "sequences": more}
    runs = [Run(MORE, chosen[MORE], seed) for seed in range(seeds)]
    longer = parallel_map(run_one, runs, "study_span_contrast: equal seconds")
    plain = [outcome for run, outcome in outcomes if run.arm == PLAIN]
    share = (affordable - scale.sequences) / (more - scale.sequences)
    chosen[LONGER] = {**chosen[PLAIN], "sequences": affordable}
    outcomes += zip(runs, longer, strict=True)
    outcomes += [
        (Run(LONGER, chosen[LONGER], seed), _interpolate(*pair, share))
        for seed, pair in enumerate(zip(plain, longer, strict=True))
    ]
    _record(study, outcomes, labels)
    return chosen


def _record(study: Study, outcomes: Sequence[tuple[Run, Outcome]], labels: int) -> None:
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


def _claims(study: Study, seeds: int, labels: int, texts: Texts | None) -> list[Claim]:
    kl = "kl (nats/token)"

    def gain(arm: str, baseline: str) -> Interval:
        """Return an arm's gain in KL over a baseline, paired by seed; a lower KL is a gain."""
        difference = study.paired("finetuning", kl, arm, baseline)
        return Interval(-difference.estimate, -difference.high, -difference.low)

    rows = study.frame("finetuning")
    plain = float(rows[(rows["metric"] == kl) & (rows["arm"] == PLAIN)]["value"].mean())

    def in_kl(difference: Interval, **fields: Any) -> Claim:
        """Return a claim in nats, with its size relative to the KL without spans."""
        size = f"{100 * difference.estimate / plain:.2f} % of the {number(plain)} without spans"
        note = f"KL of the other minus KL of the first, held-out text; {size}"
        return Claim.from_interval(difference, unit="nats/token", seeds=seeds, note=note, **fields)

    claims = [
        in_kl(
            gain(arm, other),
            claim=f"{arm}: held-out KL at {how}",
            statement="contrasting spans brings the child nearer its parent than cosine and KL alone",
            where="section 6 names sequences as future work; the loss on spans is ours",
        )
        for arm in (FREE, PROJECTED)
        for other, how in ((PLAIN, "equal tokens"), (LONGER, "equal seconds"))
    ]
    claims.append(
        in_kl(
            gain(FREE, PULLED),
            claim="the contrast, not the spans: held-out KL at equal tokens",
            statement="contrasting a span with others is worth more than training it towards the parent's span",
            where="arXiv 1910.10699 on contrast; 2301.12005 matches without",
        )
    )
    return claims if texts is None else claims + _readout_claims(study, seeds, labels, len(texts.classes))


def _readout_claims(study: Study, seeds: int, labels: int, classes: int) -> list[Claim]:
    metric = f"nearest accuracy, {labels} labels (%)"
    in_points = functools.partial(
        Claim.from_interval,
        unit="points",
        seeds=seeds,
        note=f"nearest of {labels} labeled texts a class, {classes} classes",
    )
    claims = [
        in_points(
            study.paired("finetuning", metric, arm, LONGER),
            claim=f"{arm}: few-label readout at equal seconds",
            statement="contrasting spans preserves more information on a text in the hidden states",
            where="arXiv 1910.10699 and 2009.14167 report such gains for other models",
        )
        for arm in (FREE, PROJECTED)
    ]
    claims.append(
        in_points(
            study.paired("finetuning", metric, FREE, PULLED),
            claim="the contrast, not the spans: few-label readout at equal tokens",
            statement="contrasting a span preserves more information on a text than training it towards the parent's",
            where="as above",
        )
    )
    return claims


def run_study(job: Job) -> Study:
    """Run the study for the rule; its threads run parallel trainings."""
    device, inputs = job.runtime.device, job.inputs
    use_threads(1, device=device)
    sections = Settings.model_validate_json(job.settings)
    texts = None
    if sections.archive is not None:
        texts = read_classification(fetch_archive(sections.archive), "intent_recognition")
    models = (model_folder(inputs["parent"]), model_folder(inputs["child"]))
    tokens = (inputs["corpus"], inputs["score"], inputs["heldout"])
    files = Files(*models, *tokens, device, job.runtime.dtype, inputs.get("activations"))
    studies = sections.studies
    study = reproduce(studies, SCALES[studies.scale], sections.finetune, files, texts, job.runtime.threads)
    study.about = f"scale {studies.scale}, {studies.seeds} seeds"
    return study


def reproduce(
    settings: Studies, scale: Scale, base: Finetune, files: Files, texts: Texts | None, processes: int
) -> Study:
    """Return the finished study.

    Args:
        settings: config section `studies`; ``scale`` replaces its scale.
        scale: size of the study.
        base: config section `finetune`.
        files: models and tokens.
        texts: a classification task for readouts; None without an archive of tasks.
        processes: parallel trainings.
    """
    seeds, labels = settings.seeds, 5
    if texts is not None:
        subset = torch.randperm(len(texts.texts), generator=torch.Generator().manual_seed(0))[: scale.texts]
        texts = Texts(tuple(texts.texts[i] for i in subset.tolist()), texts.labels[subset], texts.classes)
    study = Study("span_contrast", "Span-contrastive distillation, after spatial contrasting", "1610.00243")
    with workers(processes) as parallel_map:
        chosen = experiment(study, files, base, scale, seeds, texts, labels, parallel_map)
    study.claims = _claims(study, seeds, labels, texts)
    study.figures = _figures(study, scale, labels, texts)
    study.notes = _notes(study, scale, chosen)
    study.not_reproduced = [
        NotReproduced(
            "longer training and larger models",
            "two cores can train on a few thousand tokens only",
            "snakemake -c1 study_span_contrast --config device=cuda 'studies={scale: full}' "
            "'corpus={finetune: {tokens: 1048576}}'; or finetune.span_contrast.weight in a run",
        )
    ]
    return study


def _figures(study: Study, scale: Scale, labels: int, texts: Texts | None) -> list[Figure | Table]:
    arms = [PLAIN, *WEIGHTS, LONGER]
    panels = {"KL(parent ‖ child), held out": "kl (nats/token)"}
    if texts is not None:
        panels["few labels, nearest, %"] = f"nearest accuracy, {labels} labels (%)"
    shown = {
        title: {arm: study.over_seeds("finetuning", metric, arm) for arm in arms} for title, metric in panels.items()
    }
    lines = {
        arm: [
            (step, study.over_seeds("curve", "training kl (nats/token)", arm, step))
            for step in range(0, scale.sequences, max(1, scale.sequences // 25))
        ]
        for arm in (PLAIN, *WEIGHTS)
    }
    return [
        Figure(
            draw_arms("span-arms", "Every arm's KL and readout.", shown, ""),
            "Bars are 95 % intervals over seeds, not paired.",
            "After finetuning",
        ),
        Figure(
            draw_series("span-curves", "KL while training.", lines, "step", "KL on the batch, nats/token"),
            "KL on each step's own sequence; bands are 95 % intervals over seeds.",
            "Learning curves",
        ),
    ]


def _notes(study: Study, scale: Scale, chosen: dict[str, Setting]) -> list[str]:
    arms = [PLAIN, *WEIGHTS, LONGER]
    seconds = {arm: study.over_seeds("finetuning", "training (s)", arm).estimate for arm in arms}
    return [
        f"The primary target's best child, finetuned on {scale.sequences} sequences of the finetune split, drawn and "
        "ordered by the seed, one a step. Seeds share the child and the source of text: intervals are for this "
        "child.",
        f"'{FREE}' compares hidden states, '{PROJECTED}' does so through a learned head of {PROJECTION} dimensions. "
        f"'{PULLED}' is the control: one minus the cosine of the same spans, without negatives.",
        "Tuned on the score split with a separate seed, first the rate without spans, then each term's weight: "
        + "; ".join(f"{arm}: rate {s['rate']:g}, weight {s['weight']:g}" for arm, s in chosen.items())
        + ".",
        "Seconds of training, mean, of one thread: "
        + "; ".join(f"{arm} {value:.1f}" for arm, value in seconds.items())
        + f". '{LONGER}' would have {chosen[LONGER]['sequences']:.2f} sequences: interpolated, seed by seed, between "
        f"{scale.sequences} and {chosen[MORE]['sequences']:g} of them.",
        "Spans of 4 to 32 tokens, 16 a sequence, at three depths, contrasted within their own sequence; "
        "hidden states standardized by the parent's mean and deviation; overlapping and identical spans are not "
        "contrasted.",
    ]
