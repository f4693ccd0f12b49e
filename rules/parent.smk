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
        parent=output_folder("parent"),
        settings=slice_of(cfg.parent.model_dump(mode="json", exclude={"by_layer", "sizes"})),
        sources=SOURCE_FILES["parent"],
        dtype=cfg.dtype,
        code=code_hash("tangram.commands.fetch_parent"),
        environment=pins("torch", "transformers", "gguf"),
    threads: all_cores  # nothing can run beside it: all else needs the parent
    conda:
        "../envs/tangram.yaml"
    shell:
        "python -m tangram.commands.fetch_parent --settings {params.settings:q} --dtype {params.dtype:q}"
        " --source-files {params.sources:q} --threads {threads:q} --output {params.parent:q} 2> >(tee {log:q} >&2)"
