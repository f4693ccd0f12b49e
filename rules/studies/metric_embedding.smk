"""Study: semi-supervised deep learning by metric embedding (arXiv 1611.01449).

- Input: binarised MNIST, or the images of `studies.image_file`.
- Output: `studies/metric_embedding/`: `claims.parquet`, `measurements.parquet`, `report.html`.
- Steps: tune every arm on a validation split, train each with several seeds, from 100 labels and from all.
"""


rule study_metric_embedding:
    """Compare metric embedding with and without unlabelled images, classifying and modern networks."""
    input:
        images=cfg.studies.image_file or "<results>/images/mnist-binarised.npz",
    output:
        claims="<results>/studies/metric_embedding/claims.parquet",
        measurements="<results>/studies/metric_embedding/measurements.parquet",
        page="<results>/studies/metric_embedding/report.html",
    log:
        "<logs>/study_metric_embedding/metric_embedding.log",
    benchmark:
        "<benchmarks>/study_metric_embedding/metric_embedding.tsv"
    params:
        folder=output_folder("claims"),
        settings=slice_of(cfg.studies),
        sources=SOURCE_FILES["images"],
        device=cfg.device,
        code=code_hash("tangram_studies.commands.study_metric_embedding"),
        environment=pins("torch", "scikit-learn", "pytorch-metric-learning"),
    threads: all_cores
    resources:
        gpu=GPU,
    conda:
        "../../envs/tangram.yaml"
    shell:
        "python -m tangram_studies.commands.study_metric_embedding --settings {params.settings:q} --images {input.images:q}"
        " --device {params.device:q} --threads {threads:q} --output {params.folder:q} 2> >(tee {log:q} >&2)"
