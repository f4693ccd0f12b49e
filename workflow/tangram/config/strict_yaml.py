"""Strict YAML: duplicate keys and numbers in octal or sexagesimal notation are errors.

PyYAML, and with it Snakemake, silently takes the last of two equal keys.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from tangram.errors import TangramError

_OTHER_BASE = re.compile(r"[-+]?(0[0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")  # octal, sexagesimal


def read_yaml(path: str | Path) -> Any:
    """Read a YAML or JSON file.

    Raises:
        TangramError: it cannot be read, or `faults` yields a fault; one line that names file, key and lines.
    """
    try:
        return _read(Path(path).read_text(encoding="utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise TangramError(f"{path}: cannot be read as YAML: {error}") from error


def _read(text: str, where: str) -> Any:
    try:
        loader = yaml.SafeLoader(text.replace("\t", " ") if text.lstrip().startswith("{") else text)  # JSON's tabs
        try:
            node = loader.get_single_node()
            for fault in faults(node, loader):
                raise TangramError(f"{where}: {fault}")
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except (ValueError, yaml.YAMLError) as error:
        raise TangramError(f"{where}: cannot be read as YAML: {' '.join(str(error).split())}") from error


def check_command_line(arguments: Sequence[str]) -> None:
    """Raise a `TangramError` if Snakemake's command line sets a key twice, as Snakemake silently takes the last one.

    Args:
        arguments: arguments of `snakemake`, such as ``["-c2", "--config", "seed=1", "run=mine"]``.
    """
    options = [i for i, word in enumerate(arguments) if re.match(r"--config(=|$)|-C", word)]
    if len(options) > 1:
        raise TangramError("--config appears twice, and only the last one counts; name all keys after one --config")
    for i in options:
        first = re.sub(r"^(--config=?|-C)", "", arguments[i])
        rest = itertools.takewhile(lambda word: not word.startswith("-"), arguments[i + 1 :])
        keys: set[str] = set()
        for word in [first, *rest] if first else rest:
            key, _, value = word.partition("=")
            if key in keys:
                raise TangramError(f"--config: '{key}' appears twice; keep one")
            keys.add(key)
            with contextlib.suppress(yaml.YAMLError):  # a value that is no YAML is plain text
                loader = yaml.SafeLoader(value)
                for fault in _duplicates(loader.get_single_node(), loader):
                    raise TangramError(f"--config {key}: {fault}")


def faults(root: yaml.Node | None, loader: yaml.SafeLoader) -> Iterator[str]:
    """Yield the ambiguities of a document, at any depth.

    A merge (`<<`) is no duplicate of the keys that it merges; two merges in one mapping are duplicates.
    """
    yield from _duplicates(root, loader)
    for path, node in _walk(root, "", set(), loader):
        if node.tag.endswith((":int", ":float")) and _OTHER_BASE.fullmatch(node.value):
            value, line = loader.construct_object(node), node.start_mark.line + 1
            yield f"'{path}' in line {line}: YAML reads {node.value} as {value}; write that number, or quote text"


def _duplicates(root: yaml.Node | None, loader: yaml.SafeLoader) -> Iterator[str]:
    for path, node in _walk(root, "", set(), loader):
        first: dict[Hashable, int] = {}
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key, line = _key(key_node, loader), key_node.start_mark.line + 1
            if key in first:
                where = f"line {line}" if first[key] == line else f"lines {first[key]} and {line}"
                yield f"'{_below(path, key)}' appears twice, in {where}; keep one"
            first.setdefault(key, line)


def _walk(
    node: yaml.Node | None, path: str, visited: set[int], loader: yaml.SafeLoader
) -> Iterator[tuple[str, yaml.Node]]:
    """Yield a node and its descendants with their dotted paths; a node that several anchors reach comes once."""
    if node is None or id(node) in visited:
        return
    visited.add(id(node))
    yield path, node
    if isinstance(node, yaml.MappingNode):
        for key_node, value in node.value:
            yield from _walk(value, _below(path, _key(key_node, loader)), visited, loader)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield from _walk(item, f"{path}[{i}]", visited, loader)


def _below(path: str, key: Hashable) -> str:
    return f"{path}.{key}" if path else str(key)


def _key(node: yaml.Node, loader: yaml.SafeLoader) -> Hashable:
    """Return a key as a Python value, so that `1` and `0x1` are equal."""
    if node.tag == "tag:yaml.org,2002:merge":
        return "<<"
    key = loader.construct_object(node, deep=True)
    return key if isinstance(key, Hashable) else str(key)
