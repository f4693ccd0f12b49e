"""How every command runs: typed options, one line for a user's mistake, progress on standard error.

A command's signature says what it reads and writes: `shell` makes the rule's shell line from it.
"""

import dataclasses
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from tangram.errors import TangramError, nearest


def reads(help: str) -> Any:
    """Describe an option that names a file to read, an input of the rule; one with a default may be left empty."""
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
    """Return the folder of a checkpoint that is named by its folder or by its weights."""
    return os.path.dirname(path) if path.endswith(".safetensors") else path


@dataclasses.dataclass(frozen=True)
class Runtime:
    """Where and how a job computes; numbers depend on the first three alone.

    Attributes:
        device: ``cpu`` or ``cuda``.
        dtype: of the weights, ``float32`` or ``bfloat16``.
        seed: of all randomness.
        threads: cores for torch.
        by_layer: hold one layer's weights at a time, where a command can.
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
        """Return what a text such as ``device=cuda,seed=1,by_layer=1`` says; the rest has its defaults.

        Raises:
            TangramError: a name is unknown, or a value that should be a whole number is none.
        """
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        values: dict[str, Any] = dict(part.partition("=")[::2] for part in str(text).split(","))
        for name, value in values.items():
            if name not in defaults:
                raise TangramError(f"--runtime: '{name}' is unknown{nearest(name, list(defaults))}")
            if isinstance(defaults[name], int):
                if not value.isdecimal():
                    raise TangramError(f"--runtime: {name} is a whole number, not '{value}'")
                values[name] = bool(int(value)) if isinstance(defaults[name], bool) else int(value)
        return cls(**values)

    def __str__(self) -> str:
        """Return what `parse` reads."""
        values = dataclasses.asdict(self)
        return ",".join(f"{name}={value if isinstance(value, str) else int(value)}" for name, value in values.items())

    def start(self) -> None:
        """Use these threads and this seed in torch; see `use_threads` for errors."""
        use_threads(self.threads, self.seed, self.device)


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The pieces that one job makes or scores: one variant of one kind in a range of layers."""

    kind: str
    variant: str
    layers: range

    @classmethod
    def parse(cls, text: str) -> "Pieces":
        """Return what a text such as ``ffn/width-0.5/00-14`` names: it is also what the library calls their file."""
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
