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
        **made_by("pin_candidates"),
        library=library_folder,
        shards=",".join(SHARDS),
    conda:
        "../envs/tangram.yaml"
    message:
        "pin_candidates: note the pieces of all candidates, {wildcards}"
    shell:
        command("pin_candidates")


rule select_child:
    """Compare a target's candidates and choose one."""
    input:
        parent="<results>/parent/model.safetensors",
        corpus="<results>/corpus/score.parquet",
        candidates=candidates_of,  # stands for the library, too: it holds the checksums of the pieces
    output:
        solutions="<results>/targets/{target}/selection/solution.json",
        table="<results>/targets/{target}/selection/scores.parquet",
        summary="<results>/targets/{target}/selection/summary.json",
    log:
        "<logs>/select_child/{target}.log",
    benchmark:
        "<benchmarks>/select_child/{target}.tsv"
    params:
        **made_by("select_child", "torch", "transformers", "numpy", variants=variants_in_file(candidates_of)),
        **runtime("device", "dtype", "seed"),
        library=f"{RESULTS}/library",
        shards=",".join(SHARDS),
        settings=selection_settings,
        cache=f"{RESULTS}/checkpoints/{{target}}/selection.npz",
    threads: half_the_cores
    resources:
        gpu=GPU,
    conda:
        "../envs/tangram.yaml"
    message:
        "select_child: compare candidates and choose one, {wildcards}"
    shell:
        command("select_child")
