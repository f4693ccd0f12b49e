"""The search: one variant per layer and kind, so that a target's constraints hold and the least quality is lost.

- Input: `scores.parquet`, `costs.parquet`, `calibration.parquet`.
- Output: `targets/{target}/solutions/`: `mip.json` and `layers-dropped.json`, `targets/{target}/solutions.parquet`;
  `targets/{target}/{solution}/architecture.json`.
- Steps: solve the mixed-integer program, drop whole layers as the plain baseline, pin the pieces of each solution.
"""


rule solve_mip:
    """Find a target's best architectures."""
    input:
        parent=checkpoint_of(PARENT),
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
        parent=input_folder("parent"),
        settings=search_settings,
        code=code_hash("tangram.commands.solve_mip"),
        environment=pins("pyomo", "highspy"),
    conda:
        "../envs/tangram.yaml"
    shell:
        "python -m tangram.commands.solve_mip --settings {params.settings:q}"
        " --scores {input.scores:q} --costs {input.costs:q} --calibration {input.calibration:q}"
        " --parent {params.parent:q} --solutions {output.solutions:q} --table {output.table:q}"
        " 2> >(tee {log:q} >&2)"


rule drop_layers:
    """Drop whole layers until the target's constraints hold: the plain alternative to compare with."""
    input:
        parent=checkpoint_of(PARENT),
        scores="<results>/scores.parquet",
        costs="<results>/costs.parquet",
        calibration="<results>/calibration.parquet",
    output:
        f"<results>/targets/{{target}}/solutions/{LAYERS_DROPPED}.json",
    log:
        "<logs>/drop_layers/{target}.log",
    benchmark:
        "<benchmarks>/drop_layers/{target}.tsv"
    params:
        parent=input_folder("parent"),
        settings=baseline_settings,
        code=code_hash("tangram.commands.drop_layers"),
    conda:
        "../envs/tangram.yaml"
    shell:
        "python -m tangram.commands.drop_layers --settings {params.settings:q}"
        " --scores {input.scores:q} --costs {input.costs:q} --calibration {input.calibration:q}"
        " --parent {params.parent:q} --solutions {output:q} 2> >(tee {log:q} >&2)"


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
        library=library_folder,
        shards=",".join(SHARDS),
        code=code_hash("tangram.commands.pin_architecture"),
    conda:
        "../envs/tangram.yaml"
    shell:
        "python -m tangram.commands.pin_architecture --solutions {input.solutions:q}"
        " --solution {wildcards.solution:q} --library {params.library:q} --shards {params.shards:q}"
        " --output {output:q} 2> >(tee {log:q} >&2)"
