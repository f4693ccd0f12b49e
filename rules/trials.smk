"""Trials of text: which source a child learns most from, before the run distils on it: `snakemake try_texts`.

- Input: the parent, the held-out split and its activations, the sources of `text_trials`.
- Output: `trials/{text}/{draw}.parquet`, compared in `trials.parquet`, which the report shows.
- Steps: remove some layers of the parent, finetune it on each source for the same tokens, compare the KL by sequence.
"""


rule try_text:
    """Finetune the parent without some layers on one draw of one text."""
    input:
        parent="<results>/parent/model.safetensors",
        corpus="<results>/corpus/heldout.parquet",
        activations=cached_activations("heldout"),
    output:
        "<results>/trials/{text}/{draw}.parquet",
    log:
        "<logs>/try_text/{text}/{draw}.log",
    benchmark:
        "<benchmarks>/try_text/{text}/{draw}.tsv"
    params:
        **code_of("try_text", "torch", "transformers", "tokenizers", "datasets"),
        **runtime("device", "dtype", "seed"),
        settings=lambda wildcards: trial_settings(wildcards.text),
        source_files=lambda wildcards: SOURCE_FILES[f"text_trials.{wildcards.text}"],
    threads: half_the_cores
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    message:
        "try_text: finetune a child on a draw of text, {wildcards}"
    shell:
        command("try_text")


rule try_texts:
    """Compare all texts by the KL of their children."""
    input:
        tables=[f"{RESULTS}/trials/{text}/{draw}.parquet" for text, draw in TRIALS],
    output:
        "<results>/trials.parquet",
    log:
        "<logs>/try_texts/trials.log",
    benchmark:
        "<benchmarks>/try_texts/trials.tsv"
    params:
        **code_of("try_texts", "scipy"),
    conda:
        "../envs/tangram.yaml"
    message:
        "try_texts: compare all texts by the KL of their children"
    shell:
        command("try_texts")
