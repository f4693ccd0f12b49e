"""Online ranking with bandit feedback (arXiv 1312.1530): closed forms, regret and speed.

- Input: nothing: the data are simulated.
- Output: `studies/bandit_ranking/claims.parquet`, `measurements.parquet` and `report.html`.
- Steps: check the identities by enumeration; play BanditRank and CombBand; time steps; draw the page.
"""


rule study_bandit_ranking:
    """Reproduce "Bandit online optimization over the permutahedron"."""
    output:
        claims="<results>/studies/bandit_ranking/claims.parquet",
        measurements="<results>/studies/bandit_ranking/measurements.parquet",
        page="<results>/studies/bandit_ranking/report.html",
    log:
        "<logs>/study_bandit_ranking/study.log",
    benchmark:
        "<benchmarks>/study_bandit_ranking/study.tsv"
    params:
        folder=output_folder("page"),
        settings=slice_of(cfg.studies),
        seed=cfg.seed,
        code=code_hash("tangram_studies.commands.study_bandit_ranking"),
        environment=pins("numpy", "scipy"),
    threads: half_the_cores
    conda:
        "../../envs/tangram.yaml"
    shell:
        "python -m tangram_studies.commands.study_bandit_ranking --settings {params.settings:q}"
        " --seed {params.seed:q} --threads {threads:q}"
        " --output {params.folder:q} 2> >(tee {log:q} >&2)"
