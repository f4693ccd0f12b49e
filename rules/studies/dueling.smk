"""Duelling bandits (arXiv 1405.3396): reductions to plain bandits, and what has been found since.

- Input: nothing: the data are simulated.
- Output: `studies/dueling/claims.parquet`, `measurements.parquet` and `report.html`.
- Steps: simulate the paper's panels, alpha, growth and tails; judge each claim; draw the page.
"""


rule study_dueling:
    """Reproduce "Reducing duelling bandits to cardinal bandits"."""
    output:
        claims="<results>/studies/dueling/claims.parquet",
        measurements="<results>/studies/dueling/measurements.parquet",
        page="<results>/studies/dueling/report.html",
    log:
        "<logs>/study_dueling/study.log",
    benchmark:
        "<benchmarks>/study_dueling/study.tsv"
    params:
        folder=output_folder("page"),
        settings=slice_of(cfg.studies),
        seed=cfg.seed,
        code=code_hash("tangram_studies.commands.study_dueling"),
        environment=pins("numpy", "scipy", "numba"),
    threads: all_cores
    conda:
        "../../envs/tangram.yaml"
    shell:
        "python -m tangram_studies.commands.study_dueling --settings {params.settings:q}"
        " --seed {params.seed:q} --threads {threads:q}"
        " --output {params.folder:q} 2> >(tee {log:q} >&2)"
