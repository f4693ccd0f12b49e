"""Names of tests are short enough to be read in a list of failures."""

import ast
from pathlib import Path

TESTS = Path(__file__).parents[1]
LONGEST = 60


def test_no_name_of_a_test_is_long() -> None:
    names = [
        node.name
        for path in TESTS.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    assert len(names) > 100, "there are tests to look at"
    assert [name for name in names if len(name) > LONGEST] == []
