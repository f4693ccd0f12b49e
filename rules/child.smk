"""The child: the solution's pieces and the parent's other weights, assembled into one checkpoint.

- Input: the parent, `targets/{target}/{solution}/architecture.json`, the library; after several rounds
  `targets/{target}/rounds/child/`, whose weights stay where its variants do; with `assembly.compensate` the distill split.
- Output: `targets/{target}/{solution}/child/`, which transformers loads with `trust_remote_code=True`.
- Steps: copy the parent's tensors, insert the pieces, with `assembly.compensate` fit the last matrix before removed
  subblocks on the distill split, write the config and the modeling file.
"""


rule assemble_child:
    """Assemble one architecture into a checkpoint."""
    input:
        parent="<results>/parent/model.safetensors",
        architecture=architecture_of,  # replaces the library as input: it holds the checksums of the pieces
        base=base_of_child,
        corpus=text_of_compensation,
    output:
        child=checkpoint_of(f"{CHILD}/child"),
    log:
        "<logs>/assemble_child/{target}/{solution}.log",
    benchmark:
        "<benchmarks>/assemble_child/{target}/{solution}.tsv"
    params:
        **code_of("assemble_child", "torch", "transformers", variants=variants_in_file(architecture_of)),
        **runtime("dtype", on_device=text_of_compensation),
        random_weights=lambda wildcards: cfg.seed if wildcards.solution == RANDOM_WEIGHTS else "none",
        ridge=lambda wildcards: cfg.assembly.ridge if text_of_compensation(wildcards) else "none",
        folder=output_folder("child"),
        library=f"{RESULTS}/library",
        shards=",".join(SHARDS),
    threads: lambda wildcards: half_the_cores(wildcards) if text_of_compensation(wildcards) else 1
    resources:
        gpu=lambda wildcards: GPU if text_of_compensation(wildcards) else 0,
    conda:
        "../envs/tangram.yaml"
    message:
        "assemble_child: write a child's checkpoint, {wildcards}"
    shell:
        command("assemble_child")
