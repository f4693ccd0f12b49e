"""The report: one self-contained page.

- Input: every table of the run.
- Output: `report.html`.
- Steps: read the tables, draw, write. Snakemake's own `--report` takes the page in, too.
"""


rule build_report:
    """Build the page from the run's tables."""
    input:
        parent="<results>/parent/model.safetensors",
        corpus=[f"{RESULTS}/corpus/{split}.parquet" for split in SPLITS],
        library=library_files("parquet", "curves.parquet"),
        scores="<results>/scores.parquet",
        costs="<results>/costs.parquet",
        calibration="<results>/calibration.parquet",
        search=SEARCH_FILES,
        children=[
            f"{child}/{name}"
            for child in CHILDREN
            for name in ("architecture.json", "curves.parquet", "evaluation.parquet")
        ],
        parent_evaluation="<results>/parent_evaluation.parquet",
        tasks=[f"{RESULTS}/targets/{cfg.headline}/0/tasks.parquet"] if cfg.evaluation.tasks else [],
        readout=[f"{RESULTS}/targets/{cfg.headline}/0/readout.parquet"] if cfg.evaluation.readout.task else [],
    output:
        report=report("<results>/report.html", caption="../workflow/report/report.rst", category="Report"),
    log:
        "<logs>/build_report/report.log",
    benchmark:
        "<benchmarks>/build_report/report.tsv"
    params:
        **made_by("build_report", "matplotlib", "Jinja2", variants=LIBRARY),
        results=output_folder("report"),
        settings=slice_of(
            {
                "run": cfg.run,
                "headline": cfg.headline,
                "targets": list(cfg.targets),
                "num_layers": cfg.parent.num_layers,
                "default_scenario": next(iter(cfg.scenarios)),
                "seed": cfg.seed,
            }
        ),
        template=checksum("workflow/report/report.html.j2"),
    conda:
        "../envs/tangram.yaml"
    message:
        "build_report: draw the page of the run"
    shell:
        command("build_report")
