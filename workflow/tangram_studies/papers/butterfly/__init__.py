"""What became here of "Sparse Linear Networks with a Fixed Butterfly Structure" (arXiv 2007.08864).

Statements follow the text of its ICLR 2021 submission; the authors' released code computes other things (see `notes`).
Each function of the modules here is one experiment: it records measurements, draws a figure and adds claims.
"""

from __future__ import annotations

from collections.abc import Callable

from tangram_studies.data.fashion_mnist import Images
from tangram_studies.papers.butterfly.autoencoder import autoencoders
from tangram_studies.papers.butterfly.common import SIZES
from tangram_studies.papers.butterfly.replacement import replacements
from tangram_studies.papers.butterfly.sketch import sketches
from tangram_studies.papers.butterfly.speed import speeds
from tangram_studies.papers.butterfly.theory import counts, guarantee, landscape, norms
from tangram_studies.study import NotReproduced, Study


def butterfly_study(images: Images, scale: str, seeds: int, progress: Callable[[str], None] = print) -> Study:
    """Run every experiment that needs no language model.

    Args:
        images: Fashion-MNIST.
        scale: ``'small'`` or ``'full'``.
        seeds: repetitions.
        progress: told of each experiment before it starts.
    """
    size, repeats = SIZES[scale], range(seeds)
    study = Study(
        "butterfly", "Sparse linear networks with a fixed butterfly structure: what holds, measured", "2007.08864"
    )
    for name, experiment in (
        ("proposition 1", lambda: norms(study, repeats, size)),
        ("effective weights", lambda: counts(study, repeats, size)),
        ("proposition 2", lambda: guarantee(study, repeats, size, images)),
        ("theorem 1", lambda: landscape(study, repeats)),
        ("encoder-decoder", lambda: autoencoders(study, repeats, size, images)),
        ("dense replacement", lambda: replacements(study, repeats, size, images)),
        ("speed", lambda: speeds(study, repeats, size)),
        ("learned sketches", lambda: sketches(study, repeats, size, images)),
    ):
        progress(name)
        experiment()
    study.notes += [
        "Statements are those of the ICLR 2021 submission; the UAI 2021 version could not be read, and may be worded "
        "differently.",
        "The authors' released code does not compute the gadget of the text: its middle layer is a dense n x k matrix, "
        "k is n/5 or more, the flag that should turn it on turns it off, and its learned “butterfly” sketch is a dense "
        "layer. The text was followed.",
        "With k = log n a gadget is a layer of rank log n. Low rank is therefore the control that decides whether the "
        "butterfly, or only the low rank, does it.",
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
