"""YAML without its traps: a key that is there twice, or a number in a spelling that YAML 1.1 reads as another one.

PyYAML, and so Snakemake, takes the last of two equal keys without a word.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tangram.errors import TangramError

_ELSEWHERE = re.compile(r"[-+]?(0[0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")  # octal, sexagesimal


def read_yaml(path: str | Path) -> Any:
    """Read a YAML or JSON file.

    Raises:
        TangramError: it cannot be read, or `faults` finds something; one line that names file, key and lines.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        loader = yaml.SafeLoader(text.replace("\t", " ") if text.lstrip().startswith("{") else text)  # JSON's tabs
        try:
            node = loader.get_single_node()
            for fault in faults(node, loader):
                raise TangramError(f"{path}: {fault}")
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise TangramError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error


def faults(root: yaml.Node | None, loader: yaml.SafeLoader) -> Iterator[str]:
    """Yield what is ambiguous in a document, at any depth, in its order.

    A merge (`<<`) is no duplicate of the keys that it brings in; two merges in one mapping are.
    """
    seen: set[int] = set()  # nodes: an anchor's is there once, however often it is used

    def visit(node: yaml.Node, path: str) -> Iterator[str]:
        if id(node) in seen:
            return
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            first: dict[Hashable, int] = {}
            for key_node, value in node.value:
                key = _key(key_node, loader)
                name = f"{path}.{key}" if path else str(key)
                line = key_node.start_mark.line + 1
                if key in first:
                    where = f"line {line}" if first[key] == line else f"lines {first[key]} and {line}"
                    yield f"'{name}' is there twice, in {where}; keep one"
                first.setdefault(key, line)
                yield from visit(value, name)
        elif isinstance(node, yaml.SequenceNode):
            for i, item in enumerate(node.value):
                yield from visit(item, f"{path}[{i}]")
        elif node.tag.endswith((":int", ":float")) and _ELSEWHERE.fullmatch(node.value):
            value = loader.construct_object(node)
            line = node.start_mark.line + 1
            yield f"'{path}' in line {line}: YAML reads {node.value} as {value}; write that number, or quote text"

    if root is not None:
        yield from visit(root, "")


def _key(node: yaml.Node, loader: yaml.SafeLoader) -> Hashable:
    """Return a key as Python sees it, so that `1` and `0x1` are one."""
    if node.tag == "tag:yaml.org,2002:merge":
        return "<<"
    key = loader.construct_object(node, deep=True)
    return key if isinstance(key, Hashable) else str(key)
