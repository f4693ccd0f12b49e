"""Options that several commands share."""

import subprocess
import sys
from pathlib import Path

import pytest

from tangram.cli import Pieces, Runtime, model_folder
from tangram.errors import TangramError


def test_a_runtime_is_read_and_written() -> None:
    runtime = Runtime.parse("device=cuda,seed=3,threads=2,by_layer=1,local_copy=0")
    assert runtime == Runtime("cuda", "float32", 3, 2, True, False)
    assert Runtime.parse(str(runtime)) == runtime
    assert str(runtime) == "device=cuda,dtype=float32,seed=3,threads=2,by_layer=1,local_copy=0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sede=1", "--runtime: 'sede' is unknown; did you mean 'seed'?"),
        ("threads=two", "--runtime: threads must be a whole number, not 'two'"),
        ("", "--runtime: '' is unknown; valid: device, dtype, seed, threads, by_layer, local_copy"),
    ],
)
def test_a_mistake_in_a_runtime_is_named(text: str, message: str) -> None:
    with pytest.raises(TangramError) as error:
        Runtime.parse(text)
    assert str(error.value) == message


def test_pieces_are_named_like_their_file() -> None:
    assert Pieces.parse("ffn/width-0.5/00-14") == Pieces("ffn", "width-0.5", range(15))


def test_a_model_is_its_folder_or_its_weights() -> None:
    assert model_folder("results/a/parent/model.safetensors") == model_folder("results/a/parent") == "results/a/parent"


COMMAND = """
from typing import Annotated
from tangram.cli import ONE_THREAD, RuntimeOption, reads, reads_model, run

def show(
    parent: Annotated[str, reads_model("parent")],
    activations: Annotated[str | None, reads("a cache")] = None,
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    print(parent, activations, runtime)

run(show)
"""


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (["--activations="], "p None device=cpu,dtype=float32,seed=0,threads=1,by_layer=0,local_copy=0"),
        (["--runtime", "threads=2"], "p None device=cpu,dtype=float32,seed=0,threads=2,by_layer=0,local_copy=0"),
        (["--activations=a.npy"], "p a.npy device=cpu,dtype=float32,seed=0,threads=1,by_layer=0,local_copy=0"),
    ],
)
def test_a_command_gets_what_its_line_says(options: list[str], shown: str, tmp_path: Path) -> None:
    (tmp_path / "show.py").write_text(COMMAND)
    command = [sys.executable, str(tmp_path / "show.py"), "--parent", "p/model.safetensors", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{shown}\n"


def test_a_mistake_in_a_runtime_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "show.py").write_text(COMMAND)
    command = [sys.executable, str(tmp_path / "show.py"), "--parent", "p", "--runtime", "thread=2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: --runtime: 'thread' is unknown; did you mean 'threads'?\n"
