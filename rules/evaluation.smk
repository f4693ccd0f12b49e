"""Evaluation: the parent, each child, and each finetuned child.

- Input: the models, the held-out split and its activations; the archive of tasks; the exported children.
- Output: `evaluation.parquet` and `sequences.parquet` of every child in `targets/{target}/{solution}/`; for the primary
  target's children and rivals `tasks.parquet`, `perplexity.parquet` and `long_context.parquet`, for its best child
  `readout.parquet`; for targets in llama.cpp `engine.parquet`; the parent's `parent_*.parquet`; `speeds/{engine}.parquet` of all models;
  `questions.json`.
- Steps: perplexity, KL and agreement on held-out text, throughput of all models in one job, tasks of lm-eval,
  perplexity by the field's conventions, questions about long texts, few-label readouts; text and throughput as the
  target's engine runs the child.

Jobs that measure throughput take every core, so that no other job runs meanwhile.
"""

MODELS = {
    "parent": "<results>/parent/model.safetensors",
    "child": "<results>/targets/{target}/{solution}/child/model.safetensors",
    "finetuned": "<results>/targets/{target}/{solution}/finetuned/model.safetensors",
    "architecture": architecture_of,
}


rule evaluate_parent:
    """Evaluate the parent on held-out text."""
    input:
        parent="<results>/parent/model.safetensors",
        corpus="<results>/corpus/heldout.parquet",
        activations=cached_activations("heldout"),
    output:
        table="<results>/parent_evaluation.parquet",
        sequences="<results>/parent_sequences.parquet",
    log:
        "<logs>/evaluate_parent/parent.log",
    benchmark:
        "<benchmarks>/evaluate_parent/parent.tsv"
    params:
        **code_of("evaluate_model", "torch", "transformers"),
        **runtime("device", "dtype"),
        settings=text_evaluation(),
    threads: half_the_cores
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    message:
        "evaluate_parent: evaluate the parent on held-out text"
    shell:
        command("evaluate_model", without=("child", "finetuned"))


rule evaluate_model:
    """Evaluate a child before and after finetuning on held-out text."""
    input:
        **MODELS,
        corpus="<results>/corpus/heldout.parquet",
        activations=cached_activations("heldout"),
    output:
        table="<results>/targets/{target}/{solution}/evaluation.parquet",
        sequences="<results>/targets/{target}/{solution}/sequences.parquet",
    log:
        "<logs>/evaluate_model/{target}/{solution}.log",
    benchmark:
        "<benchmarks>/evaluate_model/{target}/{solution}.tsv"
    params:
        **code_of("evaluate_model", "torch", "transformers"),
        **runtime("device", "dtype"),
        settings=text_evaluation(),
    threads: half_the_cores
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    message:
        "evaluate_model: evaluate a child on held-out text, {wildcards}"
    shell:
        command("evaluate_model")


rule measure_speed:
    """Measure the throughput in an engine of all children and of their parent, in one job: jobs differ in speed."""
    input:
        models=timed_models,
        architectures=all_architectures,
    output:
        "<results>/speeds/{engine}.parquet",
    log:
        "<logs>/measure_speed/{engine}.log",
    benchmark:
        "<benchmarks>/measure_speed/{engine}.tsv"
    params:
        **code_of("measure_speed", "torch", "transformers", "xllamacpp", modules=SPEED_TIMERS),
        **runtime("device", "dtype", "seed"),
        settings=speed_settings(),
    threads: all_cores
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    message:
        "measure_speed: measure the throughput of all children and of their parent, {wildcards}"
    shell:
        command("measure_speed")


rule extract_tasks:
    """Extract the questions of tasks from files and packages, and fetch the datasets of lm-eval's tasks."""
    output:
        "<results>/questions.json",
    log:
        "<logs>/extract_tasks/tasks.log",
    benchmark:
        "<benchmarks>/extract_tasks/tasks.tsv"
    params:
        **code_of("extract_tasks", "lm_eval", "datasets"),
        settings=extraction_settings(),
        source_files=SOURCE_FILES["tasks"],
    conda:
        "../envs/tangram.yaml"
    message:
        "extract_tasks: extract the questions of tasks, fetch lm-eval's datasets"
    shell:
        command("extract_tasks")


rule evaluate_parent_tasks:
    """Evaluate the parent on tasks."""
    input:
        questions="<results>/questions.json",
        parent="<results>/parent/model.safetensors",
    output:
        "<results>/parent_tasks.parquet",
    log:
        "<logs>/evaluate_parent_tasks/parent.log",
    benchmark:
        "<benchmarks>/evaluate_parent_tasks/parent.tsv"
    params:
        **code_of("evaluate_tasks", "torch", "transformers", "lm_eval"),
        **runtime("device", "dtype", "seed"),
        work=f"{RESULTS}/tasks/parent",
        settings=evaluation_settings("task_limit"),
    threads: all_cores
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    message:
        "evaluate_parent_tasks: evaluate the parent on tasks"
    shell:
        command("evaluate_tasks", without=("child", "finetuned"))


rule evaluate_tasks:
    """Evaluate a child or rival of the primary target, before and after finetuning, on tasks."""
    input:
        questions="<results>/questions.json",
        child="<results>/targets/{target}/{solution}/child/model.safetensors",
        finetuned="<results>/targets/{target}/{solution}/finetuned/model.safetensors",
        architecture=architecture_of,
    output:
        "<results>/targets/{target}/{solution}/tasks.parquet",
    log:
        "<logs>/evaluate_tasks/{target}/{solution}.log",
    benchmark:
        "<benchmarks>/evaluate_tasks/{target}/{solution}.tsv"
    params:
        **code_of("evaluate_tasks", "torch", "transformers", "lm_eval"),
        **runtime("device", "dtype", "seed"),
        work=f"{RESULTS}/tasks/{{target}}-{{solution}}",
        settings=evaluation_settings("task_limit"),
    threads: all_cores
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    message:
        "evaluate_tasks: evaluate on tasks, {wildcards}"
    shell:
        command("evaluate_tasks", without=("parent",))


rule evaluate_parent_perplexity:
    """Evaluate the parent's perplexity on texts by the field's conventions."""
    input:
        parent="<results>/parent/model.safetensors",
    output:
        "<results>/parent_perplexity.parquet",
    log:
        "<logs>/evaluate_parent_perplexity/parent.log",
    benchmark:
        "<benchmarks>/evaluate_parent_perplexity/parent.tsv"
    params:
        **code_of("evaluate_perplexity", "torch", "transformers", "lm_eval", "datasets"),
        **runtime("device", "dtype"),
        settings=evaluation_settings("perplexity"),
        source_files=SOURCE_FILES["perplexity"],
    threads: all_cores
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    message:
        "evaluate_parent_perplexity: evaluate the parent's perplexity on texts"
    shell:
        command("evaluate_perplexity", without=("child", "finetuned"))


rule evaluate_perplexity:
    """Evaluate the perplexity of a child or rival of the primary target, before and after finetuning, on texts."""
    input:
        child="<results>/targets/{target}/{solution}/child/model.safetensors",
        finetuned="<results>/targets/{target}/{solution}/finetuned/model.safetensors",
        architecture=architecture_of,
    output:
        "<results>/targets/{target}/{solution}/perplexity.parquet",
    log:
        "<logs>/evaluate_perplexity/{target}/{solution}.log",
    benchmark:
        "<benchmarks>/evaluate_perplexity/{target}/{solution}.tsv"
    params:
        **code_of("evaluate_perplexity", "torch", "transformers", "lm_eval", "datasets"),
        **runtime("device", "dtype"),
        settings=evaluation_settings("perplexity"),
        source_files=SOURCE_FILES["perplexity"],
    threads: all_cores
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    message:
        "evaluate_perplexity: evaluate perplexity on texts, {wildcards}"
    shell:
        command("evaluate_perplexity", without=("parent",))


rule evaluate_parent_long_context:
    """Evaluate the parent on questions about long texts."""
    input:
        parent="<results>/parent/model.safetensors",
        corpus="<results>/corpus/heldout.parquet",
    output:
        "<results>/parent_long_context.parquet",
    log:
        "<logs>/evaluate_parent_long_context/parent.log",
    benchmark:
        "<benchmarks>/evaluate_parent_long_context/parent.tsv"
    params:
        **code_of("evaluate_long_context", "torch", "transformers", "lm_eval"),
        **runtime("device", "dtype", "seed"),
        settings=evaluation_settings("long_context"),
    threads: all_cores
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    message:
        "evaluate_parent_long_context: evaluate the parent on questions about long texts"
    shell:
        command("evaluate_long_context", without=("child", "finetuned"))


rule evaluate_long_context:
    """Evaluate a child or rival of the primary target, before and after finetuning, on questions about long texts."""
    input:
        child="<results>/targets/{target}/{solution}/child/model.safetensors",
        finetuned="<results>/targets/{target}/{solution}/finetuned/model.safetensors",
        corpus="<results>/corpus/heldout.parquet",
        architecture=architecture_of,
    output:
        "<results>/targets/{target}/{solution}/long_context.parquet",
    log:
        "<logs>/evaluate_long_context/{target}/{solution}.log",
    benchmark:
        "<benchmarks>/evaluate_long_context/{target}/{solution}.tsv"
    params:
        **code_of("evaluate_long_context", "torch", "transformers", "lm_eval"),
        **runtime("device", "dtype", "seed"),
        settings=evaluation_settings("long_context"),
    threads: all_cores
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    message:
        "evaluate_long_context: evaluate on questions about long texts, {wildcards}"
    shell:
        command("evaluate_long_context", without=("parent",))


rule evaluate_readout:
    """Classify texts from hidden states of parent and the primary target's best child, before and after finetuning."""
    input:
        **MODELS,
    output:
        "<results>/targets/{target}/{solution}/readout.parquet",
    log:
        "<logs>/evaluate_readout/{target}/{solution}.log",
    benchmark:
        "<benchmarks>/evaluate_readout/{target}/{solution}.tsv"
    params:
        **code_of("evaluate_readout", "torch", "transformers", "scikit-learn"),
        **runtime("device", "dtype", "seed"),
        settings=slice_of({"readout": cfg.evaluation.readout, "archive": cfg.evaluation.task_archive}),
    threads: half_the_cores
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    message:
        "evaluate_readout: classify texts from hidden states, {wildcards}"
    shell:
        command("evaluate_readout")


rule evaluate_parent_engine:
    """Evaluate the parent's files in llama.cpp."""
    input:
        files=PARENT_FILES,
        parent="<results>/parent/model.safetensors",
        corpus="<results>/corpus/heldout.parquet",
        activations=cached_activations("heldout"),
    output:
        "<results>/parent_engine.parquet",
    log:
        "<logs>/evaluate_parent_engine/parent.log",
    benchmark:
        "<benchmarks>/evaluate_parent_engine/parent.tsv"
    params:
        **code_of("evaluate_engine", "torch", "transformers", "xllamacpp"),
        **runtime("device", "dtype"),
        settings=text_evaluation(),
    threads: half_the_cores
    conda:
        "../envs/tangram.yaml"
    message:
        "evaluate_parent_engine: evaluate the parent's files in llama.cpp"
    shell:
        command("evaluate_engine")


rule evaluate_engine:
    """Evaluate an exported child in its target's engine."""
    input:
        files=file_in_engine,
        parent="<results>/parent/model.safetensors",
        corpus="<results>/corpus/heldout.parquet",
        activations=cached_activations("heldout"),
    output:
        "<results>/targets/{target}/{solution}/engine.parquet",
    log:
        "<logs>/evaluate_engine/{target}/{solution}.log",
    benchmark:
        "<benchmarks>/evaluate_engine/{target}/{solution}.tsv"
    params:
        **code_of("evaluate_engine", "torch", "transformers", "xllamacpp"),
        **runtime("device", "dtype"),
        settings=text_evaluation(),
    threads: half_the_cores
    conda:
        "../envs/tangram.yaml"
    message:
        "evaluate_engine: evaluate an exported child in its engine, {wildcards}"
    shell:
        command("evaluate_engine")
