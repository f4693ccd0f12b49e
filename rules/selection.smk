"""The selection: of a target's diverse solutions the one that does best on prompts, before anything is finetuned.

- Input: the parent, the score split, the library, `targets/{target}/candidates/architecture.json`.
- Output: `targets/{target}/selection/`: `architecture.json`, `scores.parquet` and `summary.json`.
- Steps: evaluate candidates on prompts, few at first and fewer candidates on more; a killed job goes on from the scores
  in `checkpoints/{target}/selection.npz`. Only targets with a `selection` have candidates; the winner is their rank 0.
"""


rule select_child:
    """Compare a target's candidates and choose one."""
    input:
        parent=checkpoint_of(PARENT),
        corpus="<results>/corpus/score.parquet",
        candidates=candidates_of,  # stands for the library, too: it holds the checksums of the pieces
    output:
        architecture="<results>/targets/{target}/selection/architecture.json",
        table="<results>/targets/{target}/selection/scores.parquet",
        summary="<results>/targets/{target}/selection/summary.json",
    log:
        "<logs>/select_child/{target}.log",
    benchmark:
        "<benchmarks>/select_child/{target}.tsv"
    params:
        **made_by("select_child", "torch", "transformers", "numpy", variants=variants_of("candidates")),
        parent=input_folder("parent"),
        library=f"{RESULTS}/library",
        shards=",".join(SHARDS),
        settings=selection_settings,
        cache=f"{RESULTS}/checkpoints/{{target}}/selection.npz",
        device=cfg.device,
        dtype=cfg.dtype,
        seed=cfg.seed,
    threads: half_the_cores
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    shell:
        "python -m tangram.commands.select_child --settings {params.settings:q} --parent {params.parent:q}"
        " --corpus {input.corpus:q} --library {params.library:q} --shards {params.shards:q}"
        " --device {params.device:q} --dtype {params.dtype:q} --seed {params.seed:q} --threads {threads:q}"
        " --candidates {input.candidates:q} --cache {params.cache:q} --architecture {output.architecture:q}"
        " --table {output.table:q} --summary {output.summary:q} 2> >(tee {log:q} >&2)"
