"""The core does not import the studies."""

import ast
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "workflow" / "tangram"


def imported(path: Path) -> set[str]:
    """Return the top-level packages that a module imports anywhere, function bodies included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: str(path.relative_to(CORE)))
def test_the_core_imports_nothing_of_the_studies(path: Path) -> None:
    assert "tangram_studies" not in imported(path)
