"""The search: one variant per subblock that minimizes the loss of quality within a target's constraints.

- Input: `scores.parquet`, and of the target's engine `costs/{engine}.parquet` and `calibration/{engine}.parquet`.
- Output: `targets/{target}/solutions/`: `mip.json`, `layers-dropped.json`, and for the primary target `uniform.json`,
  and `{rival}.json` of every search in the target's `compare`; `targets/{target}/solutions.parquet`;
  `targets/{target}/{solution}/architecture.json`.
- Steps: solve the mixed-integer program; as baselines drop whole layers, and quantize the whole parent uniformly; run
  other searches on the same problem; write the checksums of solutions' pieces.
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
        layers=scores_of_layers,
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


rule search_rival:
    """Run another search on the target's problem."""
    input:
        parent="<results>/parent/model.safetensors",
        scores="<results>/scores.parquet",
        costs=table_of_target("costs"),
        calibration=table_of_target("calibration"),
    output:
        solutions="<results>/targets/{target}/solutions/{rival}.json",
    log:
        "<logs>/search_rival/{target}/{rival}.log",
    benchmark:
        "<benchmarks>/search_rival/{target}/{rival}.tsv"
    params:
        **code_of("search_rival", "pyomo", "highspy"),
        **runtime("seed"),
        settings=rival_settings("time_limit"),
    conda:
        "../envs/tangram.yaml"
    message:
        "search_rival: run another search, {wildcards}"
    shell:
        command("search_rival")


rule drop_by_influence:
    """Drop the layers that change the parent's hidden states least."""
    input:
        parent="<results>/parent/model.safetensors",
        scores="<results>/scores.parquet",
        costs=table_of_target("costs"),
        calibration=table_of_target("calibration"),
        corpus="<results>/corpus/score.parquet",
        activations=cached_activations("score"),
    output:
        solutions=f"<results>/targets/{{target}}/solutions/{BLOCK_INFLUENCE}.json",
    log:
        "<logs>/drop_by_influence/{target}.log",
    benchmark:
        "<benchmarks>/drop_by_influence/{target}.tsv"
    params:
        **code_of("drop_by_influence", "torch", "transformers"),
        **runtime("device", "dtype"),
        settings=baseline_settings,
        batch_size=cfg.scores.batch_size,
    threads: half_the_cores
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    message:
        "drop_by_influence: drop whole layers by block influence, {wildcards}"
    shell:
        command("drop_by_influence")


rule evolve_child:
    """Search by evolution on the true score of assembled children."""
    input:
        parent="<results>/parent/model.safetensors",
        scores="<results>/scores.parquet",
        costs=table_of_target("costs"),
        calibration=table_of_target("calibration"),
        corpus="<results>/corpus/score.parquet",
        activations=cached_activations("score"),
        library=library_files("safetensors"),
    output:
        solutions=f"<results>/targets/{{target}}/solutions/{EVOLUTIONARY}.json",
    log:
        "<logs>/evolve_child/{target}.log",
    benchmark:
        "<benchmarks>/evolve_child/{target}.tsv"
    params:
        **code_of("evolve_child", "torch", "transformers", "pyomo", "highspy", variants=LIBRARY),
        **runtime("device", "dtype", "seed"),
        library=library_folder,
        shards=",".join(SHARDS),
        settings=rival_settings("time_limit", "evolution"),
        text=exact_settings(),
    threads: half_the_cores
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    message:
        "evolve_child: search by evolution on assembled children, {wildcards}"
    shell:
        command("evolve_child")


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
