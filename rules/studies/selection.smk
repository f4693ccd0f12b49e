"""The study of selection: which policy finds the best of many children, on this run's own library.

- Input: the parent, the held-out split, the library, `scores.parquet`, `costs.parquet`, `calibration.parquet`.
- Output: `studies/selection/claims.parquet`, `measurements.parquet`, `report.html`, and `evidence.npz` with the table.
- Steps: solve the headline's target for many diverse solutions; score every one on every prompt; replay every policy in
  many orders of the prompts; leave out every layer on prompts of four domains and rank layers online. A killed job goes on
  from `checkpoints/study_selection.npz` and `checkpoints/study_selection.layers.npz`.
"""


rule study_selection:
    """Measure how well policies choose among children."""
    input:
        parent=checkpoint_of(PARENT),
        heldout="<results>/corpus/heldout.parquet",
        scores="<results>/scores.parquet",
        costs="<results>/costs.parquet",
        calibration="<results>/calibration.parquet",
        library=library_files("safetensors"),
    output:
        evidence="<results>/studies/selection/evidence.npz",
        claims="<results>/studies/selection/claims.parquet",
        measurements="<results>/studies/selection/measurements.parquet",
        page="<results>/studies/selection/report.html",
    log:
        "<logs>/study_selection/study.log",
    benchmark:
        "<benchmarks>/study_selection/study.tsv"
    params:
        folder=output_folder("page"),
        parent=input_folder("parent"),
        library=library_folder,
        shards=",".join(SHARDS),
        settings=slice_of(
            {
                "studies": cfg.studies,
                "target": cfg.targets[cfg.headline],
                "search": cfg.search,
                "scenarios": cfg.scenarios,
            }
        ),
        cache=f"{RESULTS}/checkpoints/study_selection.npz",
        device=cfg.device,
        dtype=cfg.dtype,
        seed=cfg.seed,
        code=code_hash("tangram.commands.study_selection", *modules_of_variants()),
        environment=pins("torch", "transformers", "numpy", "scipy"),
    threads: all_cores
    resources:
        gpu=GPU,
    conda:
        "../../envs/tangram.yaml"
    shell:
        "python -m tangram.commands.study_selection --settings {params.settings:q} --parent {params.parent:q}"
        " --heldout {input.heldout:q} --scores {input.scores:q} --costs {input.costs:q}"
        " --calibration {input.calibration:q} --library {params.library:q} --shards {params.shards:q}"
        " --device {params.device:q} --dtype {params.dtype:q} --seed {params.seed:q} --threads {threads:q}"
        " --cache {params.cache:q} --output {params.folder:q} 2> >(tee {log:q} >&2)"
