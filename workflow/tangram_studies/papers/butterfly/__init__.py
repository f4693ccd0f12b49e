"""A reproduction of "Sparse Linear Networks with a Fixed Butterfly Structure" (arXiv 2007.08864).

Statements follow the text of its ICLR 2021 submission; the authors' released code differs from it (see `notes`). Each
experiment is one public function of a module here, which records measurements, draws a figure and adds claims.
"""

from __future__ import annotations

from tangram.cli import model_folder
from tangram.corpus.tokens import read_tokens
from tangram.models.families import shape_of
from tangram_studies.data.fashion_mnist import Images, load_images
from tangram_studies.papers.butterfly.autoencoder import autoencoders
from tangram_studies.papers.butterfly.common import SCALES, Scale
from tangram_studies.papers.butterfly.language_model import compare_pieces
from tangram_studies.papers.butterfly.replacement import replacements
from tangram_studies.papers.butterfly.sketch import sketches
from tangram_studies.papers.butterfly.speed import speeds
from tangram_studies.papers.butterfly.theory import counts, guarantee, landscape, norms
from tangram_studies.study import Job, NotReproduced, Study, print_progress


def run_study(job: Job) -> Study:
    """Run the study for the rule; at small scale, only five layers of the parent and few sequences are used."""
    job.runtime.start()
    settings, inputs = job.studies, job.inputs
    study = reproduce(load_images(inputs["images"]), SCALES[settings.scale], settings.seeds)
    study.about = f"scale {settings.scale}, {settings.seeds} seeds"
    full, parent = settings.scale == "full", model_folder(inputs["parent"])
    depth = shape_of(parent).num_layers
    layers = list(range(depth)) if full else sorted({depth * (2 * i + 1) // 10 for i in range(5)})
    tokens = read_tokens(inputs["distill"])[: None if full else 12]
    compare_pieces(study, parent, tokens, read_tokens(inputs["score"]), layers, job.runtime.device, job.runtime.dtype)
    return study


def reproduce(images: Images, scale: Scale, seeds: int) -> Study:
    """Run every experiment that needs no language model.

    Args:
        images: Fashion-MNIST.
        scale: size of the study.
        seeds: number of repetitions.
    """
    repeats = range(seeds)
    study = Study(
        "butterfly", "Sparse linear networks with a fixed butterfly structure: what holds, measured", "2007.08864"
    )
    for name, experiment in (
        ("proposition 1", lambda: norms(study, repeats, scale)),
        ("effective weights", lambda: counts(study, repeats, scale)),
        ("proposition 2", lambda: guarantee(study, repeats, scale, images)),
        ("theorem 1", lambda: landscape(study, repeats)),
        ("encoder-decoder", lambda: autoencoders(study, repeats, scale, images)),
        ("dense replacement", lambda: replacements(study, repeats, scale, images)),
        ("speed", lambda: speeds(study, repeats, scale)),
        ("learned sketches", lambda: sketches(study, repeats, scale, images)),
    ):
        print_progress(f"butterfly: {name}")
        experiment()
    study.notes += [
        "Statements are those of the ICLR 2021 submission; the UAI 2021 version could not be read, and may differ.",
        "The authors' released code does not compute the gadget of the text: its middle layer is a dense n x k matrix, "
        "k is n/5 or more, the flag that enables it is inverted, and its learned “butterfly” sketch is a dense layer. "
        "This study follows the text.",
        "With k = log n a gadget has rank log n. Low rank is therefore the control that separates the effect of the "
        "butterfly from that of the rank.",
    ]
    study.not_reproduced += [
        NotReproduced(
            "ImageNet with senet154", "size", "replace the last layer by ButterflyLinear, train as published"
        ),
        NotReproduced("CIFAR-10 and CIFAR-100 with EfficientNet, PreActResNet18, seresnet152", "no data here", "same"),
        NotReproduced(
            "CoNLL-03 and Penn Treebank with Flair taggers", "no data here", "replace `linear` of the tagger"
        ),
        NotReproduced("HS-SOD and Tech matrices (figure 4, table 4)", "no data here", "LearnedSketch.fit on them"),
        NotReproduced("Olivetti faces (table 2)", "needs a download", "EncoderDecoderButterfly with n=1024, d=4096"),
    ]
    return study
