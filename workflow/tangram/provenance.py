"""Provenance of an output: code, settings, versions and device.

Standard library only: the Snakefile imports this module in every job.
"""

import functools
import hashlib
import importlib.util
import json
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from tangram.digests import Digests
from tangram.extensions import registered
from tangram.files import sha256_of

PACKAGE = "tangram"
ROOT = Path(__file__).parent
RECORDED_PACKAGES = ("torch", "transformers", "datasets", "pyomo", "highspy", "numpy", "safetensors", "lm_eval")


@functools.cache
def _package(name: str) -> Path | None:
    """Return the source file of a module or package other than this one, or None.

    Packages that extend this one by entry points are part of a job's code.
    """
    spec = importlib.util.find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin)


@functools.cache
def _source(module: str) -> Path | None:
    """Return the file of a module, or None for a name that is not a module."""
    top, *parts = module.split(".")
    root = ROOT
    if top != PACKAGE:
        origin = _package(top)
        if origin is None or origin.name != "__init__.py":
            return None if parts else origin
        root = origin.parent
    relative = root.joinpath(*parts)
    for candidate in (relative / "__init__.py", relative.with_suffix(".py")):
        if candidate.is_file():
            return candidate
    return None


@functools.cache
def _digests() -> Digests:
    bytecode = Path(importlib.util.cache_from_source(str(ROOT / "digests.py")))
    return Digests(bytecode.with_name("digests.json"))


@functools.cache
def _digest_and_imports(name: str, path: Path) -> tuple[str, frozenset[str]]:
    """Return a module's digest and the names that it imports from this package and its own.

    A module that names a group of `extensions` depends on all objects that packages register there.
    """
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    module = _digests().of(name, path, package)
    registrants = {entry.module for group in module.groups for entry in registered(group).values()}
    tops = (PACKAGE, package.split(".")[0])
    return module.digest, frozenset(registrants | {name for name in module.imports if name.split(".")[0] in tops})


# These modules do not influence the content of an output. Rules receive slices of the config as parameters, so a new
# option elsewhere in the config reruns nothing; the fidelity check and the limits only accept or refuse an output.
NOT_HASHED = frozenset(
    {
        "tangram.config", "tangram.config.limits", "tangram.digests", "tangram.errors", "tangram.extensions",
        "tangram.parent.fidelity", "tangram.provenance", "tangram",
    }
)  # fmt: skip


@functools.cache
def modules_of(*modules: str) -> dict[str, str]:
    """Return the digest of each module and of everything that they import inside the package.

    Args:
        modules: dotted names; for a module of another package, its imports from that package and this one count.

    Raises:
        ValueError: one of ``modules`` is not a module.
    """
    for module in modules:
        if _source(module) is None:
            raise ValueError(f"{module} is not a module of {PACKAGE} or of a package that extends it")
    digests: dict[str, str] = {}
    queue = list(modules)
    while queue:
        name = queue.pop()
        path = _source(name)
        if name in digests or name in NOT_HASHED or path is None:
            continue
        digests[name], imported = _digest_and_imports(name, path)
        queue.extend(imported)
    _digests().save()
    return digests


@functools.cache
def code_hash(module: str, *others: str) -> str:
    """Hash modules and everything they import inside the package, over the AST without comments and docstrings.

    A change of comments reruns nothing, and a change of code reruns only the rules that depend on it. See `modules_of`
    for errors.

    Args:
        module: a rule's command.
        others: modules that it imports by name only, such as those of its variants (`blocks.registry`).
    """
    return hashlib.sha256(json.dumps(sorted(modules_of(module, *others).items())).encode()).hexdigest()[:16]


def fingerprint(facts: Iterable[str], files: Iterable[str | Path]) -> str:
    """Return a checksum of all inputs of a computation, which resumes only from a state with an equal checksum.

    Args:
        facts: settings, code hash and other inputs that are not files.
        files: input files; the checksum covers their contents and not their paths.
    """
    return hashlib.sha256(json.dumps([*facts, *map(sha256_of, files)]).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that numbers depend on."""
    by_package = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        if importlib.util.find_spec(package) is not None:
            by_package[package] = metadata.version(package)
    return by_package


def provenance(
    command: str, settings: Mapping[str, Any] | str, device: str = "cpu", others: Iterable[str] = ()
) -> dict[str, str]:
    """Return the provenance in an output's metadata: flat strings, deterministic (no time, host or path).

    Args:
        command: the module of the command, e.g. ``tangram.commands.solve_mip``.
        settings: the slice of the config that the command received.
        device: ``'cpu'`` or ``'cuda'``.
        others: modules that the command imports by name only; see `code_hash`.
    """
    text = settings if isinstance(settings, str) else json.dumps(settings, sort_keys=True)
    return {
        "tangram.command": command,
        "tangram.code": code_hash(command, *others),
        "tangram.settings": text,
        "tangram.versions": json.dumps(versions(), sort_keys=True),
        "tangram.device": device,
    }
