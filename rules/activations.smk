"""The parent's hidden states: one forward pass over a split, cached on disk.

- Input: the parent, `corpus/{split}.parquet`.
- Output: `activations/{split}.npy`, which later rules memory-map. With `activations.mode: stream` no rule reads them:
  commands recompute the states.
- Steps: forward pass in batches.
"""


rule capture_activations:
    """Cache every layer's input and output for one split."""
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
        **code_of("capture_activations", "torch", "transformers"),
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
