"""Late generalisation (the paper's Fig. 7): the data are fitted early, the planted solution is found late, or never.

Two problems with decay that is switched off: matrix sensing, X = U U^T, and sparse regression, x = m w. For every
strength and switch-off time the experiment measures the times from which the loss and the error are small. Weak decay
changes R_a little, and the error falls long after the loss. Strong decay shrinks the weights to e^{-2|a|}, and the
flow must first enlarge them again: in sparse regression this takes a time, proportional to |a|, that is known without
integrating.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.optimize import nnls

from ... import plot
from ...dynamics import RKC
from ...problem import Hadamard, Problem, SwitchOff, WeightDecay
from ...runs.dataset import Dataset
from ...sweeps import sweep
from ..core.curves import settling_time, strength_lines
from ..core.experiment import Setting
from ..core.run import RunFolder
from . import matrix_sensing
from .planted import COORDINATES, sparse_regression

GENERAL = 1e-2  # the relative error that counts as having found the planted solution
FITTED = 1e-3  # the share of the initial loss that counts as having fitted the data
OFF = 50.0  # the switch-off time of the curves; the heat map has others
NEVER = np.inf


@dataclass(frozen=True)
class Size:
    """The size of a preset: the matrices, the strengths besides 0, the switch-off times besides never, the end, and
    how many times are saved up to it.
    """

    matrix: matrix_sensing.Size
    strengths: Float[np.ndarray, " strengths"]
    t_off: Float[np.ndarray, " times"]
    horizon: float
    times: int


SIZES = {
    "paper": Size(
        matrix_sensing.Size(n=30, r=3, heat=0), np.geomspace(0.01, 10.0, 10), np.array([2, 5, 15, OFF, 150]), 2e4, 3000
    ),
    "quick": Size(
        matrix_sensing.Size(n=15, r=2, heat=0), np.geomspace(0.02, 5.0, 7), np.array([15, OFF, 150]), 4e3, 1000
    ),
}


@dataclass(frozen=True)
class Task:
    """A problem with a planted solution: its lane, the metric `rel_error`, and when strong decay lets go of it.

    `escape(spent)` is a time before which weights cannot have come back from a decay that spent |a| in all, to leading
    order in |a|; `found(spent)` when the planted solution is found, where that is known. `figure`: the picture's name.
    """

    name: str
    figure: str
    lane: Callable[..., Any]
    metrics: Callable[..., Any]
    escape: Callable[[float], float]
    found: Callable[[float], float] | None


def run(folder: RunFolder, setting: Setting) -> None:
    """Both problems, each written as soon as it is solved."""
    size = SIZES[setting.preset]
    rows, tasks = [], (sparse_task(setting.seed), matrix_task(size.matrix, setting.seed))
    for task in tasks:
        dataset = solve(task, size)
        folder.save_dataset(task.name, dataset)
        rows += table_rows(task, dataset)
        folder.save_table("grokking", rows)
        folder.save_figure(task.figure, late_figure(task, dataset), LATE_CAPTION[task.figure])
        folder.save_figure(f"heat_{task.name}", heat_figure(task, dataset, rows), HEAT_CAPTION)
    folder.save_figure("time_to_generalise", times_figure(rows), TIMES_CAPTION)
    folder.show(f"Switched off at t = {OFF:g}", [row for row in rows if row["t_off"] == OFF], COLUMNS, "grokking")
    for task in tasks:
        _claim(folder, task, [row for row in rows if row["problem"] == task.name])


TITLES = {"sparse_regression": "Sparse regression, x = m w", "matrix_sensing": "Matrix sensing, X = U U^T"}
COLUMNS = {
    "problem": "problem",
    "strength": "strength",
    "spent": "spent |a|",
    "time_to_fit": "fitted at t",
    "time_to_generalise": "found at t",
    "escape": "not before",
    "predicted": "predicted",
    "error": "error at the end",
}


def sparse_task(seed: int) -> Task:
    """x = m w from (0, 1) with weight decay: `x = A sinh(2 mu)`, A = e^{-4|a|}/2, is of order one where |mu| = 2|a|."""
    data = sparse_regression(seed)
    start = jnp.zeros(COORDINATES), jnp.ones(COORDINATES)
    Z, y = np.asarray(data.objective.Z), np.asarray(data.objective.y)
    slope, total = float(np.abs(Z.T @ y).max()) / len(y), incremental_time(Z, y)

    def lane(alpha, t_off):
        return Problem(Hadamard(), WeightDecay(), SwitchOff(alpha, t_off), data.objective), start

    def metrics(t, x, w):
        return {"rel_error": data.distance(x) / jnp.linalg.norm(data.target)}

    return Task(
        "sparse_regression",
        "late_sparse_regression",
        lane,
        metrics,
        lambda spent: 2 * spent / slope,
        lambda spent: 2 * spent * total,
    )


def matrix_task(size: matrix_sensing.Size, seed: int) -> Task:
    """X = U U^T from U = I: its largest eigenvalue is e^{4 (lambda t - |a|)} while X is small, lambda of -grad f(0)."""
    data = matrix_sensing.make_data(size, seed)
    slope = -np.asarray(data.objective.gradient(jnp.zeros_like(data.target)))
    fastest = float(np.linalg.eigvalsh(slope)[-1])

    def metrics(t, x, w):
        return {"rel_error": data.metrics(t, x, w)["rel_error"]}

    return Task("matrix_sensing", "fig7_matrix_sensing", data.point, metrics, lambda spent: spent / fastest, None)


def incremental_time(Z: Float[np.ndarray, "n d"], y: Float[np.ndarray, " n"]) -> float:
    """The time at which the flow of x = A sinh(2 mu) has fitted y, as A -> 0, in units of log(1/A)/2: a sum of waits.

    In the limit mu moves at the constant rate `-grad f(x)` while x waits at a saddle: where f is least over the
    coordinates whose |mu_i| has reached 1, with the signs of mu_i, the others being 0. The next to reach 1 ends it.

    **Arguments:** `Z` (n, d), `y` (n,): `f = |Z x - y|^2 / (2n)`.
    **Raises:** `ValueError` when y is not fitted after 10 d saddles.

    Source: Pesme and Flammarion (2023), "Saddle-to-saddle dynamics in diagonal linear networks".
    """
    n, d = Z.shape
    mu, x, t = np.zeros(d), np.zeros(d), 0.0
    floor = 1e-9 * np.abs(Z.T @ y).max() / n
    for _ in range(10 * d):
        slope = Z.T @ (y - Z @ x) / n
        moving = np.abs(slope) > floor
        if not moving.any():
            return t
        waits = np.full(d, np.inf)
        waits[moving] = (np.sign(slope[moving]) - mu[moving]) / slope[moving]
        t += waits.min()
        mu = mu + waits.min() * slope
        reached = np.abs(mu) > 1 - 1e-9
        signs = np.sign(mu[reached])
        x = np.zeros(d)
        x[reached] = signs * nnls(Z[:, reached] * signs, y)[0]
    raise ValueError(f"the incremental path did not fit y within {10 * d} saddles")


def solve(task: Task, size: Size) -> Dataset:
    """All strengths, 0 among them, with all switch-off times, never among them."""
    grid = {"alpha": np.append(0.0, size.strengths), "t_off": np.append(size.t_off, NEVER)}
    # Dense: the error falls by ten orders in a moment, and only the save times tell when.
    ts = np.append(0.0, np.geomspace(0.1, size.horizon, size.times))
    return sweep(task.lane, grid, t1=size.horizon, saveat=ts, metrics=task.metrics, solver=RKC())


def table_rows(task: Task, dataset: Dataset) -> list[dict[str, Any]]:
    """One mapping a strength and switch-off time, with the columns of grokking.csv; what never comes is missing."""
    ts = dataset.time.values
    rows = []
    for alpha in dataset.alpha.values:
        for t_off in dataset.t_off.values:
            lane = dataset.sel(alpha=alpha, t_off=t_off)
            spent = abs(float(lane.a[-1]))
            known = alpha > 0 and np.isfinite(t_off)
            rows.append(
                {
                    "problem": task.name,
                    "strength": float(alpha),
                    "t_off": float(t_off),
                    "spent": spent,
                    "time_to_fit": settling_time(ts, lane.loss.values, FITTED * float(lane.loss[0])),
                    "time_to_generalise": settling_time(ts, lane.rel_error.values, GENERAL),
                    "escape": task.escape(spent) if known else None,
                    "predicted": task.found(spent) if known and task.found is not None else None,
                    "error": float(lane.rel_error[-1]),
                    "status": str(lane.status.values),
                }
            )
    return rows


def _claim(folder: RunFolder, task: Task, rows: list[dict[str, Any]]) -> None:
    """Records the claims on one problem; `rows` are those of the problem."""
    name = TITLES[task.name]
    never = [row for row in rows if row["strength"] > 0 and np.isinf(row["t_off"])]
    switched = [row for row in rows if row["strength"] > 0 and np.isfinite(row["t_off"])]
    found = [row for row in switched if np.isfinite(row["time_to_generalise"])]
    best = min(row["error"] for row in never)
    folder.claim(
        f"{name}: no strength of the table finds the planted solution while its decay is on",
        key="never-while-on",
        paper="only after switch-off",
        ours=f"the smallest error without a switch-off is {best:.3f}",
        holds=best > GENERAL and all(row["time_to_generalise"] > row["t_off"] for row in found),
        see=(f"heat_{task.name}", "grokking"),
    )
    late = max(found, key=lambda row: row["time_to_generalise"] / row["time_to_fit"])
    folder.claim(
        f"{name}: the planted solution can be found later than twice the time at which the data are fitted",
        key="found-late",
        paper="late (Fig. 7)",
        ours=f"fitted at t = {late['time_to_fit']:.1f}, found at {late['time_to_generalise']:.0f} "
        f"(strength {late['strength']:.2g}, off at {late['t_off']:g})",
        holds=late["time_to_generalise"] > 2 * late["time_to_fit"],
        see=(task.figure, "time_to_generalise", "grokking"),
    )
    strong = [row for row in switched if row["strength"] > 1]
    early = np.min([row["time_to_generalise"] / row["escape"] for row in strong])
    folder.claim(
        f"{name}: after strong decay (above 1) the planted solution is found no sooner than weights can grow back",
        paper="-",
        ours=f"found at {early:.2f} times that earliest time, of order |a|, or later; {len(strong)} lanes",
        holds=bool(early > 1),
        see=("time_to_generalise", "grokking"),
    )
    if strong[0]["predicted"] is None:
        return
    worst = np.max([abs(row["time_to_generalise"] / row["predicted"] - 1) for row in strong if row["spent"] > 50])
    folder.claim(
        f"{name}: the time at which it is found is known without integrating (|a| above 50)",
        paper="-",
        ours=f"within {100 * worst:.1f} % of the incremental path's",
        holds=bool(worst < 0.03),
        see=("time_to_generalise", "grokking"),
    )


_LATE = "The error falls later than the loss, after weak and after strong decay; on logarithmic time."
LATE_CAPTION = {
    "fig7_matrix_sensing": f"Fig. 7. {_LATE}",
    "late_sparse_regression": f"No figure of the paper: what its Fig. 7 shows, for x = m w. {_LATE}",
}
HEAT_CAPTION = "The time at which the planted solution is found, by strength and switch-off time; hatched: never found."
TIMES_CAPTION = (
    "The times at which the data are fitted and the planted solution is found, by strength, beside two times that are "
    "known without integrating: the earliest that strong decay allows and, in sparse regression, the time itself. "
    "After strong decay both happen at once, and their curves lie on each other."
)
TIME = "time t (gradient flow)"


def late_figure(task: Task, dataset: Dataset) -> Any:
    """Fig. 7: on logarithmic time, loss and error of several strengths switched off at one time."""
    shown = dataset.sel(t_off=OFF)
    strengths = shown.alpha.values[[0, 1, 2, 3, *range(5, shown.alpha.size, 2)]]
    labels = ["no decay", *(f"{alpha:.2g}" for alpha in strengths[1:])]
    relative = shown.assign(loss=shown.loss / shown.loss.isel(time=0)).isel(time=slice(1, None))

    def panel(variable: str, title: str, label: str, level: float) -> plot.Panel:
        lines = strength_lines(relative, variable, strengths, labels)
        style: dict[str, Any] = {"x_log": True, "y_log": True, "events": [OFF], "level": level, "floor": level / 1e3}
        return plot.Panel(lines, title, TIME, label, **style)

    panels = [
        panel("loss", "Train loss", "f(x) / f at the start", FITTED),
        panel("rel_error", "Distance to the planted solution", r"$|x - x^*|\ /\ |x^*|$", GENERAL),
    ]
    return plot.line_panels(
        panels, f"{TITLES[task.name]}: decay off at t = {OFF:g} (dotted); dashed: thresholds", "strength"
    )


def times_figure(rows: list[dict[str, Any]]) -> Any:
    """Against strength: when the data are fitted, when the planted solution is found, and what theory says of it."""
    panels = []
    for name, title in TITLES.items():
        chosen = [row for row in rows if row["problem"] == name and row["t_off"] == OFF and row["strength"] > 0]
        strength = np.array([row["strength"] for row in chosen])

        def line(key: str, label: str, style: str, color: str, chosen=chosen, strength=strength) -> plot.Line:
            return plot.Line(strength, np.array([row[key] for row in chosen], float), label, style, color)

        lines = [
            line("time_to_generalise", "solution found", "o-", "tab:blue"),
            line("time_to_fit", "data fitted", "s-", "tab:orange"),
            line("predicted", "found, predicted as $|a| \\to \\infty$", "--", "tab:blue"),
            line("escape", "not before", ":", "0.3"),
        ]
        panels.append(plot.Panel(lines, title, r"strength $\alpha$", TIME, x_log=True, y_log=True, level=OFF))
    return plot.line_panels(panels, f"Decay off at t = {OFF:g} (dashed line)", "time until")


def heat_figure(task: Task, dataset: Dataset, rows: list[dict[str, Any]]) -> Any:
    """Draws the time at which the planted solution is found, over strengths x switch-off times."""
    strengths = dataset.alpha.values[1:]
    times = dataset.t_off.values[:-1]
    table = {(row["strength"], row["t_off"]): row["time_to_generalise"] for row in rows if row["problem"] == task.name}
    return plot.heat_map(
        np.array([[table[alpha, t_off] for t_off in times] for alpha in strengths]),
        strengths,
        times,
        title=f"{TITLES[task.name]}: time found",
        row_label=r"strength $\alpha$",
        column_label="switch-off time t_off",
        value_label=f"time found (hatched: not by t = {dataset.time.values[-1]:g})",
    )
