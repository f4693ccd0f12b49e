"""Online ranking (arXiv 1308.6797): upper and lower bounds, small losses, time per round.

- Input: nothing: the data are simulated.
- Output: `studies/online_ranking/claims.parquet`, `measurements.parquet` and `report.html`.
- Steps: rank four kinds of sequences; compare regret with both bounds; time rounds; draw the page.
"""


rule study_online_ranking:
    """Reproduce "Online ranking: discrete choice, Spearman correlation and other feedback"."""
    output:
        claims="<results>/studies/online_ranking/claims.parquet",
        measurements="<results>/studies/online_ranking/measurements.parquet",
        page="<results>/studies/online_ranking/report.html",
    log:
        "<logs>/study_online_ranking/study.log",
    benchmark:
        "<benchmarks>/study_online_ranking/study.tsv"
    params:
        folder=output_folder("page"),
        settings=slice_of(cfg.studies),
        seed=cfg.seed,
        code=code_hash("tangram_studies.commands.study_online_ranking"),
        environment=pins("numpy", "scipy"),
    threads: half_the_cores
    conda:
        "../../envs/tangram.yaml"
    shell:
        "python -m tangram_studies.commands.study_online_ranking --settings {params.settings:q}"
        " --seed {params.seed:q} --threads {threads:q}"
        " --output {params.folder:q} 2> >(tee {log:q} >&2)"
