"""The corpus: four splits of text, tokenized and packed to one length.

- Input: the parent (its tokenizer, and the model if it samples text), the split's sources.
- Output: `corpus/{split}.parquet` for distill, score, finetune and heldout; no two splits share a document.
- Steps: read or sample text, split by document, tokenize, pack.
"""


rule build_corpus:
    """Make one split of the corpus."""
    input:
        parent="<results>/parent/model.safetensors",
    output:
        "<results>/corpus/{split}.parquet",
    log:
        "<logs>/build_corpus/{split}.log",
    benchmark:
        "<benchmarks>/build_corpus/{split}.tsv"
    params:
        **code_of("build_corpus", "torch", "transformers", "tokenizers", "datasets"),
        **runtime("device", "dtype", "seed"),
        settings=lambda wildcards: split_settings(wildcards.split),
        source_files=lambda wildcards: SOURCE_FILES[wildcards.split],
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    message:
        "build_corpus: tokenize and pack text, {wildcards}"
    shell:
        command("build_corpus")
