"""Costs: the time and memory of every piece, measured on the run's device.

- Input: the parent's shapes.
- Output: `costs/{engine}/{kind}/{variant}.parquet`, collected in `costs/{engine}.parquet`;
  `calibration/{engine}.parquet`; only of engines that a target names.
- Steps: time each piece round-robin with the parent's subblock, time whole models, compare them with sums of pieces.

Timing jobs take every core, so that no other job runs meanwhile.
"""


rule measure_costs:
    """Time one variant of one kind in every scenario and batch size."""
    input:
        parent="<results>/parent/model.safetensors",
    output:
        "<results>/costs/{engine}/{kind}/{variant}.parquet",
    log:
        "<logs>/measure_costs/{engine}/{kind}/{variant}.log",
    benchmark:
        "<benchmarks>/measure_costs/{engine}/{kind}/{variant}.tsv"
    params:
        **code_of("measure_costs", "torch", "transformers", variants=variant_of_job, modules=TIMERS),
        **runtime("device", "dtype", "seed"),
        settings=slice_of({"costs": cfg.costs, "scenarios": cfg.scenarios}),
    threads: all_cores
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    message:
        "measure_costs: time one variant, {wildcards}"
    shell:
        command("measure_costs")


rule collect_costs:
    """Concatenate the costs of all pieces."""
    input:
        tables=lambda wildcards: cost_files(wildcards.engine),
    output:
        "<results>/costs/{engine}.parquet",
    log:
        "<logs>/collect_costs/{engine}.log",
    benchmark:
        "<benchmarks>/collect_costs/{engine}.tsv"
    params:
        **code_of("collect_tables"),
        table="costs",
    conda:
        "../envs/tangram.yaml"
    message:
        "collect_costs: concatenate the costs of all pieces, {wildcards}"
    shell:
        command("collect_tables")


rule calibrate_costs:
    """Compare the sums of the cost table with whole assembled models."""
    input:
        parent="<results>/parent/model.safetensors",
        costs="<results>/costs/{engine}.parquet",
    output:
        "<results>/calibration/{engine}.parquet",
    log:
        "<logs>/calibrate_costs/{engine}.log",
    benchmark:
        "<benchmarks>/calibrate_costs/{engine}.tsv"
    params:
        **code_of("calibrate_costs", "torch", "transformers", variants=library_of_engine, modules=TIMERS),
        **runtime("device", "dtype", "seed"),
        settings=calibration_settings,
    threads: all_cores
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    message:
        "calibrate_costs: compare sums of measured pieces with whole models, {wildcards}"
    shell:
        command("calibrate_costs")
