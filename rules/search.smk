"""The search: one variant per layer and kind, so that a target's constraints hold and the least quality is lost.

- Input: `scores.parquet`, `costs.parquet`, `calibration.parquet`.
- Output: `targets/{target}/solutions/`: `mip.json` and `layers-dropped.json`, `targets/{target}/solutions.parquet`;
  `targets/{target}/{solution}/architecture.json`.
- Steps: solve the mixed-integer program, drop whole layers as the plain baseline, pin the pieces of each solution.
"""


rule solve_mip:
    """Find a target's best architectures."""
    input:
        parent="<results>/parent/model.safetensors",
        scores="<results>/scores.parquet",
        costs="<results>/costs.parquet",
        calibration="<results>/calibration.parquet",
    output:
        solutions="<results>/targets/{target}/solutions/mip.json",
        table="<results>/targets/{target}/solutions.parquet",
    log:
        "<logs>/solve_mip/{target}.log",
    benchmark:
        "<benchmarks>/solve_mip/{target}.tsv"
    params:
        **made_by("solve_mip", "pyomo", "highspy"),
        settings=search_settings,
    conda:
        "../envs/tangram.yaml"
    message:
        "solve_mip: find the best architectures, {wildcards}"
    shell:
        command("solve_mip")


rule drop_layers:
    """Drop whole layers until the target's constraints hold: the plain alternative to compare with."""
    input:
        parent="<results>/parent/model.safetensors",
        scores="<results>/scores.parquet",
        costs="<results>/costs.parquet",
        calibration="<results>/calibration.parquet",
    output:
        solutions=f"<results>/targets/{{target}}/solutions/{LAYERS_DROPPED}.json",
    log:
        "<logs>/drop_layers/{target}.log",
    benchmark:
        "<benchmarks>/drop_layers/{target}.tsv"
    params:
        **made_by("drop_layers"),
        settings=baseline_settings,
    conda:
        "../envs/tangram.yaml"
    message:
        "drop_layers: drop whole layers for comparison, {wildcards}"
    shell:
        command("drop_layers")


# A checkpoint, though it adds no job: after it, Snakemake looks again at what is still to be done. The file is small
# and holds the checksum of every piece that the architecture takes. So a search whose solution comes out the same, or a
# new variant that no solution takes, ends here, and no child is assembled or trained again; a retrained piece goes on.
# After a plain rule everything would rerun. It works for jobs that take the file through `architecture_of`.
checkpoint pin_architecture:
    """Write one solution's architecture, with the checksum of each piece that it takes from the library."""
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
        **made_by("pin_architecture"),
        library=library_folder,
        shards=",".join(SHARDS),
    conda:
        "../envs/tangram.yaml"
    message:
        "pin_architecture: note the pieces of a solution, {wildcards}"
    shell:
        command("pin_architecture")
