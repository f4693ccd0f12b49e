"""An architecture's file changes when a choice or a chosen weight does, and not otherwise."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from tangram.blocks.architecture import Architecture, LayerChoice, load_architecture
from tangram.commands.pin_architecture import pin_architecture
from tangram.commands.pin_candidates import pin_candidates
from tangram.errors import TangramError
from tangram.files import write_tensors
from tangram.search.solutions import save_solutions

CHOICES = Architecture((LayerChoice("linear", "parent"), LayerChoice("parent", "no-op")))
OTHER = Architecture((LayerChoice("parent", "parent"), CHOICES.layers[1]))


@pytest.fixture
def pin(tmp_path: Path) -> Callable[..., bytes]:
    """Return what is written from a library of two layers, given its linear weights, their metadata and the choices."""

    def pin(first: float = 1.0, second: float = 1.0, metadata: str = "", choices: Architecture = CHOICES) -> bytes:
        name = "model.layers.{}.self_attn.linear_attn.weight"
        weights = {name.format(layer): torch.full((2, 2), value) for layer, value in enumerate((first, second))}
        write_tensors(tmp_path / "attention" / "linear" / "00-01.safetensors", weights, {"tangram.code": metadata})
        write_tensors(tmp_path / "ffn" / "no-op" / "00-01.safetensors", {}, {"tangram.code": metadata})
        entries = [{"solution": "0", **asdict(CHOICES)}, {"solution": "1", **asdict(choices)}]
        save_solutions({"solutions": entries}, tmp_path / "solutions.json", {})
        output = tmp_path / "architecture.json"
        pin_architecture(str(tmp_path / "solutions.json"), "1", str(tmp_path), "00-01", str(output))
        return output.read_bytes()

    return pin


def test_it_reads_as_the_architecture_with_a_checksum_per_piece(pin: Callable, tmp_path: Path) -> None:
    checksums = json.loads(pin())["sha256"]
    assert load_architecture(tmp_path / "architecture.json") == CHOICES
    assert checksums.keys() == {"000 attention linear", "001 ffn no-op"}


def test_the_checksum_of_a_heads_piece_follows_its_weights(pin: Callable, tmp_path: Path) -> None:
    def checksum(value: int, dtype: torch.dtype) -> str:
        weights = {"lm_head.weight": torch.full((2, 3), value, dtype=dtype), "lm_head.scale": torch.ones(2)}
        write_tensors(tmp_path / "head" / "parent@int8" / "00-00.safetensors", weights, {})
        checksums = json.loads(pin(choices=replace(CHOICES, head="parent@int8")))["sha256"]
        assert checksums.keys() == {"000 attention linear", "001 ffn no-op", "000 head parent@int8"}
        return checksums["000 head parent@int8"]

    first = checksum(1, torch.int8)
    assert len({first, checksum(2, torch.int8), checksum(1, torch.bfloat16)}) == 3
    assert checksum(1, torch.int8) == first


def test_how_a_piece_came_about_and_other_pieces_do_not_matter(pin: Callable) -> None:
    assert pin(metadata="one code", second=1.0) == pin(metadata="another", second=2.0)


def test_a_retrained_piece_and_another_choice_do(pin: Callable) -> None:
    same = pin()
    assert pin(first=1.0000001) != same
    assert pin(choices=OTHER) != same


def test_a_solution_that_is_not_there_is_named_in_one_line(pin: Callable, tmp_path: Path) -> None:
    pin()
    with pytest.raises(TangramError, match=r"solutions.json holds no solution '2', only 0, 1$"):
        pin_architecture(str(tmp_path / "solutions.json"), "2", str(tmp_path), "00-01", str(tmp_path / "2.json"))
    (tmp_path / "solutions.json").write_text('{"solutions": [{"layers": []}]}')
    with pytest.raises(TangramError, match=r"holds no solutions .*; delete it and run again$"):
        pin_architecture(str(tmp_path / "solutions.json"), "0", str(tmp_path), "00-01", str(tmp_path / "2.json"))


def test_all_candidates_are_pinned_in_the_order_of_solutions(pin: Callable, tmp_path: Path) -> None:
    pin()
    choices = [CHOICES if number == 10 else OTHER for number in range(11)]  # as text, 10 would come before 2
    entries = [{"solution": str(number), **asdict(choice)} for number, choice in enumerate(choices)]
    save_solutions({"solutions": entries}, tmp_path / "mip.json", {})
    pin_candidates(str(tmp_path / "mip.json"), str(tmp_path), "00-01", str(tmp_path / "candidates.json"))
    candidates = json.loads((tmp_path / "candidates.json").read_text())["candidates"]
    assert [bool(entry["layers"][0]["attention"] == "linear") for entry in candidates] == [False] * 10 + [True]
    assert candidates[10] == json.loads((tmp_path / "architecture.json").read_text())
