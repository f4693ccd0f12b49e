"""An architecture's file changes when a choice or a chosen weight does, and not otherwise."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tangram.blocks.architecture import LayerChoice, load_architecture, save_architecture
from tangram.commands.pick_pieces import pick_pieces
from tangram.files import write_tensors

CHOICES = (LayerChoice("linear", "parent"), LayerChoice("parent", "no-op"))


@pytest.fixture
def pick(tmp_path: Path) -> Callable[..., bytes]:
    """Return what is picked from a library of two layers, given its linear weights, their metadata and the choices."""

    def pick(first: float = 1.0, second: float = 1.0, metadata: str = "", choices: tuple = CHOICES) -> bytes:
        name = "model.layers.{}.self_attn.linear_attn.weight"
        weights = {name.format(layer): torch.full((2, 2), value) for layer, value in enumerate((first, second))}
        write_tensors(tmp_path / "attention" / "linear" / "00-01.safetensors", weights, {"tangram.code": metadata})
        write_tensors(tmp_path / "ffn" / "no-op" / "00-01.safetensors", {}, {"tangram.code": metadata})
        save_architecture(choices, tmp_path / "solution.json")
        pick_pieces(str(tmp_path / "solution.json"), str(tmp_path), "00-01", str(tmp_path / "architecture.json"))
        return (tmp_path / "architecture.json").read_bytes()

    return pick


def test_it_reads_as_the_architecture_with_a_checksum_per_piece(pick: Callable, tmp_path: Path) -> None:
    checksums = json.loads(pick())["sha256"]
    assert load_architecture(tmp_path / "architecture.json") == CHOICES
    assert checksums.keys() == {"000 attention linear", "001 ffn no-op"}


def test_a_pieces_history_and_pieces_not_picked_do_not_matter(pick: Callable) -> None:
    assert pick(metadata="one code", second=1.0) == pick(metadata="another", second=2.0)


def test_a_retrained_piece_and_another_choice_do(pick: Callable) -> None:
    same = pick()
    assert pick(first=1.0000001) != same
    assert pick(choices=(LayerChoice("parent", "parent"), CHOICES[1])) != same


def test_all_answers_are_picked_in_the_order_of_their_ranks(pick: Callable, tmp_path: Path) -> None:
    pick()
    for rank in range(11):  # as text, 10 would come before 2
        choices = CHOICES if rank == 10 else (LayerChoice("parent", "parent"), CHOICES[1])
        save_architecture(choices, tmp_path / "solutions" / str(rank) / "architecture.json")
    pick_pieces(str(tmp_path / "solutions"), str(tmp_path), "00-01", str(tmp_path / "candidates.json"))
    candidates = json.loads((tmp_path / "candidates.json").read_text())["candidates"]
    assert [bool(entry["layers"][0]["attention"] == "linear") for entry in candidates] == [False] * 10 + [True]
    assert candidates[10] == json.loads((tmp_path / "architecture.json").read_text())
