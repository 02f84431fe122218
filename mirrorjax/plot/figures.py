"""Figures from arrays.

Functions return a `matplotlib.figure.Figure` and touch no global state (no pyplot), so they work in scripts, notebooks
and threads alike (a notebook shows them once it has seen `%matplotlib inline`). Labels, units and titles are
arguments: a figure without them is not finished.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.legend import Legend

MOST_CELLS = 144  # of a heat map whose numbers can be read
WIDTH = 4.2  # inches a panel: readable at half a page
FORMATS = (".png", ".pdf", ".svg")


@dataclass(frozen=True)
class Line:
    """One curve: x and y values, its label in the legend, and how it is drawn."""

    x: np.ndarray
    y: np.ndarray
    label: str = ""
    style: str = "-"
    color: Any = None  # as matplotlib takes it; None for the next of the palette
    marker: tuple[float, float] | None = None  # a point to mark on it
    spread: np.ndarray | None = None  # half the height of a band around it, e.g. a standard deviation
    filled: bool = False  # shade the area down to 0, as under a histogram


@dataclass(frozen=True)
class Panel:
    """One set of axes: its curves, its labels, and times at which something happens (vertical lines)."""

    lines: Sequence[Line]
    title: str
    x_label: str
    y_label: str
    x_log: bool = False
    y_log: bool = False
    events: Sequence[float] = field(default_factory=tuple)
    level: float | None = None
    floor: float | None = None  # the y axis ends here: below it there is only the solver's tolerance
    marks: Sequence[float] = ()  # the x at which there is something to read, in place of matplotlib's choice
    names: Sequence[str] = ()  # texts at x = 0, 1, .. in place of numbers


def line_panels(panels: Sequence[Panel], title: str, legend_title: str | None = None) -> Figure:
    """Panels two in a row with one legend to their right, for curves that share their labels.

    **Arguments:** `panels`: what to draw; `title`: over all of them; `legend_title`: what the labels mean.
    **Raises:** `ValueError` for no panel, a line whose x and y differ in length, and two lines of a panel that the
    legend names differently and the reader cannot tell apart.
    """
    if not panels:
        raise ValueError("a figure needs at least one panel, got none")
    for line in (line for panel in panels for line in panel.lines):
        if np.shape(line.x) != np.shape(line.y):
            raise ValueError(f"the line {line.label!r} has x of shape {np.shape(line.x)}, y of {np.shape(line.y)}")
    for panel in panels:
        _require_different(panel.lines)
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH * columns + 2.0, 3.4 * rows), layout="constrained")
    axes = np.asarray(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        _draw_panel(axis, panel)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, title=legend_title, loc="outside right upper", frameon=False)
    figure.suptitle(title, x=0.02, horizontalalignment="left")  # in the middle it would meet the legend
    return figure


def _require_different(lines: Sequence[Line]) -> None:
    """Raises `ValueError` about two lines with labels of their own, but one colour and one style."""
    seen: dict[tuple[str, str], str] = {}
    for line in lines:
        if line.color is None or not line.label:
            continue
        other = seen.setdefault((to_hex(line.color, keep_alpha=True), line.style), line.label)
        if other != line.label:
            raise ValueError(
                f"the lines {other!r} and {line.label!r} of a panel have one colour and one style ({line.style!r}): "
                "give one of them another style, such as '--', '-.' or ':'"
            )


def colors(count: int) -> list[tuple[float, float, float, float]]:
    """So many colours from dark to bright, for curves that more than one panel or style shows.

    The bright end of the map is left out: on white its contrast is below 3, at which a thin line is hard to see.
    """
    return [tuple(color) for color in matplotlib.colormaps["plasma"](np.linspace(0.0, 0.63, max(count, 2)))[:count]]


def _draw_panel(axis: Axes, panel: Panel) -> None:
    free = sum(line.color is None for line in panel.lines)
    fresh = iter(colors(free))
    for line in panel.lines:
        chosen = next(fresh) if line.color is None else line.color
        axis.plot(line.x, line.y, line.style, color=chosen, label=line.label, linewidth=1.6)
        if line.spread is not None:
            low, high = line.y - line.spread, line.y + line.spread
            axis.fill_between(line.x, low, high, color=chosen, alpha=0.15, linewidth=0)
        if line.filled:
            axis.fill_between(line.x, 0, line.y, color=chosen, alpha=0.2, linewidth=0)
        if line.marker is not None:
            axis.plot(*line.marker, "o", color=chosen, markersize=5)
    for time in panel.events:
        axis.axvline(time, color="0.7", linestyle=":", linewidth=1)
    if panel.level is not None:
        axis.axhline(panel.level, color="0.5", linestyle="--", linewidth=1)
    if panel.x_log:
        axis.set_xscale("log")
    if panel.y_log:
        axis.set_yscale("log")
    if panel.floor is not None:
        axis.set_ylim(bottom=panel.floor)
    if panel.marks:
        axis.set_xticks(panel.marks)
    if panel.names:
        axis.set_xticks(range(len(panel.names)), panel.names, rotation=30, ha="right", rotation_mode="anchor")
    axis.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def heat_map(
    values: Float[np.ndarray, "rows columns"],
    rows: Float[np.ndarray, " rows"],
    columns: Float[np.ndarray, " columns"],
    *,
    title: str,
    row_label: str,
    column_label: str,
    value_label: str,
    floor: float | None = None,
    contour: Line | None = None,
) -> Figure:
    """Positive values over two logarithmic axes, on a logarithmic colour scale, and their numbers in the cells.

    Missing values are hatched, not coloured. A number has two digits, or one where its exponent takes the room; maps of
    more than 144 cells have none.

    **Arguments:** `values` (rows, columns); `rows`, `columns`: their positive coordinates, increasing; `floor`: where
    the colour scale ends; `contour`: a curve to draw on top.
    **Raises:** `ValueError` for coordinates that are not so, or do not fit the values.
    """
    _require_log_axis("rows", rows, values, 0)
    _require_log_axis("columns", columns, values, 1)
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.set_facecolor("white")
    axis.patch.set(hatch="///", edgecolor="0.7")
    masked = np.ma.masked_invalid(values)
    mesh = axis.pcolormesh(log_edges(columns), log_edges(rows), masked, norm=LogNorm(vmin=floor), cmap="viridis")
    _write_values(axis, rows, columns, masked, mesh.norm)
    if contour is not None:
        axis.plot(contour.x, contour.y, contour.style, color="white", label=contour.label, linewidth=1.6)
        # Outside, since it would hide numbers inside; on grey, since the line is white.
        style: dict[str, Any] = {"frameon": True, "facecolor": "0.3", "labelcolor": "white"}
        figure.legend(loc="outside lower center", **style)
    axis.set(xscale="log", yscale="log", title=title, xlabel=column_label, ylabel=row_label)
    axis.set(xlim=log_edges(columns)[[0, -1]], ylim=log_edges(rows)[[0, -1]])
    figure.colorbar(mesh, ax=axis, label=value_label)
    return figure


def _write_values(axis: Axes, rows: np.ndarray, columns: np.ndarray, values: Any, norm: Any) -> None:
    """Writes each value into its cell, in black on bright colours and in white on dark ones, where there is room."""
    if values.size > MOST_CELLS:
        return
    size = min(8.0, 64.0 / len(columns))  # points: four characters are as wide as a cell of this figure
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            if values[i, j] is np.ma.masked:
                continue
            bright = norm(np.clip(values[i, j], norm.vmin, None)) > 0.6
            style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": size}
            axis.text(column, row, _short(float(values[i, j])), color="black" if bright else "white", zorder=5, **style)


def _short(value: float) -> str:
    """Two digits, or one and an exponent: 0.071, 12, 340, 5e-05 as 5e-5."""
    if 1e-2 <= value < 1e4:
        return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def image_grid(rows: Sequence[tuple[str, Float[np.ndarray, "columns height width"]]], title: str) -> Figure:
    """Gray pictures in labelled rows, all on one scale: from the smallest value of the first row to its largest.

    **Arguments:** `rows`: label and pictures of each row, equally many in all of them; `title`: over all of them.
    **Raises:** `ValueError` for no pictures, or rows of different numbers of them.
    """
    counts = {label: len(pictures) for label, pictures in rows}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(f"every row needs the same number of pictures, at least one, got {counts}")
    columns = len(rows[0][1])
    figure = Figure(figsize=(1.1 * columns + 1.2, 1.15 * len(rows) + 0.5), layout="constrained")
    axes = np.asarray(figure.subplots(len(rows), columns, squeeze=False))
    low, high = np.min(rows[0][1]), np.max(rows[0][1])
    for line, (label, pictures) in zip(axes, rows, strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture, cmap="gray", vmin=low, vmax=high)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(label, rotation=0, ha="right", va="center")
    figure.suptitle(title)
    return figure


def intervals(
    labels: Sequence[str],
    mean: Float[np.ndarray, " n"],
    half_width: Float[np.ndarray, " n"],
    *,
    title: str,
    value_label: str,
    highlighted: Sequence[bool],
    floor: float,
    floor_label: str,
) -> Figure:
    """A mean with its interval a row, the first on top; highlighted rows are in colour.

    **Arguments:** `half_width`: of the interval around each mean; `value_label`: what is shown, with its unit;
    `floor`: the value that no mean can be below, drawn dashed.
    **Raises:** `ValueError` for arguments of different lengths.
    """
    lengths = {"labels": len(labels), "mean": len(mean), "half_width": len(half_width), "highlighted": len(highlighted)}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"every row needs a label, a mean, a half-width and a highlight, got {lengths}")
    figure = Figure(figsize=(5.6, 0.28 * len(labels) + 1.4), layout="constrained")
    axis = figure.subplots()
    for row, chosen in enumerate(highlighted):
        color = matplotlib.colormaps["viridis"](0.3) if chosen else "0.45"
        axis.errorbar(mean[row], row, xerr=half_width[row], fmt="o", color=color, capsize=3, markersize=5)
    axis.axvline(floor, color="0.5", linestyle="--", linewidth=1, label=floor_label)
    axis.legend(frameon=False)
    axis.set_yticks(range(len(labels)), labels)
    axis.set(xlim=(0, None), title=title, xlabel=value_label)
    axis.invert_yaxis()
    axis.grid(alpha=0.25, axis="x")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _require_log_axis(name: str, centers: np.ndarray, values: np.ndarray, axis: int) -> None:
    centers, values = np.asarray(centers), np.asarray(values)
    if values.ndim != 2 or centers.shape != (values.shape[axis],):
        raise ValueError(f"{name} must be the coordinates of values of shape {values.shape}, got shape {centers.shape}")
    if centers.size < 2 or not np.all(centers > 0) or not np.all(np.diff(centers) > 0):
        raise ValueError(f"{name} must be two or more positive numbers that increase, got {centers}")


def log_edges(centers: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n+1"]:
    """Cell edges halfway between neighbours on a logarithmic axis."""
    logs = np.log(centers)
    middle = (logs[1:] + logs[:-1]) / 2
    return np.exp(np.concatenate([[2 * logs[0] - middle[0]], middle, [2 * logs[-1] - middle[-1]]]))


def save(figure: Figure, path: str | Path) -> Path:
    """Writes a figure as PNG (150 dots an inch), PDF or SVG, by the suffix of the path, and returns the path.

    **Raises:** `ValueError` for another suffix.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"a figure is written to a file named {', '.join(FORMATS)}, got {path}")
    # No date in a PDF: the same figure gives the same file.
    figure.savefig(path, dpi=150, metadata={"CreationDate": None} if path.suffix.lower() == ".pdf" else None)
    return path


def describe(figure: Figure) -> str:
    """Describes a figure in words, from its titles, labels and legends, for readers who cannot see it."""
    title = figure.get_suptitle()
    parts = [title] if title else []
    for axis in figure.axes:
        if not axis.get_visible():
            continue
        over = " over ".join(label for label in (axis.get_ylabel(), axis.get_xlabel()) if label)
        parts.append(": ".join(text for text in (axis.get_title(), over) if text))
    names = [text.get_text() for legend in (*figure.legends, *_own_legends(figure)) for text in legend.get_texts()]
    if names:
        parts.append(f"Curves: {'; '.join(names)}")
    return ". ".join(" ".join(part.split()) for part in parts if part).replace("$", "").replace("\\", "")


def _own_legends(figure: Figure) -> list[Legend]:
    return [legend for axis in figure.axes if (legend := axis.get_legend()) is not None]
