"""Matrix sensing with X = U U^T (the paper's section 5, Figs. 3, 5, 6, 7, Table 2): switching weight decay off recovers
a low-rank matrix that constant decay cannot.

All schedules of the table spend the same total, int alpha dt = 12.5, so they end with the same R_a. The table is
computed twice, by the gradient flow and by gradient descent with the paper's step 0.25; rows where descent is unstable
say so. The baseline, a linear parameterization with an L1 regularizer, forgets its regularization once it is off.
"""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ...dynamics import Descent, ProximalDescent
from ...problem import L1, CosineDecay, Gram, Linear, LinearDecay, MatrixSensing, Problem, Sum, SwitchOff, WeightDecay
from ...runs import Zip
from ...runs.dataset import Dataset
from ...sweeps import sweep
from ..core.experiment import Setting
from ..core.run import RunFolder
from .sensing_claims import claim_constant, claim_late_drop, claim_norms_and_losses, claim_recovery, claim_table
from .sensing_figures import HEAT, heat_map_figure, save_figures
from .sensing_steps import explain_norms, explain_times

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
    save_figures(folder, flow, baseline)
    folder.show("Baseline: linear X with L1, by proximal descent", baseline_rows, BASELINE_COLUMNS, "baseline")
    heat = _solve_heat_map(data, size)
    folder.save_dataset("heat_map", heat)
    folder.save_figure("heat_map", heat_map_figure(heat, TOTAL), HEAT)
    seed_rows = _seed_rows([flow, *_other_seeds(size, setting.seed)])
    folder.save_table("seeds", seed_rows)
    folder.show(f"Error of X over {SEEDS} data seeds, by the flow", seed_rows, SEED_COLUMNS, "seeds")
    folder.console.print(f"trained: f < {TRAINED:g}; the paper's own threshold is not printed there")
    claim_recovery(folder, flow, baseline)
    claim_norms_and_losses(folder, flow)
    claim_late_drop(folder, flow)
    if size == SIZES["paper"]:  # another size has other numbers, and its data may determine X without any decay
        claim_constant(folder, flow)
        claim_table(folder, rows)
        explain_times(folder, data.objective, TOTAL, TRAINED)
        explain_norms(folder, data.objective, STEP, HORIZON)


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
