"""The search: one variant per layer and kind, so that a target's constraints hold and the least quality is lost.

- Input: `scores.parquet`, `costs.parquet`, `calibration.parquet`.
- Output: `targets/{target}/solutions.parquet` and `.json`; `targets/{target}/{rank}/architecture.json`.
- Steps: solve the mixed-integer program, drop whole layers as the plain baseline, pick each answer's pieces.
"""


rule solve_mip:
    """Find a target's best architectures."""
    input:
        parent=checkpoint_of(PARENT),
        scores="<results>/scores.parquet",
        costs="<results>/costs.parquet",
        calibration="<results>/calibration.parquet",
    output:
        solutions="<results>/targets/{target}/solutions.parquet",
        summary="<results>/targets/{target}/solutions.json",
        solved=directory("<results>/targets/{target}/solutions"),
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
        " --parent {params.parent:q} --solutions {output.solutions:q} --summary {output.summary:q}"
        " --architectures {output.solved:q} 2> >(tee {log:q} >&2)"


rule drop_layers:
    """Drop whole layers until the target's constraints hold: the plain alternative to compare with."""
    input:
        parent=checkpoint_of(PARENT),
        scores="<results>/scores.parquet",
        costs="<results>/costs.parquet",
        calibration="<results>/calibration.parquet",
    output:
        architecture=f"<results>/targets/{{target}}/{LAYERS_DROPPED}/solution.json",
        summary=f"<results>/targets/{{target}}/{LAYERS_DROPPED}/summary.json",
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
        " --parent {params.parent:q} --architecture {output.architecture:q}"
        " --summary {output.summary:q} 2> >(tee {log:q} >&2)"


# A checkpoint, though it adds no job: after it, Snakemake looks again at what is still to be done. The file is small
# and holds the checksum of every piece that the architecture takes. So a search whose answer comes out the same, or a
# new variant that nobody picks, ends here, and no child is assembled or trained again; a retrained piece goes on. After
# a plain rule everything would rerun. It works for jobs that take the file through `architecture_of`.
checkpoint pick_pieces:
    """Write one answer's architecture, with the checksum of each piece that it takes from the library."""
    input:
        solution=solved,
        library=library_files("safetensors"),
    output:
        "<results>/targets/{target}/{rank}/architecture.json",
    log:
        "<logs>/pick_pieces/{target}/{rank}.log",
    benchmark:
        "<benchmarks>/pick_pieces/{target}/{rank}.tsv"
    params:
        library=library_folder,
        solution=solution_of,
        shards=",".join(SHARDS),
        code=code_hash("tangram.commands.pick_pieces"),
    conda:
        "../envs/tangram.yaml"
    shell:
        "python -m tangram.commands.pick_pieces --solution {params.solution:q}"
        " --library {params.library:q} --shards {params.shards:q} --output {output:q} 2> >(tee {log:q} >&2)"
