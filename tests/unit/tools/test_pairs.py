"""The pairs of the variants that a run's solutions use, printed for the config."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.config import parse
from tangram.search.solutions import save_solutions
from tangram.tools.pairs import pairs_of

ROOT = Path(__file__).parents[3]
DEFAULT = yaml.safe_load((ROOT / "config" / "smollm2-structure.yaml").read_text())
USED = Architecture(
    (
        LayerChoice("gqa-1", "width-0.5"),
        LayerChoice("no-op", "no-op"),
        LayerChoice("parent", "width-0.75"),
        LayerChoice("no-op", "width-0.5@int8"),
    )
)


def test_pairs_are_those_of_the_used_variants_or_the_used_pairs() -> None:
    """The paper's sub-space has every used attention with every used FFN variant."""
    names = [pair.pair for pair in pairs_of([USED])]
    of_gqa, of_no_op = ["gqa-1+no-op", "gqa-1+width-0.5", "gqa-1+width-0.75"], ["no-op+width-0.5", "no-op+width-0.75"]
    assert names == of_gqa + of_no_op
    assert [pair.pair for pair in pairs_of([USED], chosen=True)] == ["gqa-1+width-0.5", "no-op+width-0.5"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a config whose first target is solved."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(DEFAULT))
    path = tmp_path / "results" / DEFAULT["run"] / "targets" / DEFAULT["primary_target"] / "solutions" / "mip.json"
    save_solutions({"solutions": [{"solution": "0", **asdict(USED)}]}, path, {})
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tangram", "pairs", "--config", "config.yaml", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_printed_section_is_a_valid_config(folder: Path) -> None:
    done = run(folder, "--target", DEFAULT["primary_target"])
    printed = yaml.safe_load(done.stdout)
    config = parse(DEFAULT | {"library": DEFAULT["library"] | printed["library"]})
    assert config.library.pairs() == tuple(pair.pair for pair in pairs_of([USED]))
    assert done.stderr == "5 pairs, each trained in 30 layers, from 1 solutions\n"


def test_an_unknown_or_unsolved_target_is_one_line(folder: Path) -> None:
    for name, message in (
        ("sped-1.2", "--target: 'sped-1.2' is not a target; did you mean"),
        (None, "does not exist; "),
    ):
        done = run(folder, *(["--target", name] if name else []))
        assert done.returncode == 1
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
