"""The teacher's hidden states: one pass of the parent over a split, cached to disk.

- Input: the parent, `corpus/{split}.parquet`.
- Output: `activations/{split}.npy`, memory-mapped by all that follows. With `activations.mode: stream` no rule asks for
  them: commands recompute what they need.
- Steps: forward pass, batch by batch.
"""


rule capture_activations:
    """Cache every block's input and output for one split."""
    input:
        parent=checkpoint_of(PARENT),
        corpus="<results>/corpus/{split}.parquet",
    output:
        "<results>/activations/{split}.npy",
    log:
        "<logs>/capture_activations/{split}.log",
    benchmark:
        "<benchmarks>/capture_activations/{split}.tsv"
    params:
        parent=input_folder("parent"),
        settings=slice_of(cfg.activations.model_dump(mode="json", exclude={"local_copy"})),
        device=cfg.device,
        dtype=cfg.dtype,
        code=code_hash("tangram.commands.capture_activations"),
        environment=pins("torch", "transformers"),
    threads: 1
    resources:
        by_layer=int(cfg.parent.by_layer),  # no param: the numbers are the same
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    shell:
        "python -m tangram.commands.capture_activations --settings {params.settings:q}"
        " --parent {params.parent:q} --by-layer {resources.by_layer:q} --corpus {input.corpus:q}"
        " --device {params.device:q} --dtype {params.dtype:q} --threads {threads:q}"
        " --output {output:q} 2> >(tee {log:q} >&2)"
