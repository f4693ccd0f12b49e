"""Finetuning: the child trained end to end against its parent (GKD).

- Input: the parent, the child, the finetune split and its activations.
- Output: `targets/{target}/{solution}/finetuned/` and `curves.parquet`.
- Steps: distil hidden states and logits; a killed job resumes from `checkpoints/{target}/{solution}`, which lies outside
  the declared outputs because Snakemake clears those before a job starts.
"""


rule finetune_child:
    """Finetune one child."""
    input:
        parent=checkpoint_of(PARENT),
        child=checkpoint_of(f"{CHILD}/child"),
        architecture=architecture_of,
        corpus="<results>/corpus/finetune.parquet",
        activations=cached_activations("finetune"),
    output:
        finetuned=checkpoint_of(f"{CHILD}/finetuned"),
        curves="<results>/targets/{target}/{solution}/curves.parquet",
    log:
        "<logs>/finetune_child/{target}/{solution}.log",
    benchmark:
        "<benchmarks>/finetune_child/{target}/{solution}.tsv"
    params:
        parent=input_folder("parent"),
        child=input_folder("child"),
        finetuned=output_folder("finetuned"),
        checkpoints=f"{RESULTS}/checkpoints/{{target}}/{{solution}}",
        settings=slice_of(cfg.finetune.model_dump(mode="json", exclude={"parallel", "checkpoint_seconds"})),
        parallel=slice_of(cfg.finetune.parallel),
        activations=option("--activations", cached_activations("finetune")),
        device=cfg.device,
        dtype=cfg.dtype,
        seed=cfg.seed,
        code=code_hash("tangram.commands.finetune_child"),
        environment=pins("torch", "transformers"),
    threads: half_the_cores
    resources:
        **several_nodes(cfg.finetune.parallel.nodes),
        local_copy=int(cfg.activations.local_copy),  # no param: nothing depends on it
        gpu=GPU * cfg.finetune.parallel.nodes * cfg.finetune.parallel.processes_per_node,
        checkpoint_seconds=cfg.finetune.checkpoint_seconds,  # no param: nothing depends on it
    conda:
        "../envs/tangram.yaml"
    shell:
        "python -m tangram.commands.finetune_child --settings {params.settings:q} --parent {params.parent:q}"
        " --child {params.child:q}"
        " --corpus {input.corpus:q} {params.activations:q} --local-copy {resources.local_copy:q} --parallel {params.parallel:q}"
        " --device {params.device:q} --dtype {params.dtype:q} --seed {params.seed:q} --threads {threads:q}"
        " --checkpoints {params.checkpoints:q} --checkpoint-seconds {resources.checkpoint_seconds:q}"
        " --output {params.finetuned:q}"
        " --curves {output.curves:q} 2> >(tee {log:q} >&2)"
