"""The interactive page of `mirrorjax explain`: R_a over time under a slider, in one HTML file; the door to plotly.

plotly puts its own library into the page, so that the page needs no network and no script is written here.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ..extras import needs

SHAPE, EXPONENT, MINIMUM, INTERVAL = (1, 1), (1, 2), (2, 1), (2, 2)  # row and column of each panel
FARTHEST = 1e6  # ends of the dual interval beyond it, or infinite, are drawn as arrows at the edge


@dataclass(frozen=True)
class Moments:
    """R_a of one coordinate at several times; entries are NaN where R_a does not exist.

    `t`, `a`, `minimizer`, `exponent`, `lower`, `upper` (n,): time, strength, argmin R_a, local exponent and the ends of
    the dual interval; `x` (k,): points; `shape` (n, k): `R_a(x) - min R_a` divided by its largest value.
    """

    t: Float[np.ndarray, " n"]
    a: Float[np.ndarray, " n"]
    minimizer: Float[np.ndarray, " n"]
    exponent: Float[np.ndarray, " n"]
    lower: Float[np.ndarray, " n"]
    upper: Float[np.ndarray, " n"]
    x: Float[np.ndarray, " k"]
    shape: Float[np.ndarray, "n k"]


def bias_page(moments: Moments, title: str) -> str:
    """The page as text: R_a, its minimum, the local exponent and the dual interval at the time that a slider chooses.

    **Raises:** `MissingExtra` where plotly is not installed.
    """
    with needs("interactive", "the interactive page"):
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

    titles = ("R_a(x) - min R_a, scaled to 1", "local exponent (2: L2-like, 1: L1-like)", "argmin R_a", "range of mu")
    figure = make_subplots(rows=2, cols=2, subplot_titles=titles, vertical_spacing=0.16)
    blue, red = "#0072B2", "#D55E00"
    over_time = {EXPONENT: moments.exponent, MINIMUM: moments.minimizer}
    for (row, column), values in over_time.items():
        line = go.Scatter(x=moments.t, y=values, mode="lines", line_color="#9aa3ab", showlegend=False)
        figure.add_trace(line, row=row, col=column)
    for row, column in (SHAPE, SHAPE, EXPONENT, MINIMUM, INTERVAL):
        figure.add_trace(go.Scatter(showlegend=False), row=row, col=column)
    moving = list(range(2, 7))  # the traces that the slider redraws: the five after the two lines
    reach = _reach(moments)

    def at(i: int) -> list[Any]:
        low, high = (float(np.clip(end[i], -reach, reach)) for end in (moments.lower, moments.upper))
        arrows = ["arrow-left" if low == -reach else "line-ns", "arrow-right" if high == reach else "line-ns"]
        marker = {"color": blue, "size": 14, "symbol": arrows, "line": {"color": blue, "width": 3}}
        dot = {"mode": "markers", "marker": {"color": red, "size": 11}}
        return [
            go.Scatter(x=moments.x, y=moments.shape[i], mode="lines", line={"color": blue, "width": 3}),
            go.Scatter(x=[moments.minimizer[i]], y=[0.0], **dot),
            go.Scatter(x=[moments.t[i]], y=[moments.exponent[i]], **dot),
            go.Scatter(x=[moments.t[i]], y=[moments.minimizer[i]], **dot),
            go.Scatter(x=[low, high], y=[0, 0], mode="lines+markers", marker=marker, line={"color": blue, "width": 3}),
        ]

    figure.frames = [
        go.Frame(name=str(i), data=at(i), traces=moving, layout={"title": {"text": _words(moments, title, i)}})
        for i in range(len(moments.t))
    ]
    for trace, first in zip(moving, at(0), strict=True):
        figure.data[trace].update(first.to_plotly_json())
    _dress(figure, moments, _words(moments, title, 0), reach)
    return figure.to_html(include_plotlyjs=True, full_html=True, auto_play=False, config={"responsive": True})


def _dress(figure: Any, moments: Moments, title: str, reach: float) -> None:
    """Gives the figure its slider, its axes and its title."""
    jump = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
    steps = [{"method": "animate", "label": f"{t:.4g}", "args": [[str(i)], jump]} for i, t in enumerate(moments.t)]
    figure.update_layout(
        sliders=[{"steps": steps, "currentvalue": {"prefix": "t = "}, "pad": {"t": 50}}],
        title={"text": title},
        template="plotly_white",
        showlegend=False,
        margin={"t": 110},
        height=720,
    )
    for (row, column), (below, beside) in {
        SHAPE: ("x", ""),
        EXPONENT: ("t", ""),
        MINIMUM: ("t", "x"),
        INTERVAL: ("mu", ""),
    }.items():
        figure.update_xaxes(title_text=below, row=row, col=column)
        figure.update_yaxes(title_text=beside, row=row, col=column)
    figure.update_yaxes(range=[-0.08, 1.05], row=1, col=1)
    figure.update_xaxes(range=[-1.1 * reach, 1.1 * reach], row=2, col=2)
    figure.update_yaxes(visible=False, range=[-1, 1], row=2, col=2)


def _reach(moments: Moments) -> float:
    """The largest finite end of the dual interval, which the axis of mu reaches; 1 where no end is finite."""
    ends = np.abs(np.concatenate([moments.lower, moments.upper]))
    return 1.25 * float(np.max(ends[ends < FARTHEST], initial=0.8))


def _words(moments: Moments, title: str, i: int) -> str:
    if not np.isfinite(moments.exponent[i]):
        return f"{title}<br>t = {moments.t[i]:.4g}, a = {moments.a[i]:.4g}: R_a does not exist"
    low, high = (f"{end[i]:.4g}".replace("inf", "∞") for end in (moments.lower, moments.upper))
    return (
        f"{title}<br>t = {moments.t[i]:.4g}, a = {moments.a[i]:.4g}: argmin R_a = {moments.minimizer[i]:.4g}, "
        f"local exponent {moments.exponent[i]:.4f}, mu in ({low}, {high})"
    )
