"""Imports between packages: no cycles, and models and training import no stage."""

import ast
import graphlib
import itertools
from collections.abc import Mapping
from pathlib import Path

import pytest

import tangram

ROOT = Path(tangram.__file__).parent
STAGES = {
    "parent", "corpus", "activations", "library", "scores", "costs", "search", "selection", "rounds", "child",
    "finetune", "trials", "export", "evaluation", "report",
}  # fmt: skip


def imported(path: Path, package: str) -> set[str]:
    """Return the dotted names that a module imports anywhere, including functions and type checking.

    Args:
        path: the module's file.
        package: the package that it is in, dotted.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def arrows_of(root: Path) -> dict[str, dict[str, set[str]]]:
    """Return the imports between parts of a package: its subpackages and the modules of its first level.

    Returns:
        Importing modules' names, by the part that they are in and by the part that they import.
    """
    arrows: dict[str, dict[str, set[str]]] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        here = parts[1]
        for name in imported(path, ".".join(parts[:-1])):
            top, _, rest = name.partition(".")
            part = rest.partition(".")[0]
            if top == root.name and part not in ("", here) and _is_part(root, part):
                arrows.setdefault(here, {}).setdefault(part, set()).add(".".join(parts))
    return arrows


def _is_part(root: Path, name: str) -> bool:
    return (root / name).is_dir() or (root / f"{name}.py").is_file()


def check_no_cycle(arrows: Mapping[str, Mapping[str, set[str]]]) -> None:
    """Fail with the edges of a cycle, and the modules that cause them."""
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as error:
        cycle = error.args[1][::-1]  # each part imports the next
        steps = [f"{a} -> {b} ({', '.join(sorted(arrows[a][b]))})" for a, b in itertools.pairwise(cycle)]
        pytest.fail("import cycle: " + "; ".join(steps), pytrace=False)


ARROWS = arrows_of(ROOT)


def test_packages_import_one_another_without_a_cycle() -> None:
    assert ARROWS["library"].keys() >= {"blocks", "models", "training"}
    check_no_cycle(ARROWS)


@pytest.mark.parametrize("package", ["models", "training"])
def test_models_and_training_know_of_no_stage(package: str) -> None:
    assert ARROWS[package].keys() & STAGES == set()
    assert ARROWS["models"].keys() <= {"errors", "files"}


def test_blocks_know_of_models_alone() -> None:
    assert ARROWS["blocks"].keys() <= {"errors", "files", "models"}


def test_a_cycle_through_a_function_is_told_with_its_arrows(tmp_path: Path) -> None:
    for name, text in {
        "one/inner.py": "def late():\n    from made.two import thing\n",
        "two.py": "from . import three\n",
        "three.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import made.one.inner\n",
        "__init__.py": "from made import one\n",
    }.items():
        path = tmp_path / "made" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with pytest.raises(pytest.fail.Exception) as caught:
        check_no_cycle(arrows_of(tmp_path / "made"))
    message = str(caught.value)
    assert "one -> two (made.one.inner)" in message
    assert "two -> three (made.two)" in message
    assert "three -> one (made.three)" in message
