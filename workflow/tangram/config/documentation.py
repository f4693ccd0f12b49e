"""Generate documentation from the config's models: `python -m tangram.config.documentation`.

`config/README.md` holds a table for every section, `config/config.schema.json` the JSON Schema that editors check
config files with, `docs/reruns.md` the rules that a change reruns. A test compares all three with the code.
"""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tangram.config import SPLITS, Config
from tangram.config.reruns import page
from tangram.files import write_text

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "config"
INTRODUCTION = """\
# Configuration

A config file holds all settings of a run. `config.yaml` is the default; another file replaces all of it:

    snakemake -c2 --configfile config/llama-3.1-8b-h100.yaml

| file | result |
|---|---|
| `config.yaml` | faster children of SmolLM2-135M-Instruct on a 2-core CPU: the main job |
| `smollm2-cpu-overnight.yaml` | the best child of a night on the same CPU |
| `smollm2-structure.yaml` | the same parent without precisions: structure alone, in float32 |
| `smollm2-memory.yaml` | the same parent under a memory limit, within which each child has its own batch size |
| `smollm2-llama.cpp.yaml` | the same parent for llama.cpp: searched on its costs, written as GGUF |
| `llama-3.1-8b-h100.yaml` | faster children of Llama-3.1-8B-Instruct on one or two H100 |
| `llama-3.1-70b-8xh100.yaml` | smaller children of Llama-3.1-70B-Instruct on nodes of 8 H100 |

Unknown keys, duplicate keys and impossible values stop the run before any work, with one line that names the key and
the nearest valid choice. Values that contradict the parent's `config.json` stop it, too: at once for a local or fetched
parent or one with `parent.sizes`, else in the first job that reads the parent.

Each rule receives only the sections that it depends on; [docs/reruns.md](../docs/reruns.md) lists the rules that a
change of each key reruns. [docs/text.md](../docs/text.md) helps to choose text. The tables below list every key.
`python -m tangram.config.documentation` writes this file, `config.schema.json` (for editors) and `docs/reruns.md` from
the code; a test compares them.
"""


def _sections_in(annotation: Any, path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the sections in an annotation, each with its path in a config file."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield path, annotation
        return
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        yield from _sections_in(arguments[0], path)
    elif origin is dict:
        yield from _sections_in(arguments[1], f"{path}.<name>")
    elif origin is tuple:
        yield from _sections_in(arguments[0], f"{path}[]")
    elif origin in (Union, types.UnionType):
        for argument in arguments:
            yield from _sections_in(argument, path)


def _collect(section: type[BaseModel], path: str, paths: dict[type[BaseModel], list[str]]) -> None:
    """Add a section and its subsections in file order; all splits of the corpus count as one path."""
    paths.setdefault(section, []).append(re.sub(rf"^corpus\.({'|'.join(SPLITS)})", "corpus.<split>", path))
    for name, field in section.model_fields.items():
        for where, inner in _sections_in(field.annotation, f"{path}.{name}".lstrip(".")):
            _collect(inner, where, paths)


def _type_text(annotation: Any) -> str:
    """Return an annotation as text."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _type_text(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        return f"list of {_type_text(arguments[0])}"
    if origin is dict:
        return f"name: {_type_text(arguments[1])}"
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type_text(argument) for argument in arguments))
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return {int: "integer", float: "number", str: "text", bool: "true or false"}[annotation]


def _limits(field: FieldInfo) -> str:
    """Return a field's bounds, such as ``> 0``."""
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    bounds = [
        f"{sign} {getattr(item, name)}"
        for item in field.metadata
        for name, sign in signs.items()
        if hasattr(item, name)
    ]
    return f", {' and '.join(bounds)}" if bounds else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    if isinstance(field.default, BaseModel):
        changed = field.default.model_dump(mode="json", exclude_defaults=True)
        return f"`{json.dumps(changed)}`" if changed else "its own defaults"
    return f"`{json.dumps(field.default)}`"


def _table(section: type[BaseModel]) -> str:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        kind = _type_text(field.annotation) + _limits(field)
        meaning = (field.description or "Type of the section.").replace("|", r"\|")
        rows.append(f"| `{name}` | {kind} | {_default(field)} | {meaning} |")
    return "\n".join(rows)


def readme() -> str:
    """Return `config/README.md`."""
    paths_of: dict[type[BaseModel], list[str]] = {}
    _collect(Config, "", paths_of)
    parts = [INTRODUCTION]
    for section, paths in paths_of.items():
        title = ", ".join(f"`{path}`" for path in dict.fromkeys(paths)) if section is not Config else "Top level"
        if "type" in section.model_fields:
            title = f"{title} of type {_type_text(section.model_fields['type'].annotation)}"
        summary = " ".join((section.__doc__ or "").split())
        parts.append(f"## {title}\n\n{summary}\n\n{_table(section)}\n")
    return "\n".join(parts)


def schema() -> str:
    """Return `config/config.schema.json`."""
    return json.dumps(Config.model_json_schema(), indent=2, ensure_ascii=False) + "\n"


GENERATED = {
    FOLDER / "README.md": readme,
    FOLDER / "config.schema.json": schema,
    ROOT / "docs" / "reruns.md": page,
}

if __name__ == "__main__":
    for path, content in GENERATED.items():
        write_text(path, content())
        print(f"wrote {path}")
