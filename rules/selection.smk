"""The selection: the best of a target's diverse solutions on prompts, before finetuning.

- Input: the parent, the score split, the library, `targets/{target}/solutions/mip.json`; for metric `finetuned` the
  finetune split and its activations.
- Output: `targets/{target}/candidates.json`; `targets/{target}/selection/`: `solution.json`, `scores.parquet` and
  `summary.json`.
- Steps: write the checksums of all candidates' pieces; evaluate candidates on prompts, allocated by a policy; a killed
  job resumes from the scores in `checkpoints/{target}/selection.npz` and the trainings beside them. Only targets with a
  `selection` have candidates; the selected one is their solution 0.
"""


# A checkpoint for the same reason as `pin_architecture`.
checkpoint pin_candidates:
    """Write the architectures of all of the solver's solutions with the checksums of their pieces."""
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
        **code_of("pin_candidates"),
        library=library_folder,
        shards=",".join(SHARDS),
    conda:
        "../envs/tangram.yaml"
    message:
        "pin_candidates: write the checksums of all candidates' pieces, {wildcards}"
    shell:
        command("pin_candidates")


rule select_child:
    """Compare a target's candidates and choose one."""
    input:
        parent="<results>/parent/model.safetensors",
        corpus="<results>/corpus/score.parquet",
        candidates=candidates_of,  # replaces the library as input: it holds the checksums of the pieces
        finetune_corpus=for_finetuned(f"{RESULTS}/corpus/finetune.parquet"),
        finetune_activations=for_finetuned(*cached_activations("finetune")),
    output:
        solutions="<results>/targets/{target}/selection/solution.json",
        table="<results>/targets/{target}/selection/scores.parquet",
        summary="<results>/targets/{target}/selection/summary.json",
    log:
        "<logs>/select_child/{target}.log",
    benchmark:
        "<benchmarks>/select_child/{target}.tsv"
    params:
        **code_of("select_child", "torch", "transformers", "numpy", variants=variants_in_file(candidates_of)),
        **runtime("device", "dtype", "seed"),
        library=f"{RESULTS}/library",
        shards=",".join(SHARDS),
        settings=selection_settings,
        finetune=lambda wildcards: part_settings() if for_finetuned("finetune")(wildcards) else "",
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
