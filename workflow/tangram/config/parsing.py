"""Parse raw YAML into the checked config; an error is one line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from tangram.config.config import Config
from tangram.config.strict_yaml import read_yaml
from tangram.errors import TangramError, nearest


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the sections in an annotation, at any depth of lists, mappings and unions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for argument in get_args(annotation) for section in _sections_in(argument)]


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the section that an error's location leads to."""
    sections: list[type[BaseModel]] = [Config]
    for part in location:
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        tagged = [
            section
            for section in sections
            if "type" in section.model_fields and part in get_args(section.model_fields["type"].annotation)
        ]
        inner = _sections_in(fields[0].annotation) if fields else tagged
        sections = inner or sections  # any other part is an index or a user's name
    return list(sections[0].model_fields)


def _shown(value: Any, expects_text: bool) -> str:
    """Return an invalid value for a message, with a hint if it may be unquoted text."""
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return f"{shown}, which YAML makes of unquoted text: quote it" if expects_text and value is not None else shown


def parse(raw: Mapping[str, Any]) -> Config:
    """Check a raw config tree.

    Raises:
        TangramError: one line that names the key, the fault, and the nearest valid choice.
    """
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        location = first["loc"]
        where = ".".join(str(part) for part in location)
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"unknown key{nearest(str(location[-1]), _keys_at(location[:-1]))}"
        elif first["type"] == "missing":
            message = "is required but missing"
        elif first["type"] != "value_error":
            message = f"{message} (got {_shown(first['input'], first['type'] == 'string_type')})"
        raise TangramError(f"config{'.' + where if where else ''}: {message}") from None


def load(path: str | Path) -> Config:
    """Read and check a YAML config file; see `parse` and `strict_yaml.read_yaml`."""
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise TangramError(f"{path}: expected a mapping of sections at the top level")
    return parse(raw)


def slice_of(section: BaseModel | Mapping[str, Any]) -> str:
    """Return a section as canonical JSON, which a rule's params hold and its command parses."""
    import json

    data = section.model_dump(mode="json") if isinstance(section, BaseModel) else section
    return json.dumps(data, sort_keys=True, default=lambda value: value.model_dump(mode="json"), separators=(",", ":"))
