"""The block library: what may stand in for each subblock of the parent, trained piece by piece (BLD).

- Input: the parent, the distil split and its activations.
- Output: `library/{kind}/{variant}/{shard}`: weights (.safetensors), losses (.parquet), training curves (.curves.parquet).
- Steps: initialise each layer's piece in closed form, train it beside the parent's frozen other subblock, keep the better;
  a killed job goes on from `checkpoints/{kind}/{variant}/{shard}`, outside the outputs that Snakemake clears.
"""


rule distill_blocks:
    """Make one variant of one kind for a range of layers."""
    input:
        parent=checkpoint_of(PARENT),
        corpus="<results>/corpus/distil.parquet",
        activations=cached_activations("distil"),
    output:
        library="<results>/library/{kind}/{variant}/{shard}.safetensors",
        table="<results>/library/{kind}/{variant}/{shard}.parquet",
        curves="<results>/library/{kind}/{variant}/{shard}.curves.parquet",
    log:
        "<logs>/distill_blocks/{kind}/{variant}/{shard}.log",
    benchmark:
        "<benchmarks>/distill_blocks/{kind}/{variant}/{shard}.tsv"
    params:
        parent=input_folder("parent"),
        settings=slice_of(cfg.library.bld.model_dump(mode="json", exclude={"checkpoint_seconds"})),
        activations=option("--activations", cached_activations("distil")),
        checkpoints=f"{RESULTS}/checkpoints/{{kind}}/{{variant}}/{{shard}}",
        device=cfg.device,
        dtype=cfg.dtype,
        seed=cfg.seed,
        code=variant_code("tangram.commands.distill_blocks"),
        environment=pins("torch", "transformers"),
    threads: 1
    resources:
        by_layer=int(cfg.parent.by_layer),  # no param: the numbers are the same
        local_copy=int(cfg.activations.local_copy),  # no param: nothing depends on it
        gpu=GPU,
        checkpoint_seconds=cfg.library.bld.checkpoint_seconds,  # no param: nothing depends on it
    conda:
        "../envs/tangram.yaml"
    shell:
        "python -m tangram.commands.distill_blocks --settings {params.settings:q}"
        " --kind {wildcards.kind:q} --variant {wildcards.variant:q} --layers {wildcards.shard:q}"
        " --parent {params.parent:q} --by-layer {resources.by_layer:q} --corpus {input.corpus:q} {params.activations:q} --local-copy {resources.local_copy:q}"
        " --device {params.device:q} --dtype {params.dtype:q} --seed {params.seed:q} --threads {threads:q}"
        " --checkpoints {params.checkpoints:q} --checkpoint-seconds {resources.checkpoint_seconds:q}"
        " --library {output.library:q} --table {output.table:q} --curves {output.curves:q} 2> >(tee {log:q} >&2)"
