"""Bring Fashion-MNIST from Debian's package into one file."""

from pathlib import Path
from typing import Annotated

import typer

from tangram.cli import run


def fetch_fashion_mnist(output: Annotated[Path, typer.Option(help="images and labels to write (npz)")]) -> None:
    """Write train_images, train_labels, test_images and test_labels, unsigned bytes."""
    from tangram.provenance import provenance
    from tangram_studies.data.fashion_mnist import fetch

    fetch(output, provenance("tangram_studies.commands.fetch_fashion_mnist", {}))


if __name__ == "__main__":
    run(fetch_fashion_mnist)
