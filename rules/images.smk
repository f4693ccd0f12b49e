"""Images for the studies of papers; no part of the main job.

- Input: Debian's package `dataset-fashion-mnist`: installed, put into `.downloads/`, or downloaded by apt.
- Output: `images/fashion-mnist.npz`.
- Steps: find the four files, check them, write them as arrays.
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
        code=code_hash("tangram.commands.fetch_fashion_mnist"),
    threads: 1
    conda:
        "../envs/tangram.yaml"
    shell:
        "python -m tangram.commands.fetch_fashion_mnist --output {output:q} 2> >(tee {log:q} >&2)"
