"""Figures of solutions, sweeps and R_a, and of arrays; the one door to matplotlib and plotly.

    mj.plot.trajectories(sol)                        # loss, x and a of a Solution over time
    mj.plot.trajectories(ds.sel(t_off=5.0), "error") # one curve a lane of a sweep
    mj.plot.sweep_map(ds, "error")                   # a heat map, from which a click shows a trajectory
    mj.plot.potential(R, [0.0, -1.0, -5.0])          # R_a as decay is spent

Functions return a `matplotlib.figure.Figure` and touch no global state (no pyplot), so they work in scripts, notebooks
and threads alike; a notebook shows the figure that ends a cell. `mj.plot.save(figure, "a.png")` writes it. The look of
the notebooks is the style `matplotlib.style.use("mirrorjax.plot.talk")`, which matplotlib finds in this package.
"""

from .figures import (
    FORMATS as FORMATS,
    WIDTH as WIDTH,
    Figure as Figure,
    Line as Line,
    Panel as Panel,
    colors as colors,
    describe as describe,
    heat_map as heat_map,
    image_grid as image_grid,
    intervals as intervals,
    line_panels as line_panels,
    log_edges as log_edges,
    save as save,
)
from .flows import potential as potential, sweep_map as sweep_map, trajectories as trajectories
