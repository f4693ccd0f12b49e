"""Run the commands: typed options, a one-line message for a user's mistake, progress on standard error.

A command's signature declares the files that it reads and writes; `shell` generates the rule's shell line from it.
"""

import dataclasses
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from tangram.errors import TangramError, nearest


def reads(help: str) -> Any:
    """Describe an option that names a file to read, an input of the rule; an empty value means None."""
    return typer.Option(help=help, parser=lambda text: text or None, metavar="FILE")


def reads_each(help: str) -> Any:
    """Describe the argument that names files to read, inputs of the rule."""
    return typer.Argument(help=help)


def reads_model(help: str) -> Any:
    """Describe an option that names a checkpoint to read: the folder, or the weights in it, an input of the rule."""
    return typer.Option(help=f"{help}: its folder, or the weights there", parser=model_folder, metavar="FOLDER")


def writes(help: str) -> Any:
    """Describe an option that names a file to write, an output of the rule."""
    return typer.Option(help=f"{help}, to write", metavar="FILE")


def model_folder(path: str) -> str:
    """Return a checkpoint's folder from the path of the folder or of the weights in it."""
    return os.path.dirname(path) if path.endswith(".safetensors") else path


@dataclasses.dataclass(frozen=True)
class Runtime:
    """Device, precision, seed and resources of a job; numbers depend on the first three alone.

    Attributes:
        device: ``cpu`` or ``cuda``.
        dtype: dtype of the weights, ``float32`` or ``bfloat16``.
        seed: seed of all random numbers.
        threads: torch's threads.
        by_layer: hold one layer's weights in memory at a time, if the command supports it.
        local_copy: read cached activations from a copy in ``$TMPDIR``.
    """

    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    threads: int = 1
    by_layer: bool = False
    local_copy: bool = False

    @classmethod
    def parse(cls, text: str) -> "Runtime":
        """Parse a text such as ``device=cuda,seed=1,by_layer=1``; other attributes have their defaults.

        Raises:
            TangramError: a name is unknown, or a value is not a whole number where one is required.
        """
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        values: dict[str, Any] = dict(part.partition("=")[::2] for part in str(text).split(","))
        for name, value in values.items():
            if name not in defaults:
                raise TangramError(f"--runtime: '{name}' is unknown{nearest(name, list(defaults))}")
            if isinstance(defaults[name], int):
                if not value.isdecimal():
                    raise TangramError(f"--runtime: {name} must be a whole number, not '{value}'")
                values[name] = bool(int(value)) if isinstance(defaults[name], bool) else int(value)
        return cls(**values)

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        values = dataclasses.asdict(self)
        return ",".join(f"{name}={value if isinstance(value, str) else int(value)}" for name, value in values.items())

    def start(self) -> None:
        """Set torch's threads and seed; see `use_threads` for errors."""
        use_threads(self.threads, self.seed, self.device)


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The pieces that one job distills or scores: one variant of one kind in a range of layers."""

    kind: str
    variant: str
    layers: range

    @classmethod
    def parse(cls, text: str) -> "Pieces":
        """Parse a text such as ``ffn/width-0.5/00-14``, which is also the path of the pieces' file in the library."""
        kind, variant, bounds = text.split("/")
        first, last = map(int, bounds.split("-"))
        return cls(kind, variant, range(first, last + 1))


PiecesOption = Annotated[
    Pieces, typer.Option(parser=Pieces.parse, metavar="KIND/VARIANT/FIRST-LAST", help="e.g. ffn/width-0.5/00-14")
]
RuntimeOption = Annotated[
    Runtime, typer.Option(parser=Runtime.parse, metavar="KEY=VALUE,...", help="how to compute; keys: see the default")
]
ONE_THREAD = Runtime()


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
    """Raise a `TangramError` if a job computes on `cuda` and this machine has fewer than ``count`` GPUs."""
    if device != "cuda":
        return
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus < count:
        required = "a GPU" if count == 1 else f"{count} GPUs (finetune.parallel)"
        available = "none" if not gpus else f"only {gpus}"
        raise TangramError(
            f"config.device: cuda needs {required}, and torch {torch.__version__} finds {available} on this machine; "
            "set device: cpu, install torch for CUDA, or run on a machine with a GPU"
        )


def use_threads(threads: int, seed: int = 0, device: str = "cpu") -> None:
    """Set the number of torch's threads and its seed, and enable its deterministic mode.

    Raises:
        TangramError: the device is not available.
    """
    import torch

    check_device(device)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs it for deterministic matrix products
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Deterministic mode fills new memory as a debugging aid, which is slow; no result reads uninitialized memory.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 (untyped attribute)


if __name__ == "__main__":
    run(check_device)
