"""Scores: the loss of quality of the parent with one replaced subblock.

- Input: the parent, the score split and its activations, the library's weights.
- Output: `scores/{kind}/{variant}/{shard}.parquet`, and with `scores.tasks` `score_questions.json` and
  `task_scores/{kind}/{variant}/{shard}.parquet`; all are collected in `scores.parquet`; `scores/layers/{shard}.parquet`
  of whole layers left out, for the baseline that drops layers.
- Steps: replace one subblock, recompute the layers after it, compare with the parent on the same positions. With
  `scores.method: screened`, one job estimates all scores by second order and does these steps for contenders only;
  exact scores are kept in `checkpoints/scores.json`, so that a changed target or a new variant repeats none.
"""


rule score_blocks:
    """Score one variant of one kind for a range of layers."""
    input:
        parent="<results>/parent/model.safetensors",
        corpus="<results>/corpus/score.parquet",
        activations=cached_activations("score"),
        library="<results>/library/{kind}/{variant}/{shard}.safetensors",
    output:
        "<results>/scores/{kind}/{variant}/{shard}.parquet",
    log:
        "<logs>/score_blocks/{kind}/{variant}/{shard}.log",
    benchmark:
        "<benchmarks>/score_blocks/{kind}/{variant}/{shard}.tsv"
    params:
        **code_of("score_blocks", "torch", "transformers", variants=variant_of_job),
        **runtime("device", "dtype"),
        settings=exact_settings("compute"),
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    message:
        "score_blocks: score one variant in a range of layers, {wildcards}"
    shell:
        command("score_blocks")


rule extract_score_tasks:
    """Extract the questions that scores by downstream accuracy use."""
    output:
        "<results>/score_questions.json",
    log:
        "<logs>/extract_score_tasks/tasks.log",
    benchmark:
        "<benchmarks>/extract_score_tasks/tasks.tsv"
    params:
        **code_of("extract_score_tasks", "lm_eval"),
        settings=slice_of({"tasks": cfg.scores.tasks, "archive": cfg.evaluation.task_archive}),
        source_files=SOURCE_FILES["score_tasks"],
    conda:
        "../envs/tangram.yaml"
    message:
        "extract_score_tasks: extract the questions that scores use"
    shell:
        command("extract_score_tasks")


rule score_tasks:
    """Score one variant of one kind for a range of layers by answers to questions."""
    input:
        parent="<results>/parent/model.safetensors",
        questions="<results>/score_questions.json",
        library="<results>/library/{kind}/{variant}/{shard}.safetensors",
    output:
        "<results>/task_scores/{kind}/{variant}/{shard}.parquet",
    log:
        "<logs>/score_tasks/{kind}/{variant}/{shard}.log",
    benchmark:
        "<benchmarks>/score_tasks/{kind}/{variant}/{shard}.tsv"
    params:
        **code_of("score_tasks", "torch", "transformers", variants=variant_of_job),
        **runtime("device", "dtype"),
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    message:
        "score_tasks: score one variant in a range of layers by answers to questions, {wildcards}"
    shell:
        command("score_tasks")


rule score_layers:
    """Score whole layers of a range, left out one at a time."""
    input:
        parent="<results>/parent/model.safetensors",
        corpus="<results>/corpus/score.parquet",
        activations=cached_activations("score"),
    output:
        "<results>/scores/layers/{shard}.parquet",
    log:
        "<logs>/score_layers/{shard}.log",
    benchmark:
        "<benchmarks>/score_layers/{shard}.tsv"
    params:
        **code_of("score_layers", "torch", "transformers"),
        **runtime("device", "dtype"),
        settings=exact_settings("compute"),
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    message:
        "score_layers: score whole layers, left out one at a time, {wildcards}"
    shell:
        command("score_layers")


if cfg.scores.method == "exact":

    rule collect_scores:
        """Concatenate the scores of all pieces."""
        input:
            tables=SCORE_FILES,
        output:
            "<results>/scores.parquet",
        log:
            "<logs>/collect_scores/scores.log",
        benchmark:
            "<benchmarks>/collect_scores/scores.tsv"
        params:
            **code_of("collect_tables"),
            table="scores",
        conda:
            "../envs/tangram.yaml"
        message:
            "collect_scores: concatenate the scores of all pieces"
        shell:
            command("collect_tables")

else:

    rule score_screened:
        """Estimate the scores of all pieces by second order, and score the contenders of all targets exactly."""
        input:
            parent="<results>/parent/model.safetensors",
            corpus="<results>/corpus/score.parquet",
            activations=cached_activations("score"),
            library=library_files("safetensors"),
            costs=[*COST_TABLES["costs"], *COST_TABLES["calibration"]],
        output:
            "<results>/scores.parquet",
        log:
            "<logs>/score_screened/scores.log",
        benchmark:
            "<benchmarks>/score_screened/scores.tsv"
        params:
            **code_of("score_screened", "torch", "transformers", "pyomo", "highspy", variants=LIBRARY),
            **runtime("device", "dtype", "seed"),
            settings=screening_settings(),
            library=library_folder,
            shards=",".join(SHARDS),
            tables=RESULTS,
            cache=f"{RESULTS}/checkpoints/scores.json",
        resources:
            gpu=GPU,
        conda:
            "../envs/tangram.yaml"
        message:
            "score_screened: estimate the scores of all pieces, and score contenders exactly"
        shell:
            command("score_screened")
