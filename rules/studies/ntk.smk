"""Study: efficient NTK using dimensionality reduction (arXiv 2210.04807); no part of the main job.

- Input: Fashion-MNIST.
- Output: `studies/ntk/`: `claims.parquet`, `measurements.parquet`, `report.html`.
- Steps: tangent kernels of dense and factorised two-layer networks; their descent; what they cost and how they generalise.
"""


rule study_ntk:
    """Reproduce the paper's claims at the configured scale."""
    input:
        images="<results>/images/fashion-mnist.npz",
    output:
        claims="<results>/studies/ntk/claims.parquet",
        measurements="<results>/studies/ntk/measurements.parquet",
        page="<results>/studies/ntk/report.html",
    log:
        "<logs>/study_ntk/ntk.log",
    benchmark:
        "<benchmarks>/study_ntk/ntk.tsv"
    params:
        folder=output_folder("claims"),
        settings=slice_of(cfg.studies),
        seed=cfg.seed,
        code=code_hash("tangram_studies.commands.study_ntk"),
        environment=pins("torch", "scikit-learn", "scipy"),
    threads: 1
    conda:
        "../../envs/tangram.yaml"
    shell:
        "python -m tangram_studies.commands.study_ntk --settings {params.settings:q} --images {input.images:q}"
        " --seed {params.seed:q} --threads {threads:q} --output {params.folder:q} 2> >(tee {log:q} >&2)"
