"""Elements of a page and its template, shared by the report of a run and the reports of the studies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tangram.report.textures import TEXTURES

TEMPLATES = Path(__file__).parents[2] / "report"


@dataclass(frozen=True)
class Cell:
    """A table's cell: text, and optionally a CSS class, a background color, a bar as a share of the width, or a swatch.

    ``swatch`` is an SVG before the text.
    """

    text: str
    look: str = ""
    background: str = ""
    ink: str = ""
    bar: float | None = None
    swatch: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under column heads; the first ``labels`` columns are left-aligned."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    labels: int = 1
    caption: str = ""
    title: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Figure:
    """Inline SVG with a caption."""

    svg: str
    caption: str
    title: str = ""


@dataclass(frozen=True)
class Note:
    """A sentence about missing data, or about the meaning of the others."""

    text: str


Part = Table | Figure | Note


@dataclass(frozen=True)
class Section:
    """A heading, an introduction, and the parts below it."""

    name: str
    title: str
    lead: str = ""
    parts: list[Part] = field(default_factory=list)


@dataclass(frozen=True)
class Fact:
    """One number at the top of the page; ``detail`` gives its error and its reference."""

    value: str
    unit: str
    label: str
    detail: str


def render_document(
    run: str,
    title: str,
    sections: Sequence[Section],
    sentence: str = "",
    facts: Sequence[Fact] = (),
    weights: str = "",
    skyline: str = "",
    key: Sequence[tuple[str, str]] = (),
) -> str:
    """Return one self-contained HTML page without scripts.

    Args:
        run: name of the run or study, shown above the title.
        title: title of the page.
        sections: the body; sections without parts are omitted.
        sentence: text below the title.
        facts: numbers below that text.
        weights: description of the parent's weights.
        skyline: SVG of the chosen child.
        key: legend of the skyline: names and tiles.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2").render(
        run=run,
        weights=weights,
        title=title,
        sentence=sentence,
        facts=facts,
        skyline=skyline,
        key=key,
        textures=TEXTURES,
        sections=[section for section in sections if section.parts],
    )
