"""Deep unsupervised learning through spatial contrasting (arXiv 1610.00243): pretraining against none."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from tangram.cli import use_threads
from tangram.config import Studies
from tangram.evaluation.classifiers import draw_per_class, linear_accuracy, nearest_neighbor_accuracy
from tangram.report.document import Figure
from tangram_studies.experiments import (
    Map,
    Outcome,
    Run,
    Setting,
    Split,
    command,
    grid,
    load_splits,
    stopwatch,
    workers,
)
from tangram_studies.metric_learning import baselines
from tangram_studies.metric_learning.losses import spatial_contrasting_loss
from tangram_studies.metric_learning.networks import ConvNet, spatial_layers
from tangram_studies.metric_learning.samplers import sample_regions, shift_and_mirror
from tangram_studies.metric_learning.training import StepLoss, embed, fit
from tangram_studies.plots import draw_filters, draw_maps, draw_series, flat
from tangram_studies.study import Claim, Interval, Job, NotReproduced, Study, interval

WINDOWS, CROPS = "spatial contrasting, windows", "spatial contrasting, crops"
MODERN, SCRATCH, PIXELS = "NT-Xent of two views", "from scratch", "raw pixels"
ARMS = (WINDOWS, CROPS, MODERN, SCRATCH)
CLASSES = ("aeroplane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "lorry")
MAPPED = 300
WINDOW, CROP, VIEW = 3, 16, 24  # sides in the 8 x 8 map (WINDOW) and in the 32 x 32 image (CROP, VIEW)
GRID = 2  # side of the pooled map, the input of readouts and of the classifier


@dataclass(frozen=True)
class Scale:
    """The size of the study; every pretraining arm sees the same images per step."""

    validation: int
    test: int
    pretraining_steps: int
    pretraining_batch: int
    finetuning_steps: int
    finetuning_batch: int
    width: int
    readout: int  # maximum number of labeled images of a readout of frozen features
    labels: tuple[int, ...]


SCALES = {
    "small": Scale(1_000, 2_000, 300, 128, 150, 64, 8, 3_000, (100, 500, 2_000)),
    "full": Scale(2_000, 10_000, 30_000, 256, 20_000, 128, 96, 30_000, (100, 500, 2_000, 4_000)),
}
PRETRAINING = {
    WINDOWS: grid(rate=(1e-3, 5e-3)),
    CROPS: grid(rate=(1e-3, 5e-3)),
    MODERN: grid(rate=(1e-3, 5e-3)),
    SCRATCH: grid(rate=(0.0,)),
}
RATES = (1e-3, 3e-3, 1e-2)  # learning rates of finetuning, for every arm and number of labels
Chosen = Mapping[str, Mapping[int, tuple[float, ...]]]


def _views(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return a view of each image: a random region, mirroring, and contrast and brightness per channel."""
    view = shift_and_mirror(sample_regions(images, VIEW, generator), 0, True, generator)
    shape = (len(images), images.shape[1], 1, 1)
    contrast, brightness = (torch.rand(shape, generator=generator).to(images.device) for _ in range(2))
    return view * (0.6 + 0.8 * contrast) + 0.8 * (brightness - 0.5)


def _pretraining_loss(arm: str, net: ConvNet, projection: torch.nn.Module, images: torch.Tensor) -> StepLoss:
    """Return the loss of a pretraining step.

    ``windows`` is algorithm 1 of the paper: one forward pass, then two windows of each image's last map. ``crops``
    follows its text: two patches of each image are inputs of the net. A region's embedding is the mean over positions.
    """

    def loss(indices: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        batch = images[(indices % len(images)).to(images.device)]
        if arm == WINDOWS:
            maps = net.features(batch)
            first, second = (sample_regions(maps, WINDOW, generator).mean((2, 3)) for _ in range(2))
            return spatial_contrasting_loss(first, second), {}
        cut = _views if arm == MODERN else functools.partial(_crop, size=CROP)
        both = torch.cat([cut(batch, generator=generator), cut(batch, generator=generator)])
        first, second = net.features(both).mean((2, 3)).chunk(2)
        if arm == MODERN:
            return baselines.nt_xent(projection(first), projection(second)), {}
        return spatial_contrasting_loss(first, second), {}

    return loss


def _crop(images: torch.Tensor, generator: torch.Generator, size: int) -> torch.Tensor:
    return sample_regions(images, size, generator)


def _classification_loss(net: ConvNet, data: Split, mirror: bool) -> StepLoss:
    """Return the loss of a finetuning step on translated and, for natural images, mirrored images, as in the paper."""
    labels = data.labels.to(data.images.device)

    def loss(indices: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        chosen = (indices % len(data)).to(labels.device)
        images = shift_and_mirror(data.images[chosen], 2, mirror, generator)
        return functional.cross_entropy(net(images), labels[chosen]), {}

    return loss


def _labeled(data: Split, labels: int, seed: int) -> Split:
    """Return ``labels`` examples, equally many of every class; all examples if there are no more."""
    if labels >= len(data):
        return data
    return data.take(draw_per_class(data.labels, labels // len(data.labels.unique()), seed))


def perform(run: Run, path: str, scale: Scale, device: str, mirror: bool, rates: Chosen) -> Outcome:
    """Pretrain one arm, evaluate readouts of its frozen features, and finetune it with the given labels and rates.

    Scores: accuracies ``frozen linear N`` and ``frozen nearest N`` from N labels, and ``finetuned N RATE``.

    Args:
        run: the arm, its seed, and its pretraining rate as the setting.
        path: npz of images.
        scale: size of the study.
        device: device of training.
        mirror: whether to mirror images in finetuning.
        rates: rates of finetuning, by arm and number of labels.
    """
    data, validation, test = load_splits(path, device, scale.validation, scale.test)
    evaluated = validation if run.tuning else test
    torch.manual_seed(run.seed)
    classes = int(data.labels.max()) + 1
    layers = spatial_layers(scale.width)
    net = ConvNet(data.images.shape[1], layers, GRID, classes, norm=True).to(device)
    outcome = Outcome({})
    if run.arm in (WINDOWS, CROPS, MODERN):
        projection = torch.nn.Linear(layers[-1].channels, layers[-1].channels).to(device)
        loss = _pretraining_loss(run.arm, net, projection, data.images)
        module = torch.nn.ModuleList([net.features, projection])
        with stopwatch(outcome):
            curve = fit(module, loss, scale.pretraining_steps, scale.pretraining_batch, run.setting["rate"], run.seed)
        outcome.curve = [(row["step"], row["value"]) for row in curve if row["metric"] == "loss"]
    pretrained = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    if run.seed == 0 and not run.tuning:
        outcome.arrays["filters"] = net.filters.cpu().numpy()
        outcome.arrays["map"] = flat(embed(net.pooled, evaluated.images[:MAPPED]).numpy())
        outcome.arrays["labels"] = evaluated.labels[:MAPPED].numpy()

    for count in scale.labels:
        labeled = _labeled(data, count, run.seed)
        if not rates.get(run.arm) or not run.tuning:
            references = labeled.take(torch.arange(min(scale.readout, len(labeled))))
            if run.arm == PIXELS:
                frozen, queries = references.images.flatten(1).cpu(), evaluated.images.flatten(1).cpu()
            else:
                frozen, queries = embed(net.pooled, references.images), embed(net.pooled, evaluated.images)
            outcome.scores[f"frozen linear {count}"] = linear_accuracy(
                frozen, references.labels, queries, evaluated.labels, strength=0.1, iterations=60
            )
            outcome.scores[f"frozen nearest {count}"] = nearest_neighbor_accuracy(
                frozen, references.labels, queries, evaluated.labels
            )
        for rate in rates.get(run.arm, {}).get(count, ()):
            net.load_state_dict(pretrained)
            torch.manual_seed(run.seed + 1_000)  # all arms of a seed share the initial head
            net.head.reset_parameters()
            loss = _classification_loss(net, labeled, mirror)
            fit(net, loss, scale.finetuning_steps, scale.finetuning_batch, rate, run.seed)
            predicted = embed(net, evaluated.images).argmax(-1)
            outcome.scores[f"finetuned {count} {rate:g}"] = (predicted == evaluated.labels).float().mean().item()
            net.load_state_dict(pretrained)
    return outcome


def experiment(
    study: Study,
    name: str,
    scale: Scale,
    arms: tuple[str, ...],
    seeds: int,
    images: str,
    device: str,
    parallel_map: Map,
    mirror: bool,
) -> tuple[dict[str, Setting], dict[tuple[str, int], Outcome]]:
    """Tune pretraining, then finetuning for every number of labels; repeat all arms; record everything in ``study``.

    The frozen linear readout with the middle number of labels selects the pretraining rate, the finetuned accuracy that
    of finetuning. Both use the validation split and a separate seed.

    Returns:
        The setting of each arm's pretraining, and the outcomes by arm and seed.
    """
    train = functools.partial(perform, path=images, scale=scale, device=device, mirror=mirror)
    middle = scale.labels[len(scale.labels) // 2]
    label = f"study_spatial_contrast, {name}"
    tuned = [Run(arm, setting, seeds, True) for arm in arms for setting in PRETRAINING[arm] if arm != SCRATCH]
    scores = parallel_map(functools.partial(train, rates={}), tuned, f"{label}: tuning of pretraining")
    pretraining: dict[str, Setting] = {SCRATCH: PRETRAINING[SCRATCH][0], PIXELS: PRETRAINING[SCRATCH][0]}
    for arm in arms:
        accuracies = [
            (outcome.scores[f"frozen linear {middle}"], run.setting["rate"])
            for run, outcome in zip(tuned, scores, strict=True)
            if run.arm == arm
        ]
        for value, rate in accuracies:
            study.record(
                f"{name}, tuning of pretraining", f"{arm}: rate {rate:g}", seeds, "frozen linear (%)", 100 * value
            )
        if accuracies:
            pretraining[arm] = {"rate": max(accuracies)[1]}

    every: Chosen = {arm: dict.fromkeys(scale.labels, RATES) for arm in arms}
    runs = [Run(arm, pretraining[arm], seeds, True) for arm in arms]
    outcomes = parallel_map(functools.partial(train, rates=every), runs, f"{label}: tuning of finetuning")
    chosen: dict[str, dict[int, tuple[float, ...]]] = {}
    for run, outcome in zip(runs, outcomes, strict=True):
        chosen[run.arm] = {}
        for count in scale.labels:
            values = {rate: outcome.scores[f"finetuned {count} {rate:g}"] for rate in RATES}
            chosen[run.arm][count] = (max(RATES, key=lambda rate: values[rate]),)
            for rate, value in values.items():
                arm = f"{run.arm}: rate {rate:g}"
                study.record(f"{name}, tuning of finetuning", arm, seeds, "finetuned (%)", 100 * value, count)

    runs = [Run(arm, pretraining[arm], seed) for seed in range(seeds) for arm in (*arms, PIXELS)]
    outcomes = parallel_map(functools.partial(train, rates=chosen), runs, f"{label}: {seeds} seeds")
    for run, outcome in zip(runs, outcomes, strict=True):
        study.record(name, run.arm, run.seed, "pretraining (s)", outcome.seconds)
        for score, value in outcome.scores.items():
            kind, _, suffix = score.rpartition(" ") if score.startswith("frozen") else score.partition(" ")
            count = int(suffix.split()[0])
            study.record(name, run.arm, run.seed, f"{kind} accuracy (%)", 100 * value, count)
    return pretraining, {(run.arm, run.seed): outcome for run, outcome in zip(runs, outcomes, strict=True)}


def _difference_of_gains(study: Study, experiment: str, few: int, many: int) -> Interval:
    """Return the gain of pretraining with few labels minus that with many, paired by seed."""
    rows = study.frame(experiment)
    values = rows[rows["metric"] == "finetuned accuracy (%)"].set_index(["arm", "x", "seed"])["value"].sort_index()
    gain = {count: values[WINDOWS, count] - values[SCRATCH, count] for count in (few, many)}
    return interval((gain[few] - gain[many]).to_numpy())


def _claims(study: Study, scale: Scale, digits: Scale, seeds: int, source: str) -> list[Claim]:
    natural = "natural images"
    decide = functools.partial(Claim.from_interval, unit="points", seeds=seeds)
    few, many = min(scale.labels), max(scale.labels)
    papers = {few: "-", many: "STL-10, 5,000 labels: 81.34 against 72.6 %; CIFAR-10, 4,000 labels: 79.2 against 72.4 %"}
    claims = [
        decide(
            study.paired(natural, "finetuned accuracy (%)", WINDOWS, SCRATCH, count),
            claim=f"spatial contrasting before supervised training, {count:,} labels",
            statement="a net pretrained by spatial contrasting, then finetuned, beats the same net from scratch",
            where="section 5, tables 1 and 2",
            paper_value=papers.get(count, "-"),
            note=f"{source}; both arms with their own rate for this number of labels",
        )
        for count in scale.labels
    ]
    claims.append(
        decide(
            _difference_of_gains(study, natural, few, many),
            claim="the gain falls with labels",
            statement=f"pretraining is worth more with few labels ({few:,}) than with many ({many:,})",
            where="section 1",
            note="difference of the two gains, paired by seed",
        )
    )
    middle = scale.labels[len(scale.labels) // 2]
    claims += [
        decide(
            study.paired(natural, "finetuned accuracy (%)", WINDOWS, CROPS, middle),
            above=-1,
            claim="windows of the map suffice",
            statement="sampling windows of the feature map is as good as cropping patches (within 1 point)",
            where="section 4.2, algorithm 1",
            note=f"{middle:,} labels; a margin of 1 point is ours",
        ),
        decide(
            study.paired(natural, "frozen linear accuracy (%)", WINDOWS, SCRATCH, middle),
            claim="frozen features over an untrained net's",
            statement="what spatial contrasting learns is in the features themselves",
            where="implied",
            note=f"linear readout of frozen features with {middle:,} labels; the other arm's net is untrained",
        ),
        decide(
            study.paired(natural, "finetuned accuracy (%)", WINDOWS, MODERN, middle),
            claim="spatial contrasting over a modern contrast",
            statement="it still is the better start beside NT-Xent of two views, at equal images",
            where="not in the paper: arXiv 2002.05709 as a control",
            note=f"{middle:,} labels; pytorch-metric-learning's loss, regions of 24 pixels, mirrored, contrast changed",
        ),
        decide(
            study.paired("digits", "finetuned accuracy (%)", WINDOWS, SCRATCH, max(digits.labels)),
            claim="spatial contrasting on digits with all labels",
            statement="it helps even where every image has a label",
            where="section 5, table 3",
            paper_value="MNIST: 0.34 ± 0.02 against 0.63 ± 0.02 % error",
            note="binarized MNIST; the paper itself says that digits suit the method badly",
        ),
    ]
    return claims


def run_study(job: Job) -> Study:
    """Run the study for the rule; its threads run parallel trainings."""
    settings, device = job.studies, job.runtime.device
    use_threads(1, device=device)
    study = reproduce(
        settings, SCALES[settings.scale], job.inputs["images"], job.inputs["digits"], device, job.runtime.threads
    )
    study.about = f"scale {settings.scale}, {settings.seeds} seeds"
    return study


def reproduce(settings: Studies, scale: Scale, images: str, digits: str, device: str, processes: int) -> Study:
    """Return the finished study.

    Args:
        settings: config section `studies`; ``scale`` replaces its scale.
        scale: size of the study.
        images: npz of natural images.
        digits: npz of digits.
        device: device of training.
        processes: parallel trainings.
    """
    baselines.require()
    training, _, _ = load_splits(digits, "cpu", scale.validation, scale.test)
    on_digits = dataclasses.replace(scale, labels=(len(training),))
    study = Study("spatial_contrast", "Deep unsupervised learning through spatial contrasting", "1610.00243")
    seeds = settings.seeds
    with workers(processes) as parallel_map:
        chosen, outcomes = experiment(study, "natural images", scale, ARMS, seeds, images, device, parallel_map, True)
        experiment(study, "digits", on_digits, (WINDOWS, SCRATCH), seeds, digits, device, parallel_map, False)
    source = settings.image_file or "CIFAR-10's test images, split into 8,000 and 2,000"
    study.claims = _claims(study, scale, on_digits, seeds, source)
    study.figures += _figures(study, scale, outcomes, settings.image_file is None)
    study.notes = [
        f"{source}: not comparable to published CIFAR-10 accuracies. Pretraining: {scale.pretraining_steps:,} "
        f"steps of {scale.pretraining_batch} images without labels; finetuning: {scale.finetuning_steps:,} steps of "
        f"{scale.finetuning_batch} images, translated by up to 2 pixels and mirrored; 3 convolutions of "
        f"{scale.width}, {2 * scale.width} and {4 * scale.width} channels with batch normalization.",
        "The paper gives its pretrained net a rate of 0.01 and does not say what the net from scratch had; here every "
        "arm is tuned for every number of labels, because a baseline with too high a rate would exaggerate the gain.",
        "Deviations: AdamW with the pipeline's schedule, a fixed number of steps in place of convergence; the paper's "
        "layer tables stand in an appendix that we could not read. Regions are means over windows of 3 by 3 of the "
        "last map, or over the maps of patches of 16 by 16 pixels.",
        "Rates of pretraining chosen on the validation split: "
        + "; ".join(f"{arm}: {chosen[arm]['rate']:g}" for arm in ARMS if arm != SCRATCH)
        + ".",
        "Seconds of pretraining, mean: "
        + "; ".join(
            f"{arm} {study.over_seeds('natural images', 'pretraining (s)', arm).estimate:.1f}"
            for arm in ARMS
            if arm != SCRATCH
        )
        + ". Finetuning is the same for all.",
    ]
    study.not_reproduced = [
        NotReproduced(
            "STL-10 with 105,000 unlabeled images (81.34 %)",
            "96 by 96 pixels and training to convergence: days of these cores",
            "its labeled images by "
            + command("study_spatial_contrast", "data/stl10.npz")
            + "; such a file has no others",
        ),
        NotReproduced(
            "CIFAR-10 with 4,000 labels (79.2 %)",
            "its 50,000 training images are in no source used here",
            command("study_spatial_contrast", "data/cifar10.npz"),
        ),
    ]
    return study


def _figures(study: Study, scale: Scale, outcomes: Mapping[tuple[str, int], Outcome], named: bool) -> list[Figure]:
    first = {arm: outcomes[arm, 0] for arm in (*ARMS, PIXELS)}
    return [*_accuracy_figures(study, scale), _curves_figure(first, scale), *_feature_figures(first, named)]


def _accuracy_figures(study: Study, scale: Scale) -> list[Figure]:
    def by_labels(metric: str, arms: tuple[str, ...]) -> dict[str, list[tuple[float, Interval]]]:
        name = f"{metric} accuracy (%)"
        return {arm: [(n, study.over_seeds("natural images", name, arm, n)) for n in scale.labels] for arm in arms}

    gains = {
        arm: [(n, study.paired("natural images", "finetuned accuracy (%)", arm, SCRATCH, n)) for n in scale.labels]
        for arm in ARMS
        if arm != SCRATCH
    }
    return [
        Figure(
            draw_series(
                "spatial-gain",
                "Gain over scratch by number of labels.",
                gains,
                "labels",
                "points over scratch",
                "x",
                zero=True,
            ),
            "Accuracy after finetuning, minus that of the net from scratch, paired by seed; bands are 95 % intervals.",
            "How the gain depends on labels",
        ),
        Figure(
            draw_series(
                "spatial-finetuned",
                "Accuracy after finetuning by number of labels.",
                by_labels("finetuned", ARMS),
                "labels",
                "test accuracy, %",
                "x",
            ),
            "Accuracy after finetuning; bands are 95 % intervals over seeds, not paired.",
            "Finetuned",
        ),
        Figure(
            draw_series(
                "spatial-frozen",
                "Accuracy of a linear readout of frozen features by number of labels.",
                by_labels("frozen linear", (*ARMS, PIXELS)),
                "labels",
                "test accuracy, %",
                "x",
            ),
            f"Linear readout of frozen features; '{SCRATCH}' is the untrained net.",
            "Frozen features",
        ),
    ]


def _curves_figure(first: Mapping[str, Outcome], scale: Scale) -> Figure:
    curves = {}
    for arm in (WINDOWS, CROPS, MODERN):
        losses = np.array([value for _, value in first[arm].curve])
        width = max(1, len(losses) // 25)
        means = losses[: len(losses) // width * width].reshape(-1, width).mean(1)
        curves[arm] = [(float((i + 0.5) * width), Interval(value, value, value)) for i, value in enumerate(means)]
    chance = float(np.log(scale.pretraining_batch))
    return Figure(
        draw_series("spatial-curves", "Pretraining losses.", curves, "pretraining step", "loss, nats"),
        f"Losses of pretraining, seed 0; chance is {chance:.2f} for spatial contrasting. The losses differ.",
        "Learning curves",
    )


def _feature_figures(first: Mapping[str, Outcome], named: bool) -> list[Figure]:
    top = int(first[WINDOWS].arrays["labels"].max()) + 1
    names = CLASSES if named else tuple(f"class {i}" for i in range(top))
    return [
        Figure(
            draw_maps(
                "spatial-maps",
                "Test images on two principal axes of the pooled features.",
                {arm: (first[arm].arrays["map"], first[arm].arrays["labels"]) for arm in ARMS},
                names,
            ),
            f"{MAPPED} test images on the two principal axes of the features before finetuning, seed 0, by class.",
            "Features in the plane",
        ),
        Figure(
            draw_filters(
                "spatial-filters",
                "First-layer filters after pretraining.",
                {arm: first[arm].arrays["filters"] for arm in ARMS},
            ),
            f"First-layer filters before finetuning, seed 0, each on its own scale; '{SCRATCH}' is untrained.",
            "First-layer filters",
        ),
    ]
