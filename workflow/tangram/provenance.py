"""What an output was made from: code, settings, seed, versions, device.

Standard library only: the Snakefile imports this module in every job.
"""

import ast
import functools
import hashlib
import importlib.util
import json
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from tangram.extensions import GROUPS, registered
from tangram.files import sha256_of

PACKAGE = "tangram"
ROOT = Path(__file__).parent
RECORDED_PACKAGES = ("torch", "transformers", "datasets", "pyomo", "highspy", "numpy", "safetensors", "lm_eval")


@functools.cache
def _folder(package: str) -> Path | None:
    """Return the folder of a top-level package, without importing it; None for a module or a name that is neither."""
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _source(module: str) -> Path | None:
    """Return the file of a package's module, or None for a name that is not a module."""
    package, *parts = module.split(".")
    folder = _folder(package)
    if folder is None:
        return None
    path = folder.joinpath(*parts)
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def _imports(tree: ast.AST, package: str) -> set[str]:
    """Return the dotted names that a module imports anywhere, function bodies included, and what it loads by group.

    A module that names a group of entry points depends on all that is registered there.

    Args:
        tree: the module.
        package: the dotted name of the package that it is in, for relative imports.
    """
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            above = parents[: len(parents) + 1 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            names.add(module)
            names.update(f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and node.value in GROUPS:
            names.update(entry.module for entry in registered(node.value).values())
    return names


def _strip_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
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
def _digest_and_imports(module: str, path: Path) -> tuple[str, frozenset[str]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    digest = hashlib.sha256(ast.dump(_strip_docstrings(tree)).encode()).hexdigest()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return digest, frozenset(_imports(tree, package))


# Checked at parse time by every rule through the settings they receive, so that a new option elsewhere in the
# config reruns nothing; the fidelity gate only lets an output pass or not. These modules shape no output.
NOT_HASHED = frozenset(
    {
        *("tangram", "tangram.config", "tangram.errors", "tangram.extensions", "tangram.parent.fidelity"),
        "tangram.provenance",
    }
)


@functools.cache
def modules_of(module: str) -> dict[str, str]:
    """Return a module and all that it uses of its own package, of this one and of their extensions, with digests.

    Raises:
        ValueError: ``module`` is not a module.
    """
    if _source(module) is None:
        raise ValueError(f"{module} is not a module")
    extensions = {entry.module for group in GROUPS for entry in registered(group).values()}
    packages = {name.partition(".")[0] for name in (PACKAGE, module, *extensions)}
    digests: dict[str, str] = {}
    queue = [module]
    while queue:
        name = queue.pop()
        if name in digests or name in NOT_HASHED or name.partition(".")[0] not in packages:
            continue
        path = _source(name)
        if path is not None:
            digests[name], imported = _digest_and_imports(name, path)
            queue.extend(imported)
    return digests


@functools.cache
def code_hash(module: str) -> str:
    """Hash a module and everything that `modules_of` names, over the AST without comments and docstrings.

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
        command: the module that made the output, e.g. ``tangram.commands.solve_mip``.
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
