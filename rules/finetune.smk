"""Finetuning: end-to-end distillation of the child (GKD).

- Input: the parent, the child, the finetune split and its activations.
- Output: `targets/{target}/{solution}/finetuned/` and `curves.parquet`.
- Steps: distill hidden states and logits; a killed job resumes from `checkpoints/{target}/{solution}`, which is no
  output because Snakemake deletes outputs before a job starts. After several rounds, the last part of the budget.
"""


rule finetune_child:
    """Finetune one child."""
    input:
        parent="<results>/parent/model.safetensors",
        child="<results>/targets/{target}/{solution}/child/model.safetensors",
        architecture=architecture_of,
        corpus="<results>/corpus/finetune.parquet",
        activations=cached_activations("finetune"),
        score="<results>/corpus/score.parquet",
        score_activations=cached_activations("score"),
    output:
        finetuned=checkpoint_of(f"{CHILD}/finetuned"),
        curves="<results>/targets/{target}/{solution}/curves.parquet",
    log:
        "<logs>/finetune_child/{target}/{solution}.log",
    benchmark:
        "<benchmarks>/finetune_child/{target}/{solution}.tsv"
    params:
        **code_of("finetune_child", "torch", "transformers"),
        **runtime("device", "dtype", "seed"),
        folder=output_folder("finetuned"),
        checkpoints=f"{RESULTS}/checkpoints/{{target}}/{{solution}}",
        settings=finetune_settings(),
        part=part_of_child,
        parallel=slice_of(cfg.finetune.parallel),
        checkpoint_seconds=unrecorded(cfg.finetune.checkpoint_seconds),
    threads: half_the_cores
    resources:
        **of_processes(cfg.finetune.parallel),
    conda:
        "../envs/tangram.yaml"
    message:
        "finetune_child: train a child end to end against its parent, {wildcards}"
    shell:
        command("finetune_child")
