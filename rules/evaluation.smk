"""Evaluation: the parent, each child, and each finetuned child.

- Input: the models, the held-out split and its activations; the archive of tasks.
- Output: `parent_evaluation.parquet`, `targets/{target}/{solution}/evaluation.parquet`; for the headline
  `tasks.parquet` and `readout.parquet`.
- Steps: perplexity, KL and agreement on held-out text, measured throughput, multiple-choice tasks, few-label readouts.

The jobs that measure throughput take every core: nothing else may run while they do.
"""


rule evaluate_parent:
    """Evaluate the parent on held-out text, and measure its throughput."""
    input:
        parent=checkpoint_of(PARENT),
        corpus="<results>/corpus/heldout.parquet",
        activations=cached_activations("heldout"),
    output:
        "<results>/parent_evaluation.parquet",
    log:
        "<logs>/evaluate_parent/parent.log",
    benchmark:
        "<benchmarks>/evaluate_parent/parent.tsv"
    params:
        parent=input_folder("parent"),
        settings=text_evaluation(),
        activations=option("--activations", cached_activations("heldout")),
        device=cfg.device,
        dtype=cfg.dtype,
        seed=cfg.seed,
        code=code_hash("tangram.commands.evaluate_model"),
        environment=pins("torch", "transformers"),
    threads: all_cores
    resources:
        local_copy=int(cfg.activations.local_copy),  # no param: nothing depends on it
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    shell:
        "python -m tangram.commands.evaluate_model --settings {params.settings:q} --parent {params.parent:q}"
        " --corpus {input.corpus:q} {params.activations:q} --local-copy {resources.local_copy:q}"
        " --device {params.device:q} --dtype {params.dtype:q} --seed {params.seed:q} --threads {threads:q}"
        " --output {output:q} 2> >(tee {log:q} >&2)"


rule evaluate_model:
    """Evaluate a child before and after finetuning, and measure its throughput beside its parent's."""
    input:
        parent=checkpoint_of(PARENT),
        child=checkpoint_of(f"{CHILD}/child"),
        finetuned=checkpoint_of(f"{CHILD}/finetuned"),
        architecture=architecture_of,
        corpus="<results>/corpus/heldout.parquet",
        activations=cached_activations("heldout"),
    output:
        "<results>/targets/{target}/{solution}/evaluation.parquet",
    log:
        "<logs>/evaluate_model/{target}/{solution}.log",
    benchmark:
        "<benchmarks>/evaluate_model/{target}/{solution}.tsv"
    params:
        parent=input_folder("parent"),
        child=input_folder("child"),
        finetuned=input_folder("finetuned"),
        settings=text_evaluation(),
        activations=option("--activations", cached_activations("heldout")),
        device=cfg.device,
        dtype=cfg.dtype,
        seed=cfg.seed,
        code=code_hash("tangram.commands.evaluate_model"),
        environment=pins("torch", "transformers"),
    threads: all_cores
    resources:
        local_copy=int(cfg.activations.local_copy),  # no param: nothing depends on it
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    shell:
        "python -m tangram.commands.evaluate_model --settings {params.settings:q} --parent {params.parent:q}"
        " --child {params.child:q}"
        " --finetuned {params.finetuned:q}"
        " --corpus {input.corpus:q} {params.activations:q} --local-copy {resources.local_copy:q}"
        " --device {params.device:q} --dtype {params.dtype:q} --seed {params.seed:q} --threads {threads:q}"
        " --output {output:q} 2> >(tee {log:q} >&2)"


rule evaluate_tasks:
    """Answer the multiple-choice tasks with the parent, the headline's best child, and the same finetuned."""
    input:
        parent=checkpoint_of(PARENT),
        child=checkpoint_of(f"{CHILD}/child"),
        finetuned=checkpoint_of(f"{CHILD}/finetuned"),
        architecture=architecture_of,
    output:
        "<results>/targets/{target}/{solution}/tasks.parquet",
    log:
        "<logs>/evaluate_tasks/{target}/{solution}.log",
    benchmark:
        "<benchmarks>/evaluate_tasks/{target}/{solution}.tsv"
    params:
        parent=input_folder("parent"),
        child=input_folder("child"),
        finetuned=input_folder("finetuned"),
        work=f"{RESULTS}/tasks",
        settings=slice_of(cfg.evaluation.model_dump(mode="json", include={"tasks", "task_archive", "task_limit"})),
        device=cfg.device,
        dtype=cfg.dtype,
        seed=cfg.seed,
        code=code_hash("tangram.commands.evaluate_tasks"),
        environment=pins("torch", "transformers", "lm_eval"),
    threads: all_cores
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    shell:
        "python -m tangram.commands.evaluate_tasks --settings {params.settings:q}"
        " --models parent={params.parent:q}"
        " --models child={params.child:q}"
        " --models finetuned={params.finetuned:q}"
        " --device {params.device:q} --dtype {params.dtype:q} --seed {params.seed:q} --threads {threads:q}"
        " --work {params.work:q} --output {output:q} 2> >(tee {log:q} >&2)"


rule evaluate_readout:
    """Read classes of texts from hidden states of the parent, the headline's best child, and the same finetuned."""
    input:
        parent=checkpoint_of(PARENT),
        child=checkpoint_of(f"{CHILD}/child"),
        finetuned=checkpoint_of(f"{CHILD}/finetuned"),
        architecture=architecture_of,
    output:
        "<results>/targets/{target}/{solution}/readout.parquet",
    log:
        "<logs>/evaluate_readout/{target}/{solution}.log",
    benchmark:
        "<benchmarks>/evaluate_readout/{target}/{solution}.tsv"
    params:
        parent=input_folder("parent"),
        child=input_folder("child"),
        finetuned=input_folder("finetuned"),
        settings=slice_of({"readout": cfg.evaluation.readout, "archive": cfg.evaluation.task_archive}),
        device=cfg.device,
        dtype=cfg.dtype,
        seed=cfg.seed,
        code=code_hash("tangram.commands.evaluate_readout"),
        environment=pins("torch", "transformers", "scikit-learn"),
    threads: half_the_cores
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    shell:
        "python -m tangram.commands.evaluate_readout --settings {params.settings:q}"
        " --models parent={params.parent:q}"
        " --models child={params.child:q}"
        " --models finetuned={params.finetuned:q}"
        " --device {params.device:q} --dtype {params.dtype:q} --seed {params.seed:q} --threads {threads:q}"
        " --output {output:q} 2> >(tee {log:q} >&2)"
