"""The selection: of a target's diverse solutions the one that does best on prompts, before anything is finetuned.

- Input: the parent, the score split, the library, `targets/{target}/solutions/mip.json`.
- Output: `targets/{target}/candidates.json`; `targets/{target}/selection/`: `solution.json`, `scores.parquet` and
  `summary.json`.
- Steps: pin the pieces of all candidates; evaluate candidates on prompts, few at first and fewer candidates on more; a
  killed job goes on from the scores in `checkpoints/{target}/selection.npz`. Only targets with a `selection` have
  candidates; the winner is their solution 0.
"""


# A checkpoint for the reason that `pin_architecture` is one.
checkpoint pin_candidates:
    """Write all of the solver's solutions, with the checksum of each piece that they take from the library."""
    input:
        solutions="<results>/targets/{target}/solutions/mip.json",
        library=library_files("safetensors"),
    output:
        "<results>/targets/{target}/candidates.json",
    log:
        "<logs>/pin_candidates/{target}.log",
    benchmark:
        "<benchmarks>/pin_candidates/{target}.tsv"
    params:
        library=library_folder,
        shards=",".join(SHARDS),
        code=code_hash("tangram.commands.pin_candidates"),
    conda:
        "../envs/tangram.yaml"
    shell:
        "python -m tangram.commands.pin_candidates --solutions {input.solutions:q}"
        " --library {params.library:q} --shards {params.shards:q} --output {output:q} 2> >(tee {log:q} >&2)"


rule select_child:
    """Compare a target's candidates and choose one."""
    input:
        parent=checkpoint_of(PARENT),
        corpus="<results>/corpus/score.parquet",
        # Stands for the library, too: it holds the checksums of the pieces.
        candidates=lambda wildcards: checkpoints.pin_candidates.get(target=wildcards.target).output[0],
    output:
        solutions="<results>/targets/{target}/selection/solution.json",
        table="<results>/targets/{target}/selection/scores.parquet",
        summary="<results>/targets/{target}/selection/summary.json",
    log:
        "<logs>/select_child/{target}.log",
    benchmark:
        "<benchmarks>/select_child/{target}.tsv"
    params:
        **made_by("select_child", "torch", "transformers", "numpy", variants=variants_of("candidates")),
        parent=input_folder("parent"),
        library=f"{RESULTS}/library",
        shards=",".join(SHARDS),
        settings=selection_settings,
        cache=f"{RESULTS}/checkpoints/{{target}}/selection.npz",
        device=cfg.device,
        dtype=cfg.dtype,
        seed=cfg.seed,
    threads: half_the_cores
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    shell:
        "python -m tangram.commands.select_child --settings {params.settings:q} --parent {params.parent:q}"
        " --corpus {input.corpus:q} --library {params.library:q} --shards {params.shards:q}"
        " --device {params.device:q} --dtype {params.dtype:q} --seed {params.seed:q} --threads {threads:q}"
        " --candidates {input.candidates:q} --cache {params.cache:q} --solutions {output.solutions:q}"
        " --table {output.table:q} --summary {output.summary:q} 2> >(tee {log:q} >&2)"
