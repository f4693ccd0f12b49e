"""The check that this machine's GPU has kernels for a precision."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from tangram.errors import TangramError

CAPABILITY = {"fp8": (8, 9)}  # smallest compute capability of a GPU, by precision; others run on every GPU


def check_capability(precisions: Iterable[str | None], device: str) -> None:
    """Check that the GPU on which a job computes has kernels for some precisions (None: the run's dtype).

    Raises:
        TangramError: it is older than they require.
    """
    for precision in precisions if device == "cuda" else ():
        required, actual = CAPABILITY.get(precision or "", (0, 0)), torch.cuda.get_device_capability()
        if actual < required:
            raise TangramError(
                f"{precision} needs a GPU of compute capability {'.'.join(map(str, required))} or later, and this "
                f"machine's has {'.'.join(map(str, actual))}; leave {precision} out, or run on a newer GPU"
            )
