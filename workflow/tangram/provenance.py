"""What an output was made from: code, settings, seed, versions, device.

Standard library only: the Snakefile imports this module in every job.
"""

import ast
import functools
import hashlib
import importlib.util
import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from tangram.files import sha256_of

PACKAGE = "tangram"
ROOT = Path(__file__).parent
RECORDED_PACKAGES = ("torch", "transformers", "datasets", "pyomo", "highspy", "numpy", "safetensors", "lm_eval")


@functools.cache
def _source(module: str) -> Path | None:
    """Return the file of an in-package module, or None for a name that is not a module."""
    relative = Path(*module.split(".")[1:]) if module != PACKAGE else Path()
    for candidate in (ROOT / relative / "__init__.py", (ROOT / relative).with_suffix(".py")):
        if candidate.is_file():
            return candidate
    return None


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield a module and every statement in it, function bodies included: `ast.walk`, but for the expressions."""
    nodes: list[ast.AST] = [tree]
    while nodes:
        yield (node := nodes.pop())
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            inner = getattr(node, field, None)
            nodes.extend(inner if isinstance(inner, list) else ())


def _imports(tree: ast.Module, folder: Path) -> set[str]:
    """Return the dotted in-package names that a module in a folder imports anywhere, function bodies included."""
    names: set[str] = set()
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = (PACKAGE, *folder.relative_to(ROOT).parts)
            above = parents[: len(parents) + 1 - node.level] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            names.add(module)
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return {name for name in names if name.split(".")[0] == PACKAGE}


def _strip_docstrings(tree: ast.Module) -> ast.Module:
    for node in _statements(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return tree


@functools.cache
def _digest_and_imports(path: Path) -> tuple[str, frozenset[str]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    digest = hashlib.sha256(ast.dump(_strip_docstrings(tree)).encode()).hexdigest()
    return digest, frozenset(_imports(tree, path.parent))


# Checked at parse time by every rule through the settings they receive, so that a new option elsewhere in the
# config reruns nothing; the fidelity gate only lets an output pass or not. These modules shape no output.
NOT_HASHED = frozenset({"tangram.config", "tangram.errors", "tangram.parent.fidelity", "tangram.provenance", "tangram"})


@functools.cache
def modules_of(module: str) -> dict[str, str]:
    """Return a module and everything that it imports inside the package, with the digest of each.

    Raises:
        ValueError: ``module`` is not a module of this package.
    """
    if _source(module) is None:
        raise ValueError(f"{module} is not a module of {PACKAGE}")
    digests: dict[str, str] = {}
    queue = [module]
    while queue:
        name = queue.pop()
        path = _source(name)
        if name in digests or name in NOT_HASHED or path is None:
            continue
        digests[name], imported = _digest_and_imports(path)
        queue.extend(imported)
    return digests


@functools.cache
def code_hash(module: str) -> str:
    """Hash a module and everything it imports inside the package, over the AST without comments and docstrings.

    A comment changes nothing; a real change reaches exactly the rules that depend on it. See `modules_of` for errors.
    """
    return hashlib.sha256(json.dumps(sorted(modules_of(module).items())).encode()).hexdigest()[:16]


def fingerprint(facts: Iterable[str], files: Iterable[str | Path]) -> str:
    """Return a checksum of all that an unfinished computation depends on: it goes on only from a state of an equal one.

    Args:
        facts: settings, code and whatever else is no file.
        files: what is read; their contents count, and not where they are.
    """
    return hashlib.sha256(json.dumps([*facts, *map(sha256_of, files)]).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        if importlib.util.find_spec(package) is not None:
            found[package] = metadata.version(package)
    return found


def provenance(command: str, settings: Mapping[str, Any] | str, device: str = "cpu") -> dict[str, str]:
    """Return what goes into an output's metadata: flat strings, deterministic (no time, host or path).

    Args:
        command: the in-package module that made the output, e.g. ``tangram.commands.solve_mip``.
        settings: the narrow slice of config that it used.
        device: where numbers were computed.
    """
    text = settings if isinstance(settings, str) else json.dumps(settings, sort_keys=True)
    return {
        "tangram.command": command,
        "tangram.code": code_hash(command),
        "tangram.settings": text,
        "tangram.versions": json.dumps(versions(), sort_keys=True),
        "tangram.device": device,
    }
