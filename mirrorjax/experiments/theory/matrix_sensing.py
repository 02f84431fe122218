"""Matrix sensing with X = U U^T (the paper's section 5, Figs. 3, 5, 6, 7, Table 2): switching weight decay off recovers
a low-rank matrix that constant decay cannot.

All schedules of the table spend the same total, int alpha dt = 12.5, so they end with the same R_a. The table is
computed twice, by the gradient flow and by gradient descent with the paper's step 0.25; rows where descent is unstable
say so. The baseline, a linear parameterization with an L1 regularizer, forgets its regularization once it is off.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ... import plot
from ...dynamics import Descent, ProximalDescent
from ...problem import L1, CosineDecay, Gram, Linear, LinearDecay, MatrixSensing, Problem, Sum, SwitchOff, WeightDecay
from ...runs import Zip
from ...runs.dataset import Dataset
from ...sweeps import sweep
from ..core.experiment import Setting
from ..core.run import RunFolder

TRAINED = 1e-10  # the loss that counts as trained; the paper's own threshold is not printed
TOTAL = 12.5
HORIZON = 1250.0
STEP = 0.25


@dataclass(frozen=True)
class Size:
    """The size of a preset: n x n matrices of rank r, m = 3 n r measurements, and points a side of the heat map."""

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


class Data(eqx.Module):
    """The planted matrix X* (n, n), of nuclear norm 1, and the objective that measures it."""

    target: Float[Array, "n n"]
    objective: MatrixSensing

    def metrics(self, t, x, w):
        """Nuclear norm (the trace, as X = U U^T is positive semidefinite) and relative error."""
        error = jnp.linalg.norm(x - self.target) / jnp.linalg.norm(self.target)
        return {"nuclear_norm": jnp.trace(x), "rel_error": error}

    def baseline_metrics(self, t, x, w):
        """The same for an X that is not positive semidefinite."""
        return self.metrics(t, x, w) | {"nuclear_norm": jnp.sum(jnp.linalg.svd(x, compute_uv=False))}

    def row(self, constant, linear, cosine, t_off):
        """The lane of one schedule of the table: X = U U^T from U = I."""
        schedule = _schedule(constant, linear, cosine, t_off)
        return Problem(Gram(), WeightDecay(), schedule, self.objective), jnp.eye(self.target.shape[0])

    def baseline(self, constant, linear, cosine, t_off):
        """Linear X with L1, from X = 0, where no decay gives the interpolator of least Frobenius norm: the fairest."""
        schedule = _schedule(constant, linear, cosine, t_off)
        return Problem(Linear(), L1(), schedule, self.objective), jnp.zeros_like(self.target)

    def point(self, alpha, t_off):
        """The lane of one point of the heat map."""
        return self.row(alpha, 0.0, 0.0, t_off)


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
    for name, draw, caption in FIGURES:
        folder.save_figure(name, draw(flow), caption)
    descent = _solve_rows(data, "descent")
    folder.save_dataset("descent", descent)
    rows = table_rows(flow, "flow") + table_rows(descent, "descent")
    folder.save_table("table2", rows)
    for method, title in (("flow", "gradient flow"), ("descent", f"gradient descent, step {STEP}")):
        chosen = [row for row in rows if row["method"] == method]
        folder.show(f"Table 2 by {title}; n = {size.n}, rank {size.r} (the paper: 50, 5)", chosen, COLUMNS, "table2")
    baseline = _solve_baseline(data)
    folder.save_dataset("baseline", baseline)
    baseline_rows = table_rows(baseline, "proximal descent")
    folder.save_table("baseline", baseline_rows)
    folder.show("Baseline: linear X with L1, by proximal descent", baseline_rows, BASELINE_COLUMNS, "baseline")
    heat = _solve_heat_map(data, size)
    folder.save_dataset("heat_map", heat)
    folder.save_figure("heat_map", heat_map_figure(heat), HEAT_CAPTION)
    seed_rows = _seed_rows([flow, *_other_seeds(size, setting.seed)])
    folder.save_table("seeds", seed_rows)
    folder.show(f"Error of X over {SEEDS} data seeds, by the flow", seed_rows, SEED_COLUMNS, "seeds")
    folder.console.print(f"trained: f < {TRAINED:g}; the paper's own threshold is not printed there")
    _claim(folder, flow, baseline)


SEEDS = 5

BASELINE_COLUMNS = {
    "schedule": "schedule",
    "t_off": "off at t",
    "nuclear_norm": "nuclear norm",
    "rel_error": "error of X",
    "train_loss": "loss",
}
COLUMNS = {
    "schedule": "schedule",
    "t_off": "off at t",
    "nuclear_norm": "nuclear norm",
    "paper_nuclear_norm": "paper",
    "rel_error": "error of X",
    "time_to_train_loss": "trained at t",
    "paper_time": "paper",
    "status": "status",
}


SEED_COLUMNS = {
    "schedule": "schedule",
    "median_rel_error": "median",
    "smallest_rel_error": "smallest",
    "largest_rel_error": "largest",
    "mean_nuclear_norm": "nuclear norm",
    "std_nuclear_norm": "std",
}


def _row_grid() -> Zip:
    names = ("constant", "linear", "cosine", "t_off")
    return Zip(**{name: np.array([getattr(row, name) for row in ROWS]) for name in names})


def _schedule(constant: Any, linear: Any, cosine: Any, t_off: Any) -> Sum:
    return Sum(SwitchOff(constant, t_off), LinearDecay(linear, t_off), CosineDecay(cosine, t_off))


def _label(dataset: Dataset) -> Dataset:
    return dataset.assign_coords(schedule=("lane", [row.schedule for row in ROWS]))


def _solve_rows(data: Data, method: str) -> Dataset:
    flow = None if method == "flow" else Descent(optax.sgd(1.0), STEP)
    ts = np.union1d(np.geomspace(0.05, 1.0, 20), np.linspace(0.0, HORIZON, 1251))  # early decays last 0.6
    return _label(sweep(data.row, _row_grid(), t1=HORIZON, saveat=ts, metrics=data.metrics, flow=flow))


def _other_seeds(size: Size, seed: int) -> list[Dataset]:
    """All rows for the data seeds 0, 1, .. other than this one, by the program that solved this one."""
    others = [other for other in range(SEEDS + 1) if other != seed][: SEEDS - 1]
    return [_solve_rows(make_data(size, other), "flow") for other in others]


def _seed_rows(datasets: list[Dataset]) -> list[dict[str, Any]]:
    """Spread of the final error and nuclear norm over data seeds, one mapping a schedule."""
    errors = np.stack([dataset.rel_error.isel(time=-1).values for dataset in datasets])
    norms = np.stack([dataset.nuclear_norm.isel(time=-1).values for dataset in datasets])
    return [
        {
            "schedule": row.schedule,
            "median_rel_error": float(np.median(errors[:, index])),
            "smallest_rel_error": float(errors[:, index].min()),
            "largest_rel_error": float(errors[:, index].max()),
            "mean_nuclear_norm": float(norms[:, index].mean()),
            "std_nuclear_norm": float(norms[:, index].std(ddof=1)),
        }
        for index, row in enumerate(ROWS)
    ]


def _solve_baseline(data: Data) -> Dataset:
    ts = np.linspace(0.0, HORIZON, 51)
    flow = ProximalDescent(STEP)
    return _label(sweep(data.baseline, _row_grid(), t1=HORIZON, saveat=ts, metrics=data.baseline_metrics, flow=flow))


def _solve_heat_map(data: Data, size: Size) -> Dataset:
    grid = {"alpha": np.geomspace(0.01, 20.0, size.heat), "t_off": np.geomspace(0.5, 1000.0, size.heat)}
    return sweep(data.point, grid, t1=HORIZON, metrics=data.metrics)


def table_rows(dataset: Dataset, method: str) -> list[dict[str, Any]]:
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
    return "unstable" if unstable else "ok" if status == "successful" else status


def _claim(folder: RunFolder, flow: Dataset, baseline: Dataset) -> None:
    """Records the paper's claims beside the measured errors."""
    switched = [index for index, row in enumerate(ROWS) if np.isfinite(row.t_off)]
    constant = next(index for index, row in enumerate(ROWS) if row.schedule == "constant 0.01")
    error = flow.rel_error.isel(time=-1)
    worst = float(error.isel(lane=switched).max())
    kept = float(error.isel(lane=constant))
    best = float(baseline.rel_error.isel(time=-1).min())
    folder.claim("decay that is switched off recovers X*", paper="below 1e-4", ours=f"{worst:.1e}", holds=worst < 1e-4)
    folder.claim("constant decay does not recover X*", paper="about 0.07", ours=f"{kept:.3f}", holds=kept > 0.01)
    folder.claim("linear X with L1 does not recover X*", paper="-", ours=f"{best:.3f} at its best", holds=best > 0.01)


def _lines(dataset: Dataset, variable: str, shown: Mapping[str, str], positive: bool = False) -> list[plot.Line]:
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
ERROR_LABEL = r"$|X - X^*|_F\ /\ |X^*|_F$"
LOSS_FLOOR, ERROR_FLOOR = 1e-11, 3e-6  # just above what the solver's tolerance leaves, for every preset


def _error_panel(flow: Dataset, shown: Mapping[str, str]) -> plot.Panel:
    lines = _lines(flow, "rel_error", shown)
    return plot.Panel(lines, "Reconstruction error", TIME, ERROR_LABEL, y_log=True, floor=ERROR_FLOOR)


def recovery_figure(flow: Dataset) -> Any:
    """Fig. 3: train loss and reconstruction error over time."""
    panels = [
        plot.Panel(_lines(flow, "loss", STRENGTHS), "Train loss", TIME, "f(X)", y_log=True, floor=LOSS_FLOOR),
        _error_panel(flow, STRENGTHS),
    ]
    return plot.line_panels(panels, "Switching weight decay off recovers the low-rank matrix", "strength of decay")


def nuclear_norm_figure(flow: Dataset) -> Any:
    """Fig. 5: nuclear norm over time; the planted matrix has 1."""
    lines = _lines(flow, "nuclear_norm", STRENGTHS, positive=True)
    panel = plot.Panel(
        lines, "Dashed line: the planted matrix", TIME, "nuclear norm of X", x_log=True, y_log=True, level=1.0
    )
    return plot.line_panels([panel], "Nuclear norm during and after decay", "strength of decay")


def schedules_figure(flow: Dataset) -> Any:
    """Fig. 6: schedules of one total: what they spend over time, and what they recover."""
    panels = [
        plot.Panel(_lines(flow, "a", SHAPES), "Regularization spent", TIME, r"$a_t = -\int_0^t \alpha$"),
        _error_panel(flow, SHAPES),
    ]
    return plot.line_panels(panels, "Schedules that spend the same total of 12.5", "schedule")


def late_recovery_figure(flow: Dataset) -> Any:
    """Fig. 7: on logarithmic time, the error drops long after the decay was switched off."""
    shown = {name: STRENGTHS[name] for name in ("none", "constant 0.02", "constant 0.2", "constant 20")}
    loss, error = (_lines(flow, name, shown, positive=True) for name in ("loss", "rel_error"))
    style: dict[str, Any] = {"x_log": True, "y_log": True, "events": [625.0, 62.5, 0.625]}
    panels = [
        plot.Panel(loss, "Train loss", TIME, "f(X)", floor=LOSS_FLOOR, **style),
        plot.Panel(error, "Reconstruction error", TIME, ERROR_LABEL, floor=ERROR_FLOOR, **style),
    ]
    return plot.line_panels(panels, "Late recovery: the drop comes after the switch-off (dotted)", "strength of decay")


def heat_map_figure(heat: Dataset) -> Any:
    """Strengths x switch-off times: the final reconstruction error."""
    return plot.heat_map(
        heat.rel_error.isel(time=-1).values,
        heat.alpha.values,
        heat.t_off.values,
        title=f"Reconstruction error at t = {HORIZON:g}",
        row_label=r"strength $\alpha$",
        column_label="switch-off time t_off",
        value_label=ERROR_LABEL,
        floor=ERROR_FLOOR / 10,
        contour=plot.Line(heat.t_off.values, TOTAL / heat.t_off.values, f"total decay {TOTAL:g}", "--"),
    )


HEAT_CAPTION = "The total spent, strength times time, is constant along the dashed line."
FIGURES = (
    (
        "fig3_recovery",
        recovery_figure,
        "Fig. 3. To look for: the error falls where decay was switched off, and only there.",
    ),
    ("fig5_nuclear_norm", nuclear_norm_figure, "Fig. 5. To look for: on which side of the planted norm each ends."),
    (
        "fig6_schedules",
        schedules_figure,
        "Fig. 6. To look for: one total in several shapes ends at one matrix, once off.",
    ),
    (
        "fig7_late_recovery",
        late_recovery_figure,
        "Fig. 7. To look for: how long after each switch-off the error falls.",
    ),
)
