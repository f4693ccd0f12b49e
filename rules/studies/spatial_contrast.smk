"""Study: deep unsupervised learning through spatial contrasting (arXiv 1610.00243).

- Input: CIFAR-10's test images, or those of `studies.image_file`; binarised MNIST.
- Output: `studies/spatial_contrast/`: `claims.parquet`, `measurements.parquet`, `report.html`.
- Steps: pretrain without labels, finetune with few and with many, every arm tuned on a validation split.
"""


rule study_spatial_contrast:
    """Compare starts by spatial contrasting, a modern contrast, and none."""
    input:
        images=cfg.studies.image_file or "<results>/images/cifar10-test.npz",
        digits="<results>/images/mnist-binarised.npz",
    output:
        claims="<results>/studies/spatial_contrast/claims.parquet",
        measurements="<results>/studies/spatial_contrast/measurements.parquet",
        page="<results>/studies/spatial_contrast/report.html",
    log:
        "<logs>/study_spatial_contrast/spatial_contrast.log",
    benchmark:
        "<benchmarks>/study_spatial_contrast/spatial_contrast.tsv"
    params:
        folder=output_folder("claims"),
        settings=slice_of(cfg.studies),
        sources=SOURCE_FILES["images"],
        device=cfg.device,
        code=code_hash("tangram_studies.commands.study_spatial_contrast"),
        environment=pins("torch", "scikit-learn", "pytorch-metric-learning"),
    threads: all_cores
    resources:
        gpu=GPU,
    conda:
        "../../envs/tangram.yaml"
    shell:
        "python -m tangram_studies.commands.study_spatial_contrast --settings {params.settings:q} --images {input.images:q}"
        " --digits {input.digits:q} --device {params.device:q} --threads {threads:q} --output {params.folder:q} 2> >(tee {log:q} >&2)"
