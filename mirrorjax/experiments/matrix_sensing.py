"""Matrix sensing with X = U U^T (the paper's section 5, Figs. 3, 5, 6, 7, Table 2): switching weight decay off recovers
a low-rank matrix that constant decay cannot.

All schedules of the table spend the same total, int alpha dt = 12.5, so they end with the same R_a. The table is
computed twice, by the gradient flow and by gradient descent with the paper's step 0.25; rows where descent is unstable
say so. The baseline, a linear parameterization with an L1 regularizer, forgets its regularization once it is off.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float

from .. import plot
from ..dynamics import Descent, ProximalDescent
from ..problem import (
    L1,
    CosineDecay,
    Gram,
    Linear,
    LinearDecay,
    MatrixSensing,
    Problem,
    Sum,
    SwitchOff,
    WeightDecay,
)
from ..sweep import Zip, sweep
from .run import Experiment, RunFolder, Setting

TRAINED = 1e-10  # the loss that counts as trained; the paper's own threshold is not printed
TOTAL = 12.5
HORIZON = 1250.0
STEP = 0.25


@dataclass(frozen=True)
class Size:
    """How large a preset is: n x n matrices of rank r, m = 3 n r measurements, and the points of the heat map a side."""

    n: int
    r: int
    heat: int


SIZES = {"paper": Size(n=50, r=5, heat=8), "quick": Size(n=15, r=2, heat=4)}


@dataclass(frozen=True)
class Row:
    """A schedule of Table 2: its three strengths (switched off, linear, cosine), and what the paper reports for it."""

    schedule: str
    constant: float
    linear: float
    cosine: float
    t_off: float
    paper_nuclear_norm: float | None
    paper_time: float | None


ROWS = (
    Row("none", 0.0, 0.0, 0.0, np.inf, None, None),
    Row("constant 0.01", 0.01, 0.0, 0.0, np.inf, 0.93, None),
    Row("linear decay", 0.0, 0.04, 0.0, 625.0, 1.00, 661.0),
    Row("cosine decay", 0.0, 0.0, 0.04, 625.0, 1.00, 624.0),
    Row("constant 0.02", 0.02, 0.0, 0.0, 625.0, 1.00, 716.0),
    Row("constant 0.2", 0.2, 0.0, 0.0, 62.5, 1.00, 209.0),
    Row("constant 2", 2.0, 0.0, 0.0, 6.25, 1.00, 209.0),
    Row("constant 20", 20.0, 0.0, 0.0, 0.625, 1.00, 239.0),
)


@dataclass(frozen=True)
class Data:
    """The planted matrix X* (n, n), of nuclear norm 1, and the objective that measures it."""

    target: Float[Array, "n n"]
    objective: MatrixSensing


def make_data(size: Size, seed: int) -> Data:
    """X* = U U^T scaled to nuclear norm 1, U ~ N(0,1)^{n x r}; A_i = (B_i + B_i^T)/2, B_i ~ N(0,1)^{n x n}."""
    factor_key, sensing_key = jax.random.split(jax.random.key(seed))
    factor = jax.random.normal(factor_key, (size.n, size.r))
    target = factor @ factor.T
    target = target / jnp.trace(target)
    B = jax.random.normal(sensing_key, (3 * size.n * size.r, size.n, size.n))
    A = (B + jnp.swapaxes(B, 1, 2)) / 2
    return Data(target, MatrixSensing(A, jnp.einsum("mij,ij->m", A, target)))


def run(folder: RunFolder, setting: Setting) -> None:
    """All parts, each written as soon as it is finished."""
    size = SIZES[setting.preset]
    data = make_data(size, setting.seed)
    flow = _solve_rows(data, "flow")
    folder.save_dataset("flow", flow)
    folder.save_figure("fig3_recovery", recovery_figure(flow))
    folder.save_figure("fig5_nuclear_norm", nuclear_norm_figure(flow))
    folder.save_figure("fig6_schedules", schedules_figure(flow))
    folder.save_figure("fig7_late_recovery", late_recovery_figure(flow))
    descent = _solve_rows(data, "descent")
    folder.save_dataset("descent", descent)
    rows = table_rows(flow, "flow") + table_rows(descent, "descent")
    folder.save_table("table2", rows)
    folder.show(f"Table 2: matrix sensing, n = {size.n}, rank {size.r}", rows, COLUMNS)
    baseline = _solve_baseline(data)
    folder.save_dataset("baseline", baseline)
    baseline_rows = table_rows(baseline, "proximal descent")
    folder.save_table("baseline", baseline_rows)
    folder.show("Baseline: linear X with an L1 regularizer, by proximal descent", baseline_rows, COLUMNS)
    heat = _solve_heat_map(data, size)
    folder.save_dataset("heat_map", heat)
    folder.save_figure("heat_map", heat_map_figure(heat))
    for line in verdicts(flow, baseline):
        folder.console.print(line)


EXPERIMENT = Experiment("matrix-sensing", "Recovery after switch-off: Table 2 and Figs. 3, 5, 6, 7 of the paper.", run)

COLUMNS = {
    "schedule": "schedule",
    "method": "method",
    "t_off": "off at t",
    "nuclear_norm": "nuclear norm",
    "paper_nuclear_norm": "paper",
    "rel_error": "error of X",
    "train_loss": "train loss",
    "time_to_train_loss": f"f < {TRAINED:.0e} at t",
    "paper_time": "paper",
    "status": "status",
}


def _row_grid() -> Zip:
    names = ("constant", "linear", "cosine", "t_off")
    return Zip(**{name: np.array([getattr(row, name) for row in ROWS]) for name in names})


def _schedule(constant: Any, linear: Any, cosine: Any, t_off: Any) -> Sum:
    return Sum(SwitchOff(constant, t_off), LinearDecay(linear, t_off), CosineDecay(cosine, t_off))


def _metrics(data: Data):
    """Nuclear norm (the trace, as X = U U^T is positive semidefinite) and relative error, over time."""
    norm = jnp.linalg.norm(data.target)

    def metrics(t, x, w):
        return {"nuclear_norm": jnp.trace(x), "rel_error": jnp.linalg.norm(x - data.target) / norm}

    return metrics


def _label(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.assign_coords(schedule=("lane", [row.schedule for row in ROWS]))


def _solve_rows(data: Data, method: str) -> xr.Dataset:
    n = data.target.shape[0]

    def lane(constant, linear, cosine, t_off):
        return Problem(Gram(), WeightDecay(), _schedule(constant, linear, cosine, t_off), data.objective), jnp.eye(n)

    flow = None if method == "flow" else Descent(optax.sgd(1.0), STEP)
    ts = np.linspace(0.0, HORIZON, 1251)
    return _label(sweep(lane, _row_grid(), t1=HORIZON, saveat=ts, metrics=_metrics(data), flow=flow))


def _solve_baseline(data: Data) -> xr.Dataset:
    """From X = 0, where the unregularized run finds the interpolator of least Frobenius norm: the fairest start."""

    def lane(constant, linear, cosine, t_off):
        schedule = _schedule(constant, linear, cosine, t_off)
        return Problem(Linear(), L1(), schedule, data.objective), jnp.zeros_like(data.target)

    error = _metrics(data)

    def metrics(t, x, w):
        singular_values = jnp.linalg.svd(x, compute_uv=False)
        return error(t, x, w) | {"nuclear_norm": jnp.sum(singular_values)}

    ts = np.linspace(0.0, HORIZON, 51)
    return _label(sweep(lane, _row_grid(), t1=HORIZON, saveat=ts, metrics=metrics, flow=ProximalDescent(STEP)))


def _solve_heat_map(data: Data, size: Size) -> xr.Dataset:
    n = data.target.shape[0]

    def lane(alpha, t_off):
        return Problem(Gram(), WeightDecay(), SwitchOff(alpha, t_off), data.objective), jnp.eye(n)

    grid = {"alpha": np.geomspace(0.01, 20.0, size.heat), "t_off": np.geomspace(0.5, 1000.0, size.heat)}
    return sweep(lane, grid, t1=HORIZON, metrics=_metrics(data))


def table_rows(dataset: xr.Dataset, method: str) -> list[dict[str, Any]]:
    """One mapping a schedule, with the columns of table2.csv; a lane that failed has a status and missing numbers."""
    rows = []
    for index, row in enumerate(ROWS):
        lane = dataset.isel(lane=index)
        final = lane.isel(time=-1)
        trained = lane.time.values[lane.loss.values < TRAINED]
        rows.append(
            {
                "schedule": row.schedule,
                "method": method,
                "t_off": row.t_off if np.isfinite(row.t_off) else None,
                "nuclear_norm": float(final.nuclear_norm),
                "rel_error": float(final.rel_error),
                "train_loss": float(final.loss),
                "time_to_train_loss": float(trained[0]) if trained.size else None,
                "paper_nuclear_norm": row.paper_nuclear_norm,
                "paper_time": row.paper_time,
                "status": _status(str(lane.status.values), method),
            }
        )
    return rows


def _status(status: str, method: str) -> str:
    unstable = status == "diverged" and method != "flow"
    return f"unstable at step {STEP}" if unstable else status


def verdicts(flow: xr.Dataset, baseline: xr.Dataset) -> list[str]:
    """What the run shows of the paper's claims, each measured."""
    switched = [index for index, row in enumerate(ROWS) if np.isfinite(row.t_off)]
    constant = next(index for index, row in enumerate(ROWS) if row.schedule == "constant 0.01")
    error = flow.rel_error.isel(time=-1)
    worst = float(error.isel(lane=switched).max())
    kept = float(error.isel(lane=constant))
    best = float(baseline.rel_error.isel(time=-1).min())
    return [
        f"switched-off decay recovers X*: largest relative error {worst:.1e} (claim: below 1e-4): {_verdict(worst < 1e-4)}",
        f"constant decay does not: relative error {kept:.3f} (about 0.07): {_verdict(kept > 0.01)}",
        f"linear X with L1 does not: smallest relative error {best:.3f}: {_verdict(best > 0.01)}",
    ]


def _verdict(shown: bool) -> str:
    return "shown" if shown else "NOT shown"


def _lines(dataset: xr.Dataset, variable: str, shown: Mapping[str, str], positive: bool = False) -> list[plot.Line]:
    """One curve for each named schedule; `positive` starts at the first save time after 0, for logarithmic axes."""
    lines = []
    for name, label in shown.items():
        lane = dataset.isel(lane=[row.schedule for row in ROWS].index(name))
        if positive:
            lane = lane.isel(time=slice(1, None))
        style = "--" if name in ("none", "constant 0.01") else "-"
        lines.append(plot.Line(lane.time.values, lane[variable].values, label, style))
    return lines


STRENGTHS = {
    "none": "no decay",
    "constant 0.01": "0.01, never off",
    "constant 0.02": "0.02, off at 625",
    "constant 0.2": "0.2, off at 62.5",
    "constant 2": "2, off at 6.25",
    "constant 20": "20, off at 0.625",
}
SHAPES = {
    "constant 0.01": "constant, never off",
    "constant 0.02": "constant, off at 625",
    "linear decay": "linear to 625",
    "cosine decay": "cosine to 625",
}
TIME = "time t (gradient flow)"


def recovery_figure(flow: xr.Dataset) -> Any:
    """Fig. 3: train loss and reconstruction error over time."""
    panels = [
        plot.Panel(_lines(flow, "loss", STRENGTHS), "Train loss", TIME, "f(X)", y_log=True),
        plot.Panel(
            _lines(flow, "rel_error", STRENGTHS), "Reconstruction error", TIME, r"$|X - X^*|_F\ /\ |X^*|_F$", y_log=True
        ),
    ]
    return plot.line_panels(panels, "Switching weight decay off recovers the low-rank matrix", "strength of decay")


def nuclear_norm_figure(flow: xr.Dataset) -> Any:
    """Fig. 5: nuclear norm over time; the planted matrix has 1."""
    lines = _lines(flow, "nuclear_norm", STRENGTHS, positive=True)
    panel = plot.Panel(
        lines, "Dashed line: the planted matrix", TIME, "nuclear norm of X", x_log=True, y_log=True, level=1.0
    )
    return plot.line_panels([panel], "Nuclear norm during and after decay", "strength of decay")


def schedules_figure(flow: xr.Dataset) -> Any:
    """Fig. 6: schedules of one total: what they spend over time, and what they recover."""
    panels = [
        plot.Panel(_lines(flow, "a", SHAPES), "Regularization spent", TIME, r"$a_t = -\int_0^t \alpha$"),
        plot.Panel(
            _lines(flow, "rel_error", SHAPES), "Reconstruction error", TIME, r"$|X - X^*|_F\ /\ |X^*|_F$", y_log=True
        ),
    ]
    return plot.line_panels(panels, "Schedules that spend the same total of 12.5", "schedule")


def late_recovery_figure(flow: xr.Dataset) -> Any:
    """Fig. 7: on logarithmic time, the error drops long after the decay was switched off."""
    shown = {name: STRENGTHS[name] for name in ("none", "constant 0.02", "constant 0.2", "constant 20")}
    panels = [
        plot.Panel(_lines(flow, "loss", shown, positive=True), "Train loss", TIME, "f(X)", x_log=True, y_log=True),
        plot.Panel(
            _lines(flow, "rel_error", shown, positive=True),
            "Reconstruction error",
            TIME,
            r"$|X - X^*|_F\ /\ |X^*|_F$",
            x_log=True,
            y_log=True,
            events=[625.0, 62.5, 0.625 if flow.time.values[1] < 0.625 else flow.time.values[1]],
        ),
    ]
    return plot.line_panels(panels, "Late recovery: the drop comes after the switch-off (dotted)", "strength of decay")


def heat_map_figure(heat: xr.Dataset) -> Any:
    """Strengths x switch-off times: the final reconstruction error."""
    return plot.heat_map(
        heat.rel_error.isel(time=-1).values,
        heat.alpha.values,
        heat.t_off.values,
        title=f"Reconstruction error at t = {HORIZON:g}",
        row_label=r"strength $\alpha$",
        column_label="switch-off time t_off",
        value_label=r"$|X - X^*|_F\ /\ |X^*|_F$",
    )
