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
    run_app(app)


def run_app(app: typer.Typer) -> None:
    """Run a typer program; see `run`."""
    try:
        app()
    except TangramError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def check_device(device: str, count: int = 1) -> None:
    """Raise a `TangramError` unless this machine has so many GPUs, if a job computes on `cuda`."""
    if device != "cuda":
        return
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < count:
        wanted = "a GPU" if count == 1 else f"{count} GPUs (finetune.parallel)"
        there = "none" if not found else f"only {found}"
        raise TangramError(
            f"config.device: cuda needs {wanted}, and torch {torch.__version__} finds {there} on this machine; "
            "set device: cpu, install torch for CUDA, or run where there is one"
        )


def use_threads(threads: int, seed: int = 0, device: str = "cpu") -> None:
    """Fix the number of torch threads and torch's seed, and make torch deterministic.

    Raises:
        TangramError: the device is not there.
    """
    import torch

    check_device(device)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, matrix products on a GPU are not
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # A debugging aid of that mode, and slow; no result reads fresh memory.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 (untyped attribute)


if __name__ == "__main__":
    run(check_device)
