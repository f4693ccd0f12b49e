"""Costs: the time and memory of every piece, measured on the device at hand.

- Input: the parent's shapes.
- Output: `costs/{kind}/{variant}.parquet`, collected in `costs.parquet`; `calibration.parquet`.
- Steps: time each piece beside the parent's own, then whole assembled models, and compare the sums with the wholes.

These jobs take every core: nothing else may run while they measure.
"""


rule measure_costs:
    """Time one variant of one kind in every scenario and batch size."""
    input:
        parent=checkpoint_of(PARENT),
    output:
        "<results>/costs/{kind}/{variant}.parquet",
    log:
        "<logs>/measure_costs/{kind}/{variant}.log",
    benchmark:
        "<benchmarks>/measure_costs/{kind}/{variant}.tsv"
    params:
        parent=input_folder("parent"),
        settings=slice_of({"costs": cfg.costs, "scenarios": cfg.scenarios}),
        device=cfg.device,
        dtype=cfg.dtype,
        seed=cfg.seed,
        code=variant_code("tangram.commands.measure_costs"),
        environment=pins("torch", "transformers"),
    threads: all_cores
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    shell:
        "python -m tangram.commands.measure_costs --settings {params.settings:q}"
        " --kind {wildcards.kind:q} --variant {wildcards.variant:q} --parent {params.parent:q}"
        " --device {params.device:q} --dtype {params.dtype:q} --seed {params.seed:q} --threads {threads:q}"
        " --output {output:q} 2> >(tee {log:q} >&2)"


rule collect_costs:
    """Concatenate the costs of all pieces."""
    input:
        COST_FILES,
    output:
        "<results>/costs.parquet",
    log:
        "<logs>/collect_costs/costs.log",
    benchmark:
        "<benchmarks>/collect_costs/costs.tsv"
    params:
        code=code_hash("tangram.commands.collect_tables"),
    threads: 1
    conda:
        "../envs/tangram.yaml"
    shell:
        "python -m tangram.commands.collect_tables --table costs --output {output:q} {input:q}" " 2> >(tee {log:q} >&2)"


rule calibrate_costs:
    """Compare the sums of the cost table with whole assembled models."""
    input:
        parent=checkpoint_of(PARENT),
        costs="<results>/costs.parquet",
    output:
        "<results>/calibration.parquet",
    log:
        "<logs>/calibrate_costs/calibration.log",
    benchmark:
        "<benchmarks>/calibrate_costs/calibration.tsv"
    params:
        parent=input_folder("parent"),
        settings=slice_of({"costs": cfg.costs, "scenarios": cfg.scenarios, "library": VARIANTS}),
        device=cfg.device,
        dtype=cfg.dtype,
        seed=cfg.seed,
        code=code_hash("tangram.commands.calibrate_costs", *FAMILIES),
        environment=pins("torch", "transformers"),
    threads: all_cores
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    shell:
        "python -m tangram.commands.calibrate_costs --settings {params.settings:q}"
        " --costs {input.costs:q} --parent {params.parent:q}"
        " --device {params.device:q} --dtype {params.dtype:q} --seed {params.seed:q} --threads {threads:q}"
        " --output {output:q} 2> >(tee {log:q} >&2)"
