"""The library: a piece for every variant of every layer's subblocks, each trained separately (BLD), and of the LM head.

- Input: the parent, the distill split and its activations.
- Output: `library/{kind}/{variant}/{shard}`: weights (.safetensors), losses (.parquet), and training curves
  (.curves.parquet) of trained pieces.
- Steps: initialize each layer's piece in closed form, train it in the parent's frozen layer, keep the better weights; a
  killed job resumes from `checkpoints/{kind}/{variant}/{shard}`, which is no output because Snakemake deletes outputs
  before a job starts. Quantize trained pieces and the parent's weights (variants with a precision, such as
  `width-0.5@int8`).
"""


rule distill_blocks:
    """Train one variant of one kind in a range of layers."""
    input:
        parent="<results>/parent/model.safetensors",
        corpus="<results>/corpus/distill.parquet",
        activations=cached_activations("distill"),
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
        checkpoints=f"{RESULTS}/checkpoints/{{kind}}/{{variant}}/{{shard}}",
        checkpoint_seconds=unrecorded(cfg.library.bld.checkpoint_seconds),
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    wildcard_constraints:
        variant="[^@]+",
    message:
        "distill_blocks: train one variant in a range of layers, {wildcards}"
    shell:
        command("distill_blocks")


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
