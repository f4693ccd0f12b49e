"""Span-contrastive distillation, after spatial contrasting (arXiv 1610.00243): does it help over cosine and KL?"""

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
from tangram.config import Finetune, PackageFile, Readout, Section, SpanContrast, Studies
from tangram.corpus.tokens import read_tokens
from tangram.evaluation.readout import Texts, embed_texts, read_classification, read_out
from tangram.evaluation.text import compare_on_text
from tangram.finetune import finetune
from tangram.models.families import decoder_layers
from tangram.models.loading import load_model, load_tokenizer
from tangram.report.document import Figure
from tangram.report.style import number
from tangram_studies.experiments import Map, Outcome, Run, Setting, grid, words, workers
from tangram_studies.metric_learning.spans import PulledSpanContrast
from tangram_studies.plots import draw_arms, draw_series
from tangram_studies.study import Claim, Interval, Job, NotReproduced, Study

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PLAIN, FREE, PROJECTED = "cosine + KL", "+ spans contrasted", "+ spans contrasted, projected"
PULLED, MORE, LONGER = "+ spans pulled", "cosine + KL, more sequences", "cosine + KL, as long"
PROJECTION = 128
RATES = (1e-4, 3e-4)
# A cosine's gradient is a tenth of its contrast's, which divides it by a temperature of 0.1.
WEIGHTS = {FREE: (0.03, 0.1, 0.3), PROJECTED: (0.03, 0.1, 0.3), PULLED: (0.3, 1.0, 3.0)}


class Settings(Section):
    """The slices of config that this study depends on."""

    studies: Studies
    finetune: Finetune
    archive: PackageFile | None


@dataclass(frozen=True)
class Scale:
    """The size of the study: sequences that a run trains on, and that a tuning run does; texts read out."""

    sequences: int
    tuning_sequences: int
    texts: int


SCALES = {"small": Scale(8, 4, 140), "full": Scale(4_000, 1_000, 10_000)}


@dataclass(frozen=True)
class Files:
    """Where models and tokens are: checkpoint folders of parent and child, tables of `tables.CORPUS`.

    ``activations`` are the parent's, of the finetune split; without, it runs beside every training.
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
    """Return models and tokens, and the parent's last hidden states where children are judged; once per process."""
    parent = load_model(files.parent, files.dtype, files.device).requires_grad_(False)
    child = load_model(files.child, files.dtype, files.device)
    tokens = {name: read_tokens(getattr(files, name)) for name in ("finetune", "score", "heldout")}
    last = len(decoder_layers(parent))
    final = {name: StreamedActivations(parent, tokens[name], 2).hidden(last) for name in ("score", "heldout")}
    states = open_activations(files.activations, parent, tokens["finetune"], 2)
    return _Loaded(parent, child, load_tokenizer(files.parent), tokens, final, states)


class _Some:
    """The parent's hidden states of some of a split's sequences."""

    def __init__(self, states: Activations, chosen: torch.Tensor):
        self._states, self._chosen = states, chosen

    def hidden(self, layer: int) -> torch.Tensor:
        """Return one layer's input, ``(sequences, length, hidden)``."""
        return self._states.hidden(layer)[self._chosen]

    def of_sequences(self, sequences: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
        """Return some layers' inputs for some of them."""
        return self._states.of_sequences(self._chosen[sequences], layers)


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
    chosen = order.repeat(math.ceil(wanted / len(order)))[:wanted]
    kind = PulledSpanContrast if run.arm == PULLED else SpanContrast
    spans = kind(weight=run.setting["weight"], projection=PROJECTION if run.arm == PROJECTED else 0)
    once = {"epochs": 1, "batch_size": 1, "micro_batch_size": 1}
    settings = base.model_copy(update={**once, "learning_rate": run.setting["rate"], "span_contrast": spans})
    child = copy.deepcopy(loaded.child)
    states = _Some(loaded.states, chosen)
    begin = _seconds(files.device)
    curve = finetune(child, loaded.parent, states, tokens[chosen], settings, run.seed)
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


def _between(one: Outcome, other: Outcome, share: float) -> Outcome:
    """Return what lies at a share of the way from one outcome to another."""
    scores = {name: (1 - share) * value + share * other.scores[name] for name, value in one.scores.items()}
    return Outcome(scores, seconds=(1 - share) * one.seconds + share * other.seconds)


def experiment(
    study: Study, files: Files, base: Finetune, scale: Scale, seeds: int, texts: Texts | None, labels: int, mapped: Map
) -> dict[str, Setting]:
    """Tune the rate without spans, then each term's weight at that rate; repeat; record it in ``study``.

    Returns:
        The setting of each arm. `LONGER` has as many sequences as fit into the seconds of the slowest arm, mostly no
        whole number: its scores lie between those of `PLAIN` and of `MORE`, which has the next whole number.
    """
    judge = functools.partial(perform, files=files, base=base, scale=scale, texts=texts, labels=labels)

    def tune(runs: list[Run], what: str) -> dict[str, Setting]:
        found = list(zip(runs, mapped(judge, runs, f"study_span_contrast: tuning {what}"), strict=True))
        for run, outcome in found:
            name = f"{run.arm}: {words({key: value for key, value in run.setting.items() if key != 'sequences'})}"
            study.record("tuning", name, run.seed, "kl (nats/token)", outcome.scores["kl"])
        best: dict[str, tuple[float, Setting]] = {}
        for run, outcome in found:
            if run.arm not in best or outcome.scores["objective"] > best[run.arm][0]:
                best[run.arm] = outcome.scores["objective"], run.setting
        return {arm: setting for arm, (_, setting) in best.items()}

    def tuning(arm: str, **axes: Sequence[float]) -> list[Run]:
        return [Run(arm, setting, seeds, True) for setting in grid(**axes, sequences=(0,))]

    chosen = tune(tuning(PLAIN, rate=RATES, weight=(0.0,)), "rate")
    rate = (chosen[PLAIN]["rate"],)
    chosen |= tune([run for arm in WEIGHTS for run in tuning(arm, rate=rate, weight=WEIGHTS[arm])], "weights")
    runs = [Run(arm, chosen[arm], seed) for seed in range(seeds) for arm in (PLAIN, *WEIGHTS)]
    outcomes = list(zip(runs, mapped(judge, runs, f"study_span_contrast: {seeds} seeds"), strict=True))
    seconds = {arm: sorted(o.seconds for r, o in outcomes if r.arm == arm)[seeds // 2] for arm in chosen}
    affordable = scale.sequences * max(seconds.values()) / seconds[PLAIN]
    more = max(scale.sequences + 1, math.ceil(affordable))
    chosen[MORE] = {**chosen[PLAIN], "sequences": more}
    runs = [Run(MORE, chosen[MORE], seed) for seed in range(seeds)]
    longer = mapped(judge, runs, "study_span_contrast: equal seconds")
    plain = [outcome for run, outcome in outcomes if run.arm == PLAIN]
    share = (affordable - scale.sequences) / (more - scale.sequences)
    chosen[LONGER] = {**chosen[PLAIN], "sequences": affordable}
    outcomes += zip(runs, longer, strict=True)
    outcomes += [
        (Run(LONGER, chosen[LONGER], seed), _between(*pair, share))
        for seed, pair in enumerate(zip(plain, longer, strict=True))
    ]
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


def _claims(study: Study, seeds: int, labels: int, texts: Texts | None) -> list[Claim]:
    def gain(metric: str, arm: str, other: str) -> Interval:
        """Return by how much an arm is better than another, paired by seed; losses are better lower."""
        found = study.paired("finetuning", metric, arm, other)
        return Interval(-found.estimate, -found.high, -found.low) if "nats" in metric else found

    kl, nearest = "kl (nats/token)", f"nearest accuracy, {labels} labels (%)"
    rows = study.frame("finetuning")
    plain = float(rows[(rows["metric"] == kl) & (rows["arm"] == PLAIN)]["value"].mean())

    def in_kl(found: Interval, **fields: Any) -> Claim:
        """Return a claim in nats, with its size beside the KL without spans: what is certain may still be nothing."""
        size = f"{100 * found.estimate / plain:.2f} % of the {number(plain)} without spans"
        note = f"KL of the other minus KL of the first, held-out text; {size}"
        return Claim.from_interval(found, unit="nats/token", seeds=seeds, note=note, **fields)

    claims = [
        in_kl(
            gain(kl, arm, other),
            claim=f"{arm}: held-out KL at {how}",
            statement="contrasting spans brings the child nearer its parent than cosine and KL alone",
            where="section 6 names sequences as future work; the loss on spans is ours",
        )
        for arm in (FREE, PROJECTED)
        for other, how in ((PLAIN, "equal tokens"), (LONGER, "equal seconds"))
    ]
    claims.append(
        in_kl(
            gain(kl, FREE, PULLED),
            claim="the contrast, not the spans: held-out KL at equal tokens",
            statement="telling a span from others is worth more than drawing it to the parent's own",
            where="arXiv 1910.10699 on contrast; 2301.12005 matches without",
        )
    )
    if texts is None:
        return claims
    in_points = functools.partial(
        Claim.from_interval,
        unit="points",
        seeds=seeds,
        note=f"nearest of {labels} labeled texts a class, {len(texts.classes)} classes",
    )
    claims += [
        in_points(
            gain(nearest, arm, LONGER),
            claim=f"{arm}: few-label readout at equal seconds",
            statement="contrasting spans keeps more of what the hidden states tell of a text",
            where="arXiv 1910.10699 and 2009.14167 report such gains for other models",
        )
        for arm in (FREE, PROJECTED)
    ]
    claims.append(
        in_points(
            gain(nearest, FREE, PULLED),
            claim="the contrast, not the spans: few-label readout at equal tokens",
            statement="telling a span from others keeps more of a text than drawing it to the parent's own",
            where="as above",
        )
    )
    return claims


def run_study(job: Job) -> Study:
    """Run the study as the rule asks; its threads are trainings side by side."""
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
        settings: config section `studies`; only its scale does not count.
        scale: the size.
        base: config section `finetune`.
        files: models and tokens.
        texts: a classification to read out; left out where there is no archive of tasks.
        processes: trainings side by side.
    """
    seeds, labels = settings.seeds, 5
    if texts is not None:
        some = torch.randperm(len(texts.texts), generator=torch.Generator().manual_seed(0))[: scale.texts]
        texts = Texts(tuple(texts.texts[i] for i in some.tolist()), texts.labels[some], texts.classes)
    study = Study("span_contrast", "Span-contrastive distillation, after spatial contrasting", "1610.00243")
    with workers(processes) as mapped:
        chosen = experiment(study, files, base, scale, seeds, texts, labels, mapped)
    study.claims = _claims(study, seeds, labels, texts)
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
    study.figures = [
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
    used = {arm: study.over_seeds("finetuning", "training (s)", arm).estimate for arm in arms}
    study.notes = [
        f"The primary target's best child, finetuned on {scale.sequences} sequences of the finetune split, drawn and "
        "ordered by the seed, one a step. Seeds share the child and the text they draw from: intervals speak of this "
        "child.",
        f"'{FREE}' compares hidden states, '{PROJECTED}' does so through a learned head of {PROJECTION} dimensions. "
        f"'{PULLED}' is the control: the same spans, one minus their cosine to the parent's own, no others.",
        "Chosen on the score split with a seed of its own, the rate without spans, then each term's weight: "
        + "; ".join(f"{arm}: rate {s['rate']:g}, weight {s['weight']:g}" for arm, s in chosen.items())
        + ".",
        "Seconds of training, mean, of one thread: "
        + "; ".join(f"{arm} {value:.1f}" for arm, value in used.items())
        + f". '{LONGER}' would have {chosen[LONGER]['sequences']:.2f} sequences: interpolated, seed by seed, between "
        f"{scale.sequences} and {chosen[MORE]['sequences']:g} of them.",
        "Spans of 4 to 32 tokens, 16 a sequence, at three depths, contrasted within their own sequence; "
        "hidden states standardized by the parent's own mean and deviation; overlapping and identical spans are not "
        "contrasted.",
    ]
    study.not_reproduced = [
        NotReproduced(
            "longer training and larger models",
            "a few thousand tokens are what two cores can train on",
            "snakemake -c1 study_span_contrast --config device=cuda 'studies={scale: full}' "
            "'corpus={finetune: {tokens: 1048576}}'; or finetune.span_contrast.weight in a run",
        )
    ]
    return study
