"""What a page is made of, for the report of a run and for those of the studies, and the one template that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

TEMPLATES = Path(__file__).parents[2] / "report"


@dataclass(frozen=True)
class Cell:
    """A table's cell: text, and optionally a class, a background, or a bar of a share of the cell's width."""

    text: str
    look: str = ""
    background: str = ""
    ink: str = ""
    bar: float | None = None


@dataclass(frozen=True)
class Table:
    """Rows under column heads; the first ``labels`` columns are left-aligned text."""

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
    """A sentence where something is missing."""

    text: str


Part = Table | Figure | Note


@dataclass(frozen=True)
class Section:
    """A heading, a sentence or two, and what stands under it."""

    name: str
    title: str
    lead: str = ""
    parts: list[Part] = field(default_factory=list)


@dataclass(frozen=True)
class Fact:
    """One number of the headline, with what it is compared with."""

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
    """Return one HTML page without scripts or anything from outside it.

    Args:
        run: what the page is of, above its title.
        title: the headline.
        sections: the body; those without parts are left out.
        sentence: under the headline.
        facts: large figures under that.
        weights: what the parent's weights are.
        skyline: SVG of the chosen child.
        key: names and tiles that explain it.
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
        sections=[section for section in sections if section.parts],
    )
