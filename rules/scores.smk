"""Scores: how much worse the parent gets with one subblock replaced.

- Input: the parent, the score split and its activations, the library's weights.
- Output: `scores/{kind}/{variant}/{shard}.parquet`, collected in `scores.parquet`.
- Steps: replace one subblock, recompute the layers after it, compare with the parent on the same positions.
"""


rule score_blocks:
    """Score one variant of one kind for a range of layers."""
    input:
        parent=checkpoint_of(PARENT),
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
        parent=input_folder("parent"),
        settings=slice_of(cfg.scores),
        activations=option("--activations", cached_activations("score")),
        device=cfg.device,
        dtype=cfg.dtype,
        code=variant_code("tangram.commands.score_blocks"),
        environment=pins("torch", "transformers"),
    threads: 1
    resources:
        by_layer=int(cfg.parent.by_layer),  # no param: the numbers are the same
        local_copy=int(cfg.activations.local_copy),  # no param: nothing depends on it
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    shell:
        "python -m tangram.commands.score_blocks --settings {params.settings:q}"
        " --kind {wildcards.kind:q} --variant {wildcards.variant:q} --layers {wildcards.shard:q}"
        " --parent {params.parent:q} --by-layer {resources.by_layer:q} --corpus {input.corpus:q} {params.activations:q} --local-copy {resources.local_copy:q}"
        " --library {input.library:q} --device {params.device:q} --dtype {params.dtype:q} --threads {threads:q}"
        " --output {output:q} 2> >(tee {log:q} >&2)"


rule collect_scores:
    """Concatenate the scores of all pieces."""
    input:
        SCORE_FILES,
    output:
        "<results>/scores.parquet",
    log:
        "<logs>/collect_scores/scores.log",
    benchmark:
        "<benchmarks>/collect_scores/scores.tsv"
    params:
        code=code_hash("tangram.commands.collect_tables"),
    threads: 1
    conda:
        "../envs/tangram.yaml"
    shell:
        "python -m tangram.commands.collect_tables --table scores --output {output:q} {input:q}"
        " 2> >(tee {log:q} >&2)"
