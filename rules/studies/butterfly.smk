"""Study: sparse linear networks with a fixed butterfly structure (arXiv 2007.08864); no part of the main job.

- Input: Fashion-MNIST; the parent, the distil and score splits.
- Output: `studies/butterfly/`: `claims.parquet`, `measurements.parquet`, `report.html`.
- Steps: the paper's propositions, counts and experiments beside controls; then pieces of the parent beside other pieces.
"""


rule study_butterfly:
    """Reproduce the paper's claims at the configured scale, and try butterflies on the parent."""
    input:
        images="<results>/images/fashion-mnist.npz",
        parent=checkpoint_of(PARENT),
        distil="<results>/corpus/distil.parquet",
        score="<results>/corpus/score.parquet",
    output:
        claims="<results>/studies/butterfly/claims.parquet",
        measurements="<results>/studies/butterfly/measurements.parquet",
        page="<results>/studies/butterfly/report.html",
    log:
        "<logs>/study_butterfly/butterfly.log",
    benchmark:
        "<benchmarks>/study_butterfly/butterfly.tsv"
    params:
        parent=input_folder("parent"),
        folder=output_folder("claims"),
        settings=slice_of(cfg.studies),
        device=cfg.device,
        dtype=cfg.dtype,
        seed=cfg.seed,
        code=code_hash("tangram.commands.study_butterfly", *modules_of_variants()),
        environment=pins("torch", "transformers", "scikit-learn", "scipy"),
    threads: half_the_cores
    resources:
        gpu=GPU,
    conda:
        "../../envs/tangram.yaml"
    shell:
        "python -m tangram.commands.study_butterfly --settings {params.settings:q} --images {input.images:q}"
        " --parent {params.parent:q} --distil {input.distil:q} --score {input.score:q}"
        " --device {params.device:q} --dtype {params.dtype:q} --seed {params.seed:q} --threads {threads:q}"
        " --output {params.folder:q} 2> >(tee {log:q} >&2)"
