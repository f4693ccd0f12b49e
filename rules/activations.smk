"""The teacher's hidden states: one pass of the parent over a split, cached to disk.

- Input: the parent, `corpus/{split}.parquet`.
- Output: `activations/{split}.npy`, memory-mapped by all that follows. With `activations.mode: stream` no rule asks for
  them: commands recompute what they need.
- Steps: forward pass, batch by batch.
"""


rule capture_activations:
    """Cache every block's input and output for one split."""
    input:
        parent="<results>/parent/model.safetensors",
        corpus="<results>/corpus/{split}.parquet",
    output:
        "<results>/activations/{split}.npy",
    log:
        "<logs>/capture_activations/{split}.log",
    benchmark:
        "<benchmarks>/capture_activations/{split}.tsv"
    params:
        **made_by("capture_activations", "torch", "transformers"),
        **runtime("device", "dtype"),
        settings=slice_of(cfg.activations.model_dump(mode="json", exclude={"local_copy"})),
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    message:
        "capture_activations: cache the parent's hidden states, {wildcards}"
    shell:
        command("capture_activations")
