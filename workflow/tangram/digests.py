"""Digests of modules and the names that they import, kept in a file beside the bytecode.

To parse all modules takes half of a plan's time; a module is parsed again only once its source has changed.
Standard library only: every parse of the Snakefile and every job import this module.
"""

import ast
import contextlib
import hashlib
import json
import sys
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

from tangram.errors import TangramError
from tangram.extensions import GROUPS
from tangram.files import write_text


@dataclass(frozen=True)
class Module:
    """What a module contributes to a code hash.

    Attributes:
        digest: SHA-256 of its AST without docstrings, in hexadecimal.
        imports: sorted dotted names that it imports anywhere, function bodies included, without imports for type
            checkers. A name may be a module or an object of one.
        groups: the groups of `tangram.extensions` that it names.
    """

    digest: str
    imports: tuple[str, ...]
    groups: tuple[str, ...]


def _that_run(tree: ast.Module) -> list[ast.AST]:
    """Return every node outside `if TYPE_CHECKING:`."""
    nodes: list[ast.AST] = [tree]
    for node in nodes:
        type_checking = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        nodes += node.orelse if isinstance(node, ast.If) and type_checking else ast.iter_child_nodes(node)
    return nodes


def _strip_docstrings(nodes: Iterable[ast.AST]) -> None:
    for node in nodes:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]


def parse(source: str, package: str) -> Module:
    """Return what a module of a package contributes to a code hash."""
    tree = ast.parse(source)
    nodes = _that_run(tree)
    _strip_docstrings(nodes)
    names, groups = set[str](), set[str]()
    parents = package.split(".")
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = parents[: len(parents) + 1 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            names.add(module)
            names.update(f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and node.value in GROUPS:
            groups.add(str(node.value))
    return Module(hashlib.sha256(ast.dump(tree).encode()).hexdigest(), tuple(sorted(names)), tuple(sorted(groups)))


class Digests:
    """Modules that were parsed before, by name; a changed source is parsed again.

    Args:
        path: the file that `save` writes. A missing or unreadable one, or one of another Python or of another code of
            this module, counts as empty.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # What a result depends on beside the source: the form of the AST, and this module.
        self._by = [sys.version, hashlib.sha256(Path(__file__).read_bytes()).hexdigest(), *GROUPS]
        self._known: dict[str, tuple[str, Module]] = {}
        self._changed = False
        try:
            by, known = json.loads(path.read_text(encoding="utf-8"))
            if by == self._by:
                for name, (source, digest, imports, groups) in known.items():
                    self._known[name] = source, Module(digest, tuple(imports), tuple(groups))
        except (OSError, ValueError):
            pass

    def of(self, name: str, path: Path, package: str) -> Module:
        """Return the module of this name, whose source is at ``path`` and which belongs to ``package``."""
        source = path.read_bytes()
        digest = hashlib.sha256(source).hexdigest()
        if name not in self._known or self._known[name][0] != digest:
            self._known[name] = digest, parse(source.decode(), package)
            self._changed = True
        return self._known[name][1]

    def save(self) -> None:
        """Write the file if a module was parsed, where Python may write bytecode."""
        if not self._changed or sys.dont_write_bytecode:
            return
        self._changed = False
        known = {name: [source, *astuple(module)] for name, (source, module) in self._known.items()}
        with contextlib.suppress(TangramError):  # an installation may be read-only
            write_text(self._path, json.dumps([self._by, known]))
