"""What is generated from the config's models is what is committed, and it is complete."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from tangram import config
from tangram.config import documentation


@pytest.mark.parametrize("path", documentation.GENERATED, ids=lambda path: path.name)
def test_generated_files_are_up_to_date(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == documentation.GENERATED[path](), (
        f"run `python -m tangram.config.documentation` and commit {path.name}"
    )


def test_every_key_of_every_section_is_documented_with_a_meaning() -> None:
    lines = documentation.readme().splitlines()
    sections = [cls for cls in vars(config).values() if isinstance(cls, type) and issubclass(cls, BaseModel)]
    for section in sections:
        for name, field in section.model_fields.items():
            assert name == "type" or field.description, f"{section.__name__}.{name} has no description"
            assert any(line.startswith(f"| `{name}` |") for line in lines), f"{section.__name__}.{name}"


@pytest.mark.parametrize("path", sorted(documentation.FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_schema_accepts_shipped_configs_and_no_unknown_keys(path: Path) -> None:
    schema = json.loads(documentation.schema())
    content = yaml.safe_load(path.read_text())
    jsonschema.validate(content, schema)
    with pytest.raises(jsonschema.ValidationError, match="sede"):
        jsonschema.validate(content | {"sede": 1}, schema)
