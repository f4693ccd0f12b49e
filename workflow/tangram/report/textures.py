"""Textures of precisions on the report's tiles, whose colors show structures: an SVG pattern for each."""

from __future__ import annotations

from typing import NamedTuple


class Texture(NamedTuple):
    """A pattern of lines.

    Attributes:
        lines: the path in a square.
        size: side of the square.
        width: width of the lines.
        angle: degrees that the pattern is rotated by.
    """

    lines: str
    size: float
    width: float
    angle: int = 0


TEXTURES = {
    "bf16": Texture("M3 0v6", 6, 1.2, angle=45),
    "int8": Texture("M1.5 2.5h2", 5, 2.0, angle=45),
    "fp8": Texture("M3 0v6M0 3h6", 6, 0.9, angle=45),
    "f16": Texture("M3 0v6", 6, 1.2, angle=-45),
    "q8_0": Texture("M0 2h4", 4, 1.0),
    "q5_1": Texture("M2 0v4", 4, 1.0),
    "q5_0": Texture("M2.5 1v3", 5, 1.6),
    "q4_1": Texture("M2.5 0v5M0 2.5h5", 5, 0.9),
    "q4_0": Texture("M1.25 0v2.5M3.75 2.5v2.5", 5, 2.5),
}
