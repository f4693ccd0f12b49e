"""Names of tests are short, and unit tests mirror the packages."""

import ast
from pathlib import Path

TESTS = Path(__file__).parents[1]
WORKFLOW = TESTS.parent / "workflow"
PACKAGE = WORKFLOW / "tangram"
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


def has_its_module(path: Path) -> bool:
    """Return whether the module of a unit test exists at the same path; a command's test may be beside its stage's."""
    folder, name = path.parent.relative_to(TESTS / "unit"), path.stem.removeprefix("test_")
    modules = [root / folder / name for root in (PACKAGE, WORKFLOW)] + [PACKAGE / "commands" / name]
    packages = [PACKAGE / folder] if name == folder.name else []
    files = [*(path.with_suffix(".py") for path in modules), *(path / "__init__.py" for path in (*modules, *packages))]
    return any(file.is_file() for file in files)


def test_unit_tests_mirror_the_package() -> None:
    paths = sorted((TESTS / "unit").rglob("test_*.py"))
    assert len(paths) > 20, "there are tests to look at"
    assert [str(path.relative_to(TESTS)) for path in paths if not has_its_module(path)] == []
