"""A reproduction of "Efficient NTK using Dimensionality Reduction" (arXiv 2210.04807).

Only the abstract could be read. We restated its theorems from analyses that it extends (Du et al., arXiv 1810.02054;
Arora et al., arXiv 1901.08584); the claims say so. The network is ``f(x) = aᵀ relu(W x) / √m`` with random
signs a; W ``(m, d)`` is trained, or W = U V through an inner width k with one factor random and fixed, the other
trained: *V fixed* (a random projection of the inputs) or *U fixed* (trainable weights independent of m).
"""

from __future__ import annotations

from tangram_studies.data.fashion_mnist import Images, load_images
from tangram_studies.papers.ntk.convergence import descents
from tangram_studies.papers.ntk.cost import gain_by_dimension, generalization
from tangram_studies.papers.ntk.kernels import closeness
from tangram_studies.papers.ntk.network import SCALES, Scale
from tangram_studies.study import Job, NotReproduced, Study, print_progress


def run_study(job: Job) -> Study:
    """Run the study for the rule."""
    job.runtime.start()
    settings = job.studies
    study = reproduce(load_images(job.inputs["images"]), SCALES[settings.scale], settings.seeds)
    study.about = f"scale {settings.scale}, {settings.seeds} seeds"
    return study


def reproduce(images: Images, scale: Scale, seeds: int) -> Study:
    """Return the finished study.

    Args:
        images: Fashion-MNIST.
        scale: size of the study.
        seeds: number of repetitions.
    """
    repeats = range(seeds)
    study = Study("ntk", "Efficient NTK using dimensionality reduction: what holds, measured", "2210.04807")
    for name, experiment in (
        ("kernels", lambda: closeness(study, repeats, scale, images)),
        ("convergence", lambda: descents(study, repeats, scale)),
        ("generalization", lambda: generalization(study, repeats, scale, images)),
        ("gain by dimension", lambda: gain_by_dimension(study, repeats, scale)),
    ):
        print_progress(f"ntk: {name}")
        experiment()
    study.notes += [
        "Only the abstract could be read. The initialization and every theorem are restated by us; either factor may "
        "be the fixed one, and both choices are measured.",
        "Both factors are Gaussian here; NTKFactorLinear also offers a fast Johnson-Lindenstrauss transform.",
    ]
    study.not_reproduced += [
        NotReproduced("the paper's own theorems and constants", "full text not readable", "replace what is restated"),
        NotReproduced(
            "networks deeper than two layers", "no closed form this short", "torch.func.jacrev on the network"
        ),
    ]
    return study
