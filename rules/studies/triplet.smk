"""Study: deep metric learning using a triplet network (arXiv 1412.6622).

- Input: Fashion-MNIST, or the images of `studies.image_file`.
- Output: `studies/triplet/`: `claims.parquet`, `measurements.parquet`, `report.html`.
- Steps: tune every loss on a validation split, train each with several seeds, read classes from the embeddings.
"""


rule study_triplet:
    """Compare triplet, Siamese, modern and classifying networks."""
    input:
        images=cfg.studies.image_file or "<results>/images/fashion-mnist.npz",
    output:
        claims="<results>/studies/triplet/claims.parquet",
        measurements="<results>/studies/triplet/measurements.parquet",
        page="<results>/studies/triplet/report.html",
    log:
        "<logs>/study_triplet/triplet.log",
    benchmark:
        "<benchmarks>/study_triplet/triplet.tsv"
    params:
        folder=output_folder("claims"),
        settings=slice_of(cfg.studies),
        sources=SOURCE_FILES["images"],
        device=cfg.device,
        code=code_hash("tangram_studies.commands.study_triplet"),
        environment=pins("torch", "scikit-learn", "pytorch-metric-learning"),
    threads: all_cores
    resources:
        gpu=GPU,
    conda:
        "../../envs/tangram.yaml"
    shell:
        "python -m tangram_studies.commands.study_triplet --settings {params.settings:q} --images {input.images:q}"
        " --device {params.device:q} --threads {threads:q} --output {params.folder:q} 2> >(tee {log:q} >&2)"
