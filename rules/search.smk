"""The search: one variant per subblock that minimizes the loss of quality within a target's constraints.

- Input: `scores.parquet`, and of the target's engine `costs/{engine}.parquet` and `calibration/{engine}.parquet`.
- Output: `targets/{target}/solutions/`: `mip.json`, `layers-dropped.json`, and for the primary target `uniform.json`;
  `targets/{target}/solutions.parquet`; `targets/{target}/{solution}/architecture.json`.
- Steps: solve the mixed-integer program; as baselines drop whole layers, and quantize the whole parent uniformly; write
  the checksums of solutions' pieces.
"""


rule solve_mip:
    """Solve for a target's best architectures."""
    input:
        parent="<results>/parent/model.safetensors",
        scores="<results>/scores.parquet",
        costs=table_of_target("costs"),
        calibration=table_of_target("calibration"),
    output:
        solutions="<results>/targets/{target}/solutions/mip.json",
        table="<results>/targets/{target}/solutions.parquet",
    log:
        "<logs>/solve_mip/{target}.log",
    benchmark:
        "<benchmarks>/solve_mip/{target}.tsv"
    params:
        **code_of("solve_mip", "pyomo", "highspy"),
        settings=search_settings,
    conda:
        "../envs/tangram.yaml"
    message:
        "solve_mip: find the best architectures, {wildcards}"
    shell:
        command("solve_mip")


rule drop_layers:
    """Drop whole layers for the target's constraints, as the baseline."""
    input:
        parent="<results>/parent/model.safetensors",
        scores="<results>/scores.parquet",
        costs=table_of_target("costs"),
        calibration=table_of_target("calibration"),
    output:
        solutions=f"<results>/targets/{{target}}/solutions/{LAYERS_DROPPED}.json",
    log:
        "<logs>/drop_layers/{target}.log",
    benchmark:
        "<benchmarks>/drop_layers/{target}.tsv"
    params:
        **code_of("drop_layers"),
        settings=baseline_settings,
    conda:
        "../envs/tangram.yaml"
    message:
        "drop_layers: drop whole layers as the baseline, {wildcards}"
    shell:
        command("drop_layers")


rule uniform_precision:
    """Give every subblock of the parent and its head one precision, as baselines."""
    input:
        parent="<results>/parent/model.safetensors",
        scores="<results>/scores.parquet",
        costs=table_of_target("costs"),
        calibration=table_of_target("calibration"),
    output:
        solutions=f"<results>/targets/{{target}}/solutions/{UNIFORM}.json",
    log:
        "<logs>/uniform_precision/{target}.log",
    benchmark:
        "<benchmarks>/uniform_precision/{target}.tsv"
    params:
        **code_of("uniform_precision"),
        settings=baseline_settings,
    conda:
        "../envs/tangram.yaml"
    message:
        "uniform_precision: give the whole parent one precision as a baseline, {wildcards}"
    shell:
        command("uniform_precision")


# A checkpoint, although it adds no job: Snakemake evaluates the remaining jobs again after it. The file holds the
# checksum of every piece of the architecture. Therefore no child is rebuilt after a search with the same solution, or
# for a new variant outside the solution, but it is after a change of its pieces. After a plain rule, all children would
# rerun. This holds for jobs whose input is `architecture_of`.
checkpoint pin_architecture:
    """Write one solution's architecture with the checksums of its pieces."""
    input:
        solutions=solutions_of,
        library=library_files("safetensors"),
    output:
        "<results>/targets/{target}/{solution}/architecture.json",
    log:
        "<logs>/pin_architecture/{target}/{solution}.log",
    benchmark:
        "<benchmarks>/pin_architecture/{target}/{solution}.tsv"
    params:
        **code_of("pin_architecture"),
        library=library_folder,
        shards=",".join(SHARDS),
    conda:
        "../envs/tangram.yaml"
    message:
        "pin_architecture: write the checksums of a solution's pieces, {wildcards}"
    shell:
        command("pin_architecture")
