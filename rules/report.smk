"""The report: one self-contained page.

- Input: every table of the run.
- Output: `report.html`.
- Steps: read the tables, draw figures, write the page, which Snakemake's `--report` includes.
"""

REPORT_SETTINGS = report_settings()


rule build_report:
    """Build the page from the run's tables."""
    input:
        parent="<results>/parent/model.safetensors",
        corpus=[f"{RESULTS}/corpus/{split}.parquet" for split in SPLITS],
        library=library_files("parquet", "curves.parquet"),
        scores="<results>/scores.parquet",
        costs=COST_TABLES["costs"],
        calibration=COST_TABLES["calibration"],
        search=SEARCH_FILES,
        children=of_children("architecture.json", "curves.parquet", "evaluation.parquet", "sequences.parquet"),
        parent_evaluation=["<results>/parent_evaluation.parquet", "<results>/parent_sequences.parquet"],
        speeds="<results>/speeds/torch.parquet",
        primary_target=of_the_primary_target(),
        engines=of_engines(),
        trials=f"{RESULTS}/trials.parquet" if TRIALS else [],
    output:
        report=report("<results>/report.html", caption="../workflow/report/report.rst", category="Report"),
    log:
        "<logs>/build_report/report.log",
    benchmark:
        "<benchmarks>/build_report/report.tsv"
    params:
        **code_of("build_report", "matplotlib", "Jinja2", variants=LIBRARY),
        results=output_folder("report"),
        settings=REPORT_SETTINGS,
        template=checksum("workflow/report/report.html.j2"),
    conda:
        "../envs/tangram.yaml"
    message:
        "build_report: draw the page of the run"
    shell:
        command("build_report")
