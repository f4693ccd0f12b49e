"""Figures: bands are intervals, arms are named, output is deterministic."""

import pandas as pd
import pytest

from tangram_studies.plots import lines_figure, means, points_figure
from tangram_studies.study import interval


def rows(arm="one"):
    values = {1: (0.5, 0.7, 0.9), 2: (0.2, 0.4, 0.3)}
    return pd.DataFrame(
        [{"arm": arm, "x": x, "seed": s, "value": v} for x, own in values.items() for s, v in enumerate(own)]
    )


def test_bands_are_the_intervals():
    found = means(rows())
    assert found["x"].tolist() == [1, 2]
    expected = interval([0.5, 0.7, 0.9])
    assert found.iloc[0][["mean", "low", "high"]].tolist() == pytest.approx(
        [expected.estimate, expected.low, expected.high]
    )
    single = means(rows().query("seed == 0"))
    assert single["low"].tolist() == single["high"].tolist() == single["mean"].tolist()


def test_figures_name_their_arms_and_are_deterministic():
    panels = {"left": rows("one"), "right": pd.concat([rows("one"), rows("other")])}
    figures = [lines_figure("f", "Title", "Caption", panels, "x", "y", log="xy") for _ in range(2)]
    assert figures[0] == figures[1]
    assert all(text in figures[0].svg for text in ("one", "other", "left", "right"))
    assert (figures[0].title, figures[0].caption) == ("Title", "Caption")
    points = pd.DataFrame({"arm": ["a", "b"], "x": [0.1, 0.2], "value": [1.0, 2.0]})
    svg = points_figure("p", "T", "C", {"only": points}, "x", "y", {"a": "#112233", "b": "#445566"}, log="y").svg
    assert all(text in svg for text in ("#112233", "#445566", ">a<", ">b<"))


def test_labels_of_near_points_do_not_overlap(monkeypatch):
    """Ten labels beside ten points in two places, in a figure that has room for them."""
    boxes = []

    def keep(_name, _alt, draw):
        figure = draw()
        boxes.extend(label.get_window_extent() for label in figure.axes[0].texts)
        return ""

    monkeypatch.setattr("tangram_studies.plots.render", keep)
    arms = [f"arm {i}" for i in range(10)]
    points = pd.DataFrame({"arm": arms, "x": [1.0, 1.001] * 5, "value": [1.0 + i / 100 for i in range(10)]})
    far = pd.DataFrame({"arm": ["far"], "x": [2.0], "value": [100.0]})
    points_figure("p", "T", "C", {"only": pd.concat([points, far])}, "x", "y", dict.fromkeys([*arms, "far"], "#112233"))
    assert len(boxes) == 11
    assert not any(box.count_overlaps(boxes[:i]) for i, box in enumerate(boxes))
