"""The library: a piece for every variant of every layer's subblocks, each trained separately (BLD), and of the LM head.

- Input: the parent, the distill split and its activations.
- Output: `moments/{kind}/{shard}.safetensors`: moments of the activations, from which all variants of a kind are fitted
  in closed form; `library/{kind}/{variant}/{shard}`: weights (.safetensors), losses (.parquet), and training curves
  (.curves.parquet) of trained pieces.
- Steps: measure the moments in one pass; initialize each layer's piece in closed form, train it in the parent's frozen layer, keep the better weights; a
  killed job resumes from `checkpoints/{kind}/{variant}/{shard}`, which is no output because Snakemake deletes outputs
  before a job starts. Quantize trained pieces and the parent's weights (variants with a precision, such as
  `width-0.5@int8`). Train the pairs of `library.coupled` together (coupled BLD), into `library/block/{pair}/{shard}`.
"""


rule measure_moments:
    """Measure the moments of the activations of one kind in a range of layers."""
    input:
        parent="<results>/parent/model.safetensors",
        corpus="<results>/corpus/distill.parquet",
        activations=cached_activations("distill"),
    output:
        "<results>/moments/{kind}/{shard}.safetensors",
    log:
        "<logs>/measure_moments/{kind}/{shard}.log",
    benchmark:
        "<benchmarks>/measure_moments/{kind}/{shard}.tsv"
    params:
        **code_of("measure_moments", "torch", "transformers"),
        **runtime("device", "dtype"),
        settings=moments_settings(),
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    message:
        "measure_moments: measure moments of activations in a range of layers, {wildcards}"
    shell:
        command("measure_moments")


rule distill_blocks:
    """Train one variant of one kind in a range of layers."""
    input:
        parent="<results>/parent/model.safetensors",
        corpus="<results>/corpus/distill.parquet",
        activations=cached_activations("distill"),
        moments=moments_of_job,
    output:
        library="<results>/library/{kind}/{variant}/{shard}.safetensors",
        table="<results>/library/{kind}/{variant}/{shard}.parquet",
        curves="<results>/library/{kind}/{variant}/{shard}.curves.parquet",
    log:
        "<logs>/distill_blocks/{kind}/{variant}/{shard}.log",
    benchmark:
        "<benchmarks>/distill_blocks/{kind}/{variant}/{shard}.tsv"
    params:
        **code_of("distill_blocks", "torch", "transformers", variants=variant_of_job),
        **runtime("device", "dtype", "seed"),
        settings=slice_of(cfg.library.bld.model_dump(mode="json", exclude={"checkpoint_seconds"})),
        pruning=pruning_of_job,
        checkpoints=f"{RESULTS}/checkpoints/{{kind}}/{{variant}}/{{shard}}",
        checkpoint_seconds=unrecorded(cfg.library.bld.checkpoint_seconds),
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    wildcard_constraints:
        variant="[^@+]+",
    message:
        "distill_blocks: train one variant in a range of layers, {wildcards}"
    shell:
        command("distill_blocks")


rule distill_pairs:
    """Train a pair of an attention and an FFN variant together in a range of layers."""
    input:
        parent="<results>/parent/model.safetensors",
        corpus="<results>/corpus/distill.parquet",
        activations=cached_activations("distill"),
        attention=pieces_of_pair("attention"),
        ffn=pieces_of_pair("ffn"),
    output:
        library="<results>/library/{kind}/{variant}/{shard}.safetensors",
        table="<results>/library/{kind}/{variant}/{shard}.parquet",
        curves="<results>/library/{kind}/{variant}/{shard}.curves.parquet",
    log:
        "<logs>/distill_pairs/{kind}/{variant}/{shard}.log",
    benchmark:
        "<benchmarks>/distill_pairs/{kind}/{variant}/{shard}.tsv"
    params:
        **code_of("distill_pairs", "torch", "transformers", variants=variant_of_job),
        **runtime("device", "dtype", "seed"),
        settings=slice_of(cfg.library.bld.model_dump(mode="json", exclude={"checkpoint_seconds"})),
        pruning=pruning_of_job,
        checkpoints=f"{RESULTS}/checkpoints/{{kind}}/{{variant}}/{{shard}}",
        checkpoint_seconds=unrecorded(cfg.library.bld.checkpoint_seconds),
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    wildcard_constraints:
        variant=r"[^@+]+\+[^@+]+",
    message:
        "distill_pairs: train two variants together in a range of layers, {wildcards}"
    shell:
        command("distill_pairs")


rule quantize_blocks:
    """Quantize one variant of one kind in a range of layers, or the LM head."""
    input:
        parent="<results>/parent/model.safetensors",
        corpus="<results>/corpus/distill.parquet",
        activations=cached_activations("distill"),
        source=source_of,
    output:
        library="<results>/library/{kind}/{variant}/{shard}.safetensors",
        table="<results>/library/{kind}/{variant}/{shard}.parquet",
    log:
        "<logs>/quantize_blocks/{kind}/{variant}/{shard}.log",
    benchmark:
        "<benchmarks>/quantize_blocks/{kind}/{variant}/{shard}.tsv"
    params:
        **code_of("quantize_blocks", "torch", "transformers", variants=variant_of_job),
        **runtime("device", "dtype"),
        settings=quantization_settings(),
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    wildcard_constraints:
        variant="[^@]+@[^@]+",
    message:
        "quantize_blocks: quantize one variant in a range of layers, {wildcards}"
    shell:
        command("quantize_blocks")
