"""Figures of the objects of this library: solutions, datasets of sweeps, and R_a."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from ..checks import Numbers, as_count, require_kind
from ..dynamics import Solution
from ..geometry import AbstractLegendre
from ..runs.dataset import Dataset, flatten
from .figures import WIDTH, Line, Panel, colors, line_panels, log_edges

MOST_CURVES = 64  # more cannot be told apart
LEGEND = 12  # curves that have an entry in the legend
DECADE = 10.0  # positive numbers over so large a ratio are shown on a logarithmic axis
# Points q^4 of [0, 1] with q at the nodes of Gauss and Legendre: most are close to 0, where mu is steep.
_Q, _W = (each / 2 for each in np.polynomial.legendre.leggauss(24))
NODES, WEIGHTS = (_Q + 0.5) ** 4, 4 * (_Q + 0.5) ** 3 * _W
SHAPE_LABEL = r"$R_a(x) - \min R_a$, scaled to 1"


def trajectories(source: Solution | Dataset, variable: str | None = None, *, title: str = "") -> Figure:
    """Draws variables over time: of a `Solution` each in a panel of its own, of a sweep one curve a lane.

    Positive curves that fall or rise tenfold have a logarithmic axis.

    **Arguments:**

    - `source`: what `solve` or `sweep` returned, or a part of the latter such as `ds.sel(t_off=5.0)`.
    - `variable`: of a solution `"loss"`, `"x"`, `"a"`, `"mu"` or a metric, by default the first three and every metric;
      of a dataset the name of a variable over time, by default `"loss"`.
    - `title`: over all panels.

    **Returns:** the figure. Of an array of more than 64 coordinates, the 64 that are largest at the end are drawn.

    **Raises:** `ValueError` for a variable that does not exist or has no time axis, and for more than 64 lanes.

    Example:

        import jax.numpy as jnp
        import mirrorjax as mj

        f = mj.LeastSquares(jnp.array([[1.0, 0.5]]), jnp.ones(1))
        problem = mj.Problem(mj.Hadamard(), mj.WeightDecay(), mj.SwitchOff(0.2, 5.0), f)
        sol = mj.solve(problem, (jnp.ones(2), jnp.zeros(2)), t1=20.0, saveat=jnp.linspace(0.0, 20.0, 5))
        figure = mj.plot.trajectories(sol)

    Source: none, a picture.
    """
    require_kind(source, (Solution, Dataset), "source", "what mirrorjax.solve or mirrorjax.sweep returned")
    if isinstance(source, Dataset):
        return _of_lanes(source, "loss" if variable is None else variable, title)
    known = _over_time(source)
    names = [name for name in known if name != "mu"] if variable is None else [variable]
    if missing := [name for name in names if name not in known]:
        raise ValueError(f"the solution has no {missing[0]!r} over time; it has {', '.join(known)}")
    ts = np.asarray(source.ts)
    panels = [
        Panel([Line(ts, each) for each in _largest(known[name])], name, "time t", name, y_log=_is_log(known[name]))
        for name in names
    ]
    return line_panels(panels, title)


def sweep_map(dataset: Dataset, variable: str, *, mark: Mapping[str, float] | None = None, title: str = "") -> Figure:
    """Draws a variable of a sweep at its last time over two parameters, and beside it one lane over time.

    The marked lane is the one whose trajectory is drawn. Where the figure is in a window, or a notebook with
    `%matplotlib widget`, a click on the map marks another lane.

    **Arguments:**

    - `dataset`: of a sweep over two parameters, each with two or more values; of one over more, choose with `ds.sel`.
    - `variable`: a variable of numbers with these two dimensions, and `time` or not. Without, only the map is drawn.
    - `mark`: a value for each of the two parameters; the nearest lane is marked, by default the one whose variable is
      smallest at the end.

    **Returns:** the figure. Axes and colours are logarithmic where values are positive and reach over a decade; lanes
    without a value are hatched.

    **Raises:** `ValueError` for a variable that does not exist, other dimensions, and a mark that is not one value for
    each parameter.

    Example:

        import jax.numpy as jnp
        import mirrorjax as mj

        def lane(alpha, t_off):
            f = mj.LeastSquares(jnp.array([[1.0, 0.5]]), jnp.ones(1))
            problem = mj.Problem(mj.Hadamard(), mj.WeightDecay(), mj.SwitchOff(alpha, t_off), f)
            return problem, (jnp.ones(2), jnp.zeros(2))

        grid = {"alpha": [0.1, 1.0], "t_off": [1.0, 2.0, 4.0]}
        ds = mj.sweep(lane, grid, t1=20.0, saveat=jnp.linspace(0.0, 20.0, 5))
        figure = mj.plot.sweep_map(ds, "loss", mark={"alpha": 1.0, "t_off": 2.0})

    Source: none, a picture.
    """
    require_kind(dataset, Dataset, "dataset", "what mirrorjax.sweep returned")
    values = _variable(dataset, variable)
    parameters = [str(name) for name in values.dims if name != "time"]
    sizes = [values.sizes[name] for name in parameters]
    if len(parameters) != 2 or min(sizes) < 2:
        found = ", ".join(f"{name} ({size})" for name, size in zip(parameters, sizes, strict=True)) or "none"
        raise ValueError(
            f"a map needs two parameters of two or more values, got {found}; choose with ds.sel or ds.isel"
        )
    values = values.transpose(*parameters, ...).sortby(parameters)
    at_end = values.isel(time=-1) if "time" in values.dims else values
    chosen = _marked(at_end, parameters, mark)
    has_time = "time" in values.dims
    figure = Figure(figsize=(WIDTH * (2 if has_time else 1) + 1.4, 3.8), layout="constrained")
    axes = np.atleast_1d(np.asarray(figure.subplots(1, 2 if has_time else 1)))
    _draw_map(figure, axes[0], at_end, parameters, variable)
    figure.suptitle(title, x=0.02, horizontalalignment="left")
    (cross,) = axes[0].plot([], [], "o", markersize=9, markerfacecolor="none", markeredgecolor="red", markeredgewidth=2)
    curve = axes[1].plot([], [], color="black", linewidth=1.6)[0] if has_time else None

    def show(index: Mapping[str, int]) -> None:
        place = {name: float(at_end[name][index[name]]) for name in parameters}
        cross.set_data([place[parameters[1]]], [place[parameters[0]]])
        if curve is not None:
            lane = values.isel(index)
            curve.set_data(lane["time"].values, lane.values)
            axes[1].set(title=_words(place), xlabel="time t", ylabel=variable)
            axes[1].set_yscale("log" if _is_log(lane.values) else "linear")
            axes[1].relim()
            axes[1].autoscale_view()

    def click(event: Any) -> None:
        if event.inaxes is axes[0]:
            show(_nearest(at_end, {parameters[1]: event.xdata, parameters[0]: event.ydata}))
            figure.canvas.draw_idle()

    show(chosen)
    figure.canvas.mpl_connect("button_press_event", click)
    return figure


def potential(
    R: AbstractLegendre,
    a: Numbers,
    x: Float[np.ndarray, " n"] | None = None,
    *,
    coordinate: int = 0,
    title: str = "",
) -> Figure:
    """Draws `R_a(x) - min R_a` along one coordinate for several a, each divided by its largest value shown.

    The other coordinates are at the minimizer of R_a, which a dot marks.

    **Arguments:** `R`: of `legendre`; `a`: strengths <= 0; `x` (n,): values of the coordinate, by default those up to a
    distance of 2 from the minimizers; `coordinate`: its index in x raveled.
    **Returns:** the figure; points outside of the range of x are left out, and so are strengths without R_a.
    **Raises:** `ValueError` for something else than an R_a, for no strengths, positive ones, a coordinate that x does
    not have, and where R_a exists at none of the strengths.

    Example:

        import jax.numpy as jnp
        import mirrorjax as mj

        R = mj.legendre(mj.Hadamard(), mj.WeightDecay(), (jnp.ones(1), jnp.zeros(1)))
        figure = mj.plot.potential(R, [0.0, -0.5, -2.0])

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Figs. 1 and 2.
    """
    require_kind(R, AbstractLegendre, "R", "what mirrorjax.legendre returned")
    strengths = np.atleast_1d(np.asarray(a, float))
    if strengths.ndim != 1 or not strengths.size or not np.all((strengths <= 0) & np.isfinite(strengths)):
        raise ValueError(f"a must be strengths a <= 0, one or several, got {a}")
    size = R.point_like().size
    coordinate = as_count(coordinate, "coordinate", least=0)
    if coordinate >= size:
        raise ValueError(f"x has {size} coordinates, got coordinate = {coordinate}")
    minima = np.array([_minimizer(R, jnp.asarray(value), coordinate) for value in strengths])
    exists = np.isfinite(minima)
    if not exists.any():
        raise ValueError(f"R_a exists at none of the strengths {strengths}; decay has spent more than the range allows")
    points = np.linspace(minima[exists].min() - 2, minima[exists].max() + 2, 201) if x is None else np.asarray(x, float)
    lines = []
    for strength, minimum in zip(strengths[exists], minima[exists], strict=True):
        excess = np.asarray(excess_along(R, jnp.asarray(points), jnp.asarray(strength), coordinate))
        if np.any(excess > 0):
            lines.append(Line(points, excess / np.nanmax(excess), f"a = {strength:.3g}", marker=(minimum, 0.0)))
    panel = Panel(lines, "Dots: argmin of each", "x", SHAPE_LABEL)
    return line_panels([panel], title or "R_a as regularization is spent", "spent")


@eqx.filter_jit
def _minimizer(R: AbstractLegendre, a: Float[Array, ""], coordinate: int) -> Float[Array, ""]:
    return _known(R.primal(jnp.zeros(R.point_like().shape), a)).ravel()[coordinate]


@eqx.filter_jit
def excess_along(
    R: AbstractLegendre, x: Float[Array, " n"], a: Float[Array, ""], coordinate: int = 0
) -> Float[Array, " n"]:
    """`R_a - min R_a = int mu dx` where one coordinate has the values x and the others are those of the minimizer.

    The integral starts at the minimizer, so it is a sum of numbers of one sign. A difference of values of Q_a has no
    digits left where decay has made Q_a small beside mu x, and its Hessian, which the Bregman divergence integrates
    along mu, is then 0 at all but the last of the nodes. NaN where a point is outside of the range.
    """
    lowest = R.primal(jnp.zeros(R.point_like().shape), a).value
    minimizer = lowest.ravel()[coordinate]
    nodes, weights = jnp.asarray(NODES, x.dtype), jnp.asarray(WEIGHTS, x.dtype)

    def slope(value: Float[Array, ""]) -> Float[Array, ""]:
        point = lowest.ravel().at[coordinate].set(value).reshape(lowest.shape)
        return _known(R.dual(point, a)).ravel()[coordinate]

    inside = jax.vmap(jax.vmap(slope))(minimizer + jnp.outer(x - minimizer, nodes))
    return jnp.where(jnp.isfinite(jax.vmap(slope)(x)), (x - minimizer) * (inside @ weights), jnp.nan)


def _known(recovered: Any) -> Array:
    return jnp.where(recovered.ok, recovered.value, jnp.nan)


def _over_time(sol: Solution) -> dict[str, np.ndarray]:
    """The variables of a solution as arrays (time, ..); x and mu are there only if they were saved at every time."""
    known = {"loss": sol.loss, "x": sol.x, "a": sol.a, "mu": sol.mu, **flatten(sol.metrics, "metrics")}
    arrays = {name: np.asarray(value) for name, value in known.items()}
    return {name: array for name, array in arrays.items() if array.shape[:1] == np.shape(sol.ts)}


def _largest(values: np.ndarray) -> list[np.ndarray]:
    """The coordinates of an array (time, ..) as curves: all of them, or the largest at the end in their order."""
    columns = values.reshape(len(values), -1)
    kept = np.sort(np.argsort(-np.abs(np.nan_to_num(columns[-1])), kind="stable")[:MOST_CURVES])
    return list(columns[:, kept].T)


def _is_log(values: np.ndarray) -> bool:
    finite = values[np.isfinite(values)]
    return bool(finite.size and finite.min() > 0 and finite.max() >= DECADE * finite.min())


def _variable(dataset: Dataset, name: str) -> Any:
    numbers = [str(each) for each, array in dataset.data_vars.items() if array.dtype.kind in "iuf"]
    if name not in numbers:
        raise ValueError(f"the dataset has no variable of numbers {name!r}; it has {', '.join(numbers)}")
    return dataset[name]


def _of_lanes(dataset: Dataset, name: str, title: str) -> Figure:
    values = _variable(dataset, name)
    if "time" not in values.dims:
        raise ValueError(f"{name!r} has no time axis; its dimensions are {', '.join(map(str, values.dims)) or 'none'}")
    parameters = [str(dim) for dim in values.dims if dim != "time"]
    values = values.transpose(*parameters, "time")
    shape = values.shape[:-1]
    count = int(np.prod(shape))
    if count > MOST_CURVES:
        raise ValueError(
            f"{name!r} has {count} curves, more than the {MOST_CURVES} that can be told apart; choose some, for "
            f"instance dataset.isel({parameters[0]}=slice(None, None, {-(-count // MOST_CURVES)}))"
        )
    chosen = colors(count)
    lines = []
    for number, index in enumerate(np.ndindex(*shape)):
        label = _words({p: float(values[p][i]) for p, i in zip(parameters, index, strict=True) if p in values.coords})
        lines.append(
            Line(values["time"].values, values.values[index], label if count <= LEGEND else "", color=chosen[number])
        )
    panel = Panel(lines, "", "time t", name, y_log=_is_log(values.values))
    return line_panels([panel], title, "lanes" if count <= LEGEND and parameters else None)


def _words(place: Mapping[str, float]) -> str:
    return ", ".join(f"{name} = {value:.3g}" for name, value in place.items())


def _marked(at_end: Any, parameters: list[str], mark: Mapping[str, float] | None) -> dict[str, int]:
    """The index of the marked lane along each parameter."""
    if mark is None:
        if not np.isfinite(at_end.values).any():
            return dict.fromkeys(parameters, 0)
        lowest = np.unravel_index(np.nanargmin(at_end.values), at_end.shape)
        return dict(zip(parameters, map(int, lowest), strict=True))
    if set(mark) != set(parameters):
        raise ValueError(f"mark must hold a value for each of {', '.join(parameters)}, got {dict(mark)}")
    return _nearest(at_end, mark)


def _nearest(at_end: Any, place: Mapping[str, float]) -> dict[str, int]:
    """The index of the nearest value of each parameter, nearest in its logarithm where the axis is logarithmic."""
    index = {}
    for name, value in place.items():
        values = at_end[name].values
        scale = np.log if _is_log(values) and value > 0 else np.asarray
        index[name] = int(np.argmin(np.abs(scale(values) - scale(value))))
    return index


def _draw_map(figure: Figure, axis: Axes, at_end: Any, parameters: list[str], variable: str) -> None:
    row, column = (at_end[name].values for name in parameters)
    axis.patch.set(hatch="///", edgecolor="0.7")
    edges = [log_edges(each) if _is_log(each) else _edges(each) for each in (column, row)]
    norm = LogNorm() if _is_log(at_end.values) else None
    mesh = axis.pcolormesh(*edges, np.ma.masked_invalid(at_end.values), norm=norm, cmap="viridis")
    axis.set(xlabel=parameters[1], ylabel=parameters[0])
    axis.set_xscale("log" if _is_log(column) else "linear")
    axis.set_yscale("log" if _is_log(row) else "linear")
    figure.colorbar(mesh, ax=axis, label=f"{variable} at the end" if "time" in at_end.coords else variable)


def _edges(centers: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n+1"]:
    """Cell edges halfway between neighbours."""
    middle = (centers[1:] + centers[:-1]) / 2
    return np.concatenate([[2 * centers[0] - middle[0]], middle, [2 * centers[-1] - middle[-1]]])
