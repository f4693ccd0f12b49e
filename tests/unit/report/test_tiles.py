"""Textures of precisions on the maps, and their legend."""

import re

from synthetic_run import settings_of

from tangram.blocks.base import ALL_PRECISIONS
from tangram.engines import ENGINES
from tangram.report.loading import load_results
from tangram.report.style import variant_colors
from tangram.report.textures import TEXTURES
from tangram.report.tiles import legend, swatch


def test_textures_show_precisions_on_the_maps(complete, html):
    """Every quantized subblock of the chosen child, and its head, has the texture of its precision over its tile."""
    architecture = load_results(complete, settings_of()).architectures["speed-1.2", "0"]
    skyline = html[: html.index("</figure>")]
    precisions = [variant.partition("@")[2] for _, _, variant in architecture.pieces()]
    drawn = skyline[: skyline.index('class="key"')]
    run = ("bf16", "int8")
    for precision in run:
        assert len(re.findall(rf'fill="url\(#{precision}-\w+\)"', drawn)) == precisions.count(precision) > 0
    assert "<title>head · parent@bf16" in drawn
    used = set(re.findall(r'fill="url\(#([\w-]+)\)"', html))
    textures = set(re.findall(r'<pattern id="([\w-]+)"', html))
    assert used <= textures
    assert textures == {f"{p}-{ink}" for p in ALL_PRECISIONS for ink in ("light", "dark", "theme")}
    assert {f"{p}-theme" for p in run} <= used  # on the parent's gray, which follows the theme


def test_legend_names_structures_and_precisions_once(html):
    key = html[html.index('<div class="key">') : html.index("</figure>")]
    names = re.findall(r"</svg>([^<]+)</span>", key)
    assert names[0] == "parent"
    assert names[-2:] == ["bf16", "int8"]
    assert set(names[:-2]) == {
        "parent",
        "gqa-1",
        "linear",
        "no-op",
        "width-0.75",
        "width-0.5",
        "width-0.25",
        "lowrank-144",
    }


def test_every_precision_of_every_engine_has_a_texture():
    assert {precision for engine in ENGINES.values() for precision in engine} | set(ALL_PRECISIONS) == TEXTURES.keys()
    assert len(set(TEXTURES.values())) == len(TEXTURES)
    colors = variant_colors([f"parent@{precision}" for precision in TEXTURES])
    assert [name for name, _ in legend(list(colors), colors)] == ["parent", *ALL_PRECISIONS]
    for precision in TEXTURES:
        assert f"url(#{precision}-" in swatch(f"parent@{precision}", colors)
