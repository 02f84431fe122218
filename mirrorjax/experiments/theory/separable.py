"""Separable data (beyond the paper): the margin that the flow maximises, and its speed, after decay is switched off.

On linearly separable data the logistic loss has no minimum: x grows for ever, and training selects its direction. A
mirror flow whose dual variable can grow for ever tends to the max margin in the norm that its potential has at
infinity, the horizon function: L2 for x = w, L1 for x = m w. The limit does not depend on a, but the time to reach it
does. The gap closes like 1/log t for x = w. For x = m w the dual variable starts from 2|a| and then grows like log log
t / 2 only: without decay a large start keeps the L2 margin at every time up to 1e100, some decay turns it to L1, and
stronger decay freezes the coordinates that were picked first. For x = u^4 - v^4 the dual interval is finite: mu
converges to a value that depends on its whole past, and the direction is no max margin.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ... import plot
from ...dynamics import RKC
from ...geometry import legendre
from ...problem import (
    Compatible,
    Hadamard,
    Linear,
    Logistic,
    PowerDifference,
    Problem,
    SwitchOff,
    WeightDecay,
)
from ...runs.dataset import Dataset
from ...sweeps import sweep
from ..core.curves import settling_time, strength_lines
from ..core.experiment import Setting
from ..core.run import RunFolder
from .families import Family
from .max_margin import AbstractHorizon, Euclidean, Polyhedral, separable_horizon

OFF = 1.0
DECADES = 100  # the flow's steps grow with t, so that a decade costs a few whatever t is
TIMES = np.append(0.0, 10.0 ** np.linspace(-1, DECADES, 2 * (DECADES + 1) + 1))
SHOWN = {"share_8": 1e8, "share_30": 1e30, "share_100": 1e100}
REACHED = 0.9  # the share of the largest margin whose time is reported
PICKED = 1e-2  # |x_i| over the largest from which on a coordinate counts as picked


@dataclass(frozen=True)
class Size:
    """The size of a preset: n points in d dimensions, and the strengths of decay."""

    n: int
    d: int
    strengths: Float[np.ndarray, " strengths"]


SIZES = {
    "paper": Size(60, 30, np.array([0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0])),
    "quick": Size(40, 20, np.array([0.0, 0.5, 1.0, 2.0, 4.0, 8.0])),
}


def horizon(family: Family, d: int, a: float) -> AbstractHorizon:
    """The norm of R_a at infinity. x = w has R = |x - x_off|^2 / 2 once decay is off, whatever it was."""
    if isinstance(family.g, Linear):
        return Euclidean()
    return separable_horizon(legendre(family.g, family.h, family.weights(d)), a)


FAMILIES = (
    Family("linear", "x = w", Linear(), WeightDecay(), (0.5,)),
    Family("hadamard", "x = m w", Hadamard(), WeightDecay(), (10.0, 0.0)),
    # RKC: after strong decay few coordinates follow the data, and Tsit5, limited by stability, runs out of steps.
    Family("power_2", "x = u^4 - v^4", PowerDifference(2), Compatible(PowerDifference(2)), (1.0, 0.8), RKC()),
)


def make_objective(size: Size, seed: int) -> Logistic:
    """Normal points, labelled by the sign of x_1 - x_2 + x_3: separable, by a sparse direction among others."""
    Z = jax.random.normal(jax.random.key(seed), (size.n, size.d))
    return Logistic(Z, jnp.sign(Z[:, 0] - Z[:, 1] + Z[:, 2]))


def run(folder: RunFolder, setting: Setting) -> None:
    """Every family in turn, written as soon as it is solved; one figure and the claims at the end."""
    if setting.bits < 64:
        raise ValueError(f"separable follows the flow to t = 1e{DECADES}, past float32; leave out --float32")
    size = SIZES[setting.preset]
    objective = make_objective(size, setting.seed)
    B = np.asarray(objective.y[:, None] * objective.Z)
    rows: list[dict[str, Any]] = []
    solved = {}
    for family in FAMILIES:
        solved[family.name] = dataset = with_shares(family, B, solve(family, objective, size))
        folder.save_dataset(family.name, dataset)
        rows += table_rows(family, B, dataset)
        folder.save_table("separable", rows)
    folder.show(
        f"{size.n} separable points in {size.d} dimensions, decay off at t = {OFF:g}", rows, COLUMNS, "separable"
    )
    folder.console.print(NOTE, highlight=False, soft_wrap=True)
    folder.save_figure("separable", figure(solved, size), CAPTION)
    _claim(folder, solved, {family.name: [row for row in rows if row["family"] == family.title] for family in FAMILIES})


COLUMNS = {
    "family": "family",
    "a": "a",
    **{key: f"at t = {t:.0e}" for key, t in SHOWN.items()},
    "l2_share": "L2 share",
    "angle": "angle",
    "reached": f"{100 * REACHED:g} % at t",
    "picked": "picked",
    "picked_share": "their best",
}
CAPTION = (
    "The missing share of the largest margin in each norm, up to t = 1e100: each family approaches the margin of one "
    "norm, and decay that was switched off long before changes how closely."
)
NOTE = (
    "at t: the margin over the largest there is, in the norm of R_a at infinity; at the end: L2 share, the same in L2, "
    "and angle to the max-margin direction in degrees; picked: coordinates above "
    f"{PICKED:g} of the largest; their best: the share that x could have with those alone"
)


def solve(family: Family, objective: Logistic, size: Size) -> Dataset:
    """All strengths."""

    def lane(alpha):
        return Problem(family.g, family.h, SwitchOff(alpha, OFF), objective), family.weights(size.d)

    def metrics(t, x, w):
        return {"parameters": x}

    grid = {"alpha": size.strengths}
    return sweep(lane, grid, t1=TIMES[-1], saveat=TIMES, metrics=metrics, solver=family.solver)


def with_shares(family: Family, B: Float[np.ndarray, "n d"], dataset: Dataset) -> Dataset:
    """The dataset with `share`, the margin over the largest there is, in the family's own norm, and `l2_share`."""
    spent = dataset.a.values[:, -1]
    x = dataset.parameters.values
    own = [horizon(family, B.shape[1], a).share(B, lane) for a, lane in zip(spent, x, strict=True)]
    dims = ("alpha", "time")
    return dataset.assign(share=(dims, np.stack(own)), l2_share=(dims, Euclidean().share(B, x)))


def table_rows(family: Family, B: Float[np.ndarray, "n d"], dataset: Dataset) -> list[dict[str, Any]]:
    """One mapping a strength, with the columns of separable.csv."""
    rows = []
    for alpha in dataset.alpha.values:
        lane = dataset.sel(alpha=alpha)
        a, x = float(lane.a[-1]), lane.x.values
        norm = horizon(family, B.shape[1], a)
        best = norm.solve(B)
        cosine = best @ x / (np.linalg.norm(best) * np.linalg.norm(x))
        picked = np.abs(x) > PICKED * np.abs(x).max()
        rows.append(
            {
                "family": family.title,
                "a": a,
                **{key: float(lane.share.sel(time=t, method="nearest")) for key, t in SHOWN.items()},
                "l2_share": float(lane.l2_share[-1]),
                "angle": float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))),
                "reached": settling_time(lane.time.values, 1 - lane.share.values, 1 - REACHED),
                "picked": int(picked.sum()),
                "picked_share": _picked_share(norm, B, picked),
                "status": str(lane.status.values),
            }
        )
    return rows


def _picked_share(horizon: AbstractHorizon, B: Float[np.ndarray, "n d"], picked: np.ndarray) -> float:
    """The best share of an x with these coordinates alone; NaN in L2, and where they do not separate the points."""
    if not isinstance(horizon, Polyhedral):
        return float("nan")
    try:
        alone = horizon.within(picked).solve(B[:, picked])
    except ValueError:
        return float("nan")
    x = np.zeros(B.shape[1])
    x[picked] = alone
    return float(horizon.share(B, x))


def _claim(folder: RunFolder, solved: dict[str, Dataset], rows: dict[str, list[dict[str, Any]]]) -> None:
    """Records the statements of the theory on each family, beside the margins up to the last time."""
    ends = {name: [row["share_100"] for row in each] for name, each in rows.items()}
    linear = ends["linear"]
    folder.claim(
        "x = w tends to the L2 max margin after every decay",
        paper="L2 (Soudry et al. 2018)",
        ours=f"{min(linear):.4f} of it, the same within {max(linear) - min(linear):.1e}",
        holds=min(linear) > 0.99 and max(linear) - min(linear) < 1e-3,
        see=("separable",),
    )
    gap = 1 - solved["linear"].share.isel(alpha=0)
    scaled = [float(gap.sel(time=t, method="nearest")) * np.log(t) for t in (1e30, 1e100)]
    folder.claim(
        "the gap of x = w to the L2 max margin closes like 1/log t",
        paper="1/log t",
        ours=f"gap times log t: {scaled[0]:.3f} at 1e30, {scaled[1]:.3f} at 1e100",
        holds=bool(abs(scaled[1] / scaled[0] - 1) < 0.1),
        see=("separable",),
    )
    hadamard = rows["hadamard"]
    none, best, most = hadamard[0], max(hadamard, key=lambda row: row["share_100"]), hadamard[-1]
    folder.claim(
        "x = m w tends to the L1 max margin for every a",
        paper="L1 (Pesme et al. 2024)",
        ours=f"{min(ends['hadamard']):.3f} to {max(ends['hadamard']):.3f} of it at t = 1e100",
        holds=min(ends["hadamard"]) > 0.99,
        see=("separable",),
    )
    folder.claim(
        "x = m w from a large start without decay is L2-like at every time up to 1e100",
        paper="-",
        ours=f"at t = 1e100 {none['l2_share']:.3f} of the L2 margin, {none['share_100']:.3f} of the L1 margin",
        holds=none["l2_share"] > none["share_100"],
        see=("separable",),
    )
    folder.claim(
        "decay that is switched off at t = 1 turns x = m w to the L1 margin",
        paper="-",
        ours=f"a = {best['a']:g}: {best['share_100']:.3f} of the L1 margin, {best['l2_share']:.3f} of the L2 margin",
        holds=best["a"] < 0 and best["share_100"] > 0.98 and best["l2_share"] < best["share_100"],
        see=("separable",),
    )
    folder.claim(
        "stronger decay freezes the coordinates that x = m w picks first",
        paper="-",
        ours=f"a = {most['a']:g}: {most['share_100']:.3f}; those {most['picked']} allow {most['picked_share']:.3f}",
        holds=most["share_100"] < best["share_100"] - 0.05 and most["picked_share"] < best["picked_share"],
        see=("separable",),
    )
    before, after = (1 - solved["power_2"].share.sel(time=t, method="nearest").values for t in (1e50, 1e100))
    closed = np.max(1 - after / before)
    folder.claim(
        "x = u^4 - v^4, of finite dual interval, stops short of the max margin of its horizon function",
        paper="not covered",
        ours=f"{min(ends['power_2']):.3f} to {max(ends['power_2']):.3f} of it; at most {100 * closed:.1f} % of a gap "
        "closes from t = 1e50 to 1e100, where 1/log t closes half",
        holds=bool(closed < 0.1 and np.max(ends["power_2"]) < 0.99),
        see=("separable",),
    )


def figure(solved: dict[str, Dataset], size: Size) -> Any:
    """Draws the missing share of the largest margin over log time, by family and norm, for every a."""
    labels = [f"{0.0 - alpha * OFF:g}" for alpha in size.strengths]

    def panel(name: str, variable: str, title: str) -> plot.Panel:
        after = solved[name].sel(time=slice(10.0, None))
        lines = strength_lines(after.assign(gap=1 - after[variable]), "gap", size.strengths, labels)
        label = "1 - margin / largest margin"
        return plot.Panel(lines, title, "time t (gradient flow)", label, x_log=True, y_log=True, floor=2e-3)

    panels = [
        panel("linear", "share", "x = w: L2 margin"),
        panel("hadamard", "share", "x = m w: L1 margin"),
        panel("hadamard", "l2_share", "x = m w: L2 margin"),
        panel("power_2", "share", "x = u^4 - v^4: margin of its own norm"),
    ]
    title = f"Which margin the flow maximises on separable data (decay off at t = {OFF:g})"
    return plot.line_panels(panels, title, "spent, a")
