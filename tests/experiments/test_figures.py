"""Figures of runs: numbers in the cells of heat maps, and files that are the same each time."""

from typing import Any

import numpy as np
import pytest

from mirrorjax import plot

ROWS, COLUMNS = np.array([0.1, 1.0]), np.array([1.0, 10.0, 100.0])
VALUES = np.array([[0.0712, 12.34, np.nan], [5e-5, 340.2, 3.4e5]])


def draw():
    words: dict[str, Any] = {"title": "t", "row_label": "r", "column_label": "c", "value_label": "v"}
    return plot.heat_map(VALUES, ROWS, COLUMNS, floor=1e-4, **words)


def test_a_heat_map_has_its_numbers_in_its_cells():
    figure = draw()
    written = {tuple(text.get_position()): text.get_text() for text in figure.axes[0].texts}
    assert written == {
        (1.0, 0.1): "0.071",
        (10.0, 0.1): "12",
        (1.0, 1.0): "5e-5",
        (10.0, 1.0): "340",
        (100.0, 1.0): "3e5",
    }
    # White on the dark end of the scale, which is at the floor, and black on the bright one.
    colors = {text.get_text(): text.get_color() for text in figure.axes[0].texts}
    assert (colors["5e-5"], colors["3e5"]) == ("white", "black")


@pytest.mark.parametrize("ending", ["png", "pdf"])
def test_the_same_figure_gives_the_same_file(tmp_path, ending):
    first, second = (plot.save(draw(), tmp_path / f"{name}.{ending}").read_bytes() for name in ("a", "b"))
    assert first == second
    assert first.startswith({"png": b"\x89PNG", "pdf": b"%PDF"}[ending])
