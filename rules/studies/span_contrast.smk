"""Study: does a span-contrastive term help distillation, after spatial contrasting (arXiv 1610.00243)?

- Input: the parent, the headline's best child before finetuning, the finetune, score and held-out splits,
  the parent's activations of the first.
- Output: `studies/span_contrast/`: `claims.parquet`, `measurements.parquet`, `report.html`.
- Steps: tune rate and weights on the score split, finetune with several seeds at equal tokens and at equal seconds.
"""


rule study_span_contrast:
    """Finetune a child with and without contrasted spans."""
    input:
        parent=checkpoint_of(PARENT),
        child=checkpoint_of(f"{RESULTS}/targets/{cfg.headline}/0/child"),
        corpus="<results>/corpus/finetune.parquet",
        score="<results>/corpus/score.parquet",
        heldout="<results>/corpus/heldout.parquet",
        activations=cached_activations("finetune"),
    output:
        claims="<results>/studies/span_contrast/claims.parquet",
        measurements="<results>/studies/span_contrast/measurements.parquet",
        page="<results>/studies/span_contrast/report.html",
    log:
        "<logs>/study_span_contrast/span_contrast.log",
    benchmark:
        "<benchmarks>/study_span_contrast/span_contrast.tsv"
    params:
        parent=input_folder("parent"),
        child=input_folder("child"),
        folder=output_folder("claims"),
        activations=option("--activations", cached_activations("finetune")),
        settings=slice_of({"studies": cfg.studies, "finetune": cfg.finetune, "archive": cfg.evaluation.task_archive}),
        device=cfg.device,
        dtype=cfg.dtype,
        code=code_hash("tangram_studies.commands.study_span_contrast"),
        environment=pins("torch", "transformers", "scikit-learn"),
    threads: all_cores
    resources:
        gpu=GPU,
    conda:
        "../../envs/tangram.yaml"
    shell:
        "python -m tangram_studies.commands.study_span_contrast --settings {params.settings:q} --parent {params.parent:q}"
        " --child {params.child:q} --corpus {input.corpus:q} --score {input.score:q} --heldout {input.heldout:q}"
        " {params.activations:q} --device {params.device:q} --dtype {params.dtype:q} --threads {threads:q}"
        " --output {params.folder:q} 2> >(tee {log:q} >&2)"
