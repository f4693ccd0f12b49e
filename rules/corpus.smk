"""The corpus: four splits of text, tokenised and packed to one length.

- Input: the parent (its tokenizer, and itself where it writes the text), the split's sources.
- Output: `corpus/{split}.parquet` for distil, score, finetune and heldout; no document is in two of them.
- Steps: read or sample text, split by document, tokenise, pack.
"""


rule build_corpus:
    """Make one split of the corpus."""
    input:
        parent=checkpoint_of(PARENT),
    output:
        "<results>/corpus/{split}.parquet",
    log:
        "<logs>/build_corpus/{split}.log",
    benchmark:
        "<benchmarks>/build_corpus/{split}.tsv"
    params:
        parent=input_folder("parent"),
        settings=lambda wildcards: split_settings(wildcards.split),
        sources=lambda wildcards: SOURCE_FILES[wildcards.split],
        device=cfg.device,
        dtype=cfg.dtype,
        seed=cfg.seed,
        code=code_hash("tangram.commands.build_corpus"),
        environment=pins("torch", "transformers", "tokenizers", "datasets"),
    threads: 1
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    shell:
        "python -m tangram.commands.build_corpus --settings {params.settings:q} --split {wildcards.split:q}"
        " --parent {params.parent:q} --device {params.device:q} --dtype {params.dtype:q}"
        " --seed {params.seed:q} --threads {threads:q} --source-files {params.sources:q}"
        " --output {output:q} 2> >(tee {log:q} >&2)"
