"""The rounds: a child is compressed a part of the way, finetuned a little, and scored again (only with `rounds`).

- Input: the parent, the tables of scores and costs, the score and finetune splits and their activations, the library.
- Output: `targets/{target}/rounds/`: `solution.json` of the last round, `child/` of the round before, `curves.parquet`.
- Steps: solve, assemble and finetune in every round but the last, which is only solved: `pin_architecture`,
  `assemble_child` and `finetune_child` make its child as any other; a killed job resumes from
  `checkpoints/{target}/rounds`.
"""


rule iterate_child:
    """Compress a child in several rounds."""
    input:
        parent="<results>/parent/model.safetensors",
        scores="<results>/scores.parquet",
        costs=table_of_target("costs"),
        calibration=table_of_target("calibration"),
        corpus="<results>/corpus/score.parquet",
        activations=cached_activations("score"),
        finetune_corpus="<results>/corpus/finetune.parquet",
        finetune_activations=cached_activations("finetune"),
        library=library_files("safetensors"),
    output:
        solutions="<results>/targets/{target}/rounds/solution.json",
        child=checkpoint_of("<results>/targets/{target}/rounds/child"),
        curves="<results>/targets/{target}/rounds/curves.parquet",
    log:
        "<logs>/iterate_child/{target}.log",
    benchmark:
        "<benchmarks>/iterate_child/{target}.tsv"
    params:
        **code_of("iterate_child", "torch", "transformers", "pyomo", "highspy", variants=LIBRARY),
        **runtime("device", "dtype", "seed"),
        settings=rounds_settings,
        text=exact_settings(),
        finetune=finetune_settings(),
        library=library_folder,
        shards=",".join(SHARDS),
        checkpoints=f"{RESULTS}/checkpoints/{{target}}/rounds",
        folder=output_folder("child"),
        checkpoint_seconds=unrecorded(cfg.finetune.checkpoint_seconds),
    threads: half_the_cores
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    message:
        "iterate_child: compress a child in rounds, {wildcards}"
    shell:
        command("iterate_child")
