"""How every command runs: typed options, one line for a user's mistake, progress on standard error."""

import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from tangram.errors import TangramError


def run(command: Callable[..., Any]) -> None:
    """Run a command function as a typer program; a `TangramError` becomes one line on standard error and exit 1."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    try:
        app()
    except TangramError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def use_threads(threads: int, seed: int = 0) -> None:
    """Fix the number of torch threads and torch's seed, and make torch deterministic."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, matrix products on a GPU are not
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # A debugging aid of that mode, and slow; no result reads fresh memory.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 (untyped attribute)
