"""Convergence after switch-off (Theorem 3.10): the rate of the loss by family and regularization spent.

A commuting pair with h >= 0 whose decay is switched off converges, and the theory gives three facts on the rate. With
x* the limit and D_a the Bregman divergence of R_a, the loss of a convex f obeys `f(x_t) - f* <= D_a(x*, x_off) / (t -
t_off)`. For least squares `df/dt <= -2 lambda_t f`, lambda_t the smallest eigenvalue of `Z J J^T Z^T / n`, so f falls
at least like e^{-2 lambda t} with the smallest lambda_t along the flow. In the end f falls at exactly twice the lambda
of x*. So a enters through the metric J J^T, which decay shrinks in some families and enlarges in others.

The tables also hold pairs outside the theorem, with the condition they fail. One is x = log u - log v: it commutes and
contracts, but its R_a is no Bregman function, since D_a(x, y) stays bounded as y grows (Definition 3.7 (ii)). The
theorem is silent on it, and its flow converges nevertheless.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ... import plot
from ...geometry import Report, check, legendre
from ...problem import (
    AbstractRegularizer,
    AbstractReparameterization,
    Compatible,
    ExpDifference,
    Hadamard,
    LeastSquares,
    LogDifference,
    PowerDifference,
    Problem,
    Square,
    SwitchOff,
    WeightDecay,
)
from ...problem.reparam import Weights
from ...runs.dataset import Dataset
from ...sweeps import sweep
from ..core.curves import strength_lines
from ..core.experiment import Setting
from ..core.run import RunFolder
from .families import Family

TARGET = (1.0, 0.6, 0.3, 0.2, 0.1, 0.05, 0.05, 0.05)  # positive, as x = w^2 is
MEASUREMENTS = 4
OFF, HORIZON = 1.0, 401.0
TIMES = np.concatenate([np.linspace(0.0, OFF, 11), OFF + np.geomspace(0.01, HORIZON - OFF, 500)])
STRENGTHS = np.array([0.0, 0.05, 0.1, 0.2, 0.35, 0.5])
WINDOW = 1e-12, 1e-6  # the shares of the initial loss between which the final rate is measured
READ = (0.5, OFF, 2.0, 10.0)  # times at which the mirror map is compared with -int grad f: with decay on, and off
CONVERGED = 1e-12  # the share of the initial loss below which a lane counts as converged
AGREE = 1e-5  # what the tolerance of the flow leaves of an identity between mirror maps, which are steep near x = 0
RTOL = 1e-8  # so that the loss stays exponential through the window


class Case(eqx.Module):
    """A pair from one start, measured by Z: the lane of one strength, and what is saved over it."""

    g: AbstractReparameterization
    h: AbstractRegularizer
    start: Weights
    objective: LeastSquares

    def lane(self, alpha):
        return Problem(self.g, self.h, SwitchOff(alpha, OFF), self.objective), self.start

    def metrics(self, t, x, w):
        """x; `rate`, twice the smallest eigenvalue of `Z J J^T Z^T / n`; and h."""
        Z = self.objective.Z
        eigenvalues = jnp.linalg.eigvalsh(jax.vmap(lambda row: self.g.push(w, row))(Z) @ Z.T / len(Z))
        return {"parameters": x, "rate": 2 * eigenvalues[0], "penalty": self.h(w)}


def _compatible(name: str, title: str, g: AbstractReparameterization, *start: float) -> Family:
    return Family(name, title, g, Compatible(g), start)


INSIDE = (
    _compatible("hadamard", "x = m w", Hadamard(), 1.0, 0.3),
    _compatible("power_2", "x = u^4 - v^4", PowerDifference(2), 0.9, 0.8),
    _compatible("square", "x = w^2", Square(), 0.7),
    _compatible("square_difference", "x = u^2 - v^2", PowerDifference(), 0.8, 0.7),
    _compatible("power_3", "x = u^6 - v^6", PowerDifference(3), 0.9, 0.8),
    _compatible("exp", "x = e^u - e^v", ExpDifference(), 0.2, 0.0),
)
OUTSIDE = (
    _compatible("log", "x = log u - log v", LogDifference(), 2.0, 2.0),
    _compatible("log_small", "x = log u - log v from 0.5", LogDifference(), 0.5, 0.5),
    Family("depth_3", "x = m w v", Hadamard(3), WeightDecay(), (1.0, 1.0, 0.3)),
)
FAMILIES = {"paper": len(INSIDE), "quick": 1}


def make_objective(seed: int) -> LeastSquares:
    """`Z ~ N(0,1)^{4 x 8}` and the measurements of `TARGET`, which every family here can fit."""
    Z = jax.random.normal(jax.random.key(seed), (MEASUREMENTS, len(TARGET)))
    return LeastSquares(Z, Z @ jnp.asarray(TARGET, Z.dtype))


def run(folder: RunFolder, setting: Setting) -> None:
    """Every family in turn, written as soon as it is solved; then those outside the theorem; figures and claims."""
    if setting.bits < 64:
        raise ValueError(f"convergence follows losses down to {WINDOW[0]:g} of their start; leave out --float32")
    objective = make_objective(setting.seed)
    rows: dict[str, list[dict[str, Any]]] = {}
    solved = {}
    for family in (*INSIDE[: FAMILIES[setting.preset]], *OUTSIDE):
        case = Case(family.g, family.h, family.weights(len(TARGET)), objective)
        report = check(case.g, case.h, case.start)
        solved[family.name] = dataset = solve(case)
        folder.save_dataset(family.name, dataset)
        rows[family.name] = table_rows(family, case, report, dataset)
        folder.save_table("convergence", [row for each in rows.values() for row in each])
    outside = [row for family in OUTSIDE for row in rows.pop(family.name)]
    inside = [row for each in rows.values() for row in each]
    folder.show("Inside Theorem 3.10: rate of the loss after switch-off", inside, COLUMNS, "convergence")
    folder.show("Outside Theorem 3.10: the theorem promises nothing", outside, OUTSIDE_COLUMNS, "convergence")
    folder.save_figure("rates", rates_figure(rows), RATES_CAPTION)
    for name in rows:
        folder.save_figure(f"loss_{name}", loss_figure(rows[name], solved[name]), LOSS_CAPTION)
    _claim(folder, inside, outside, [f"loss_{name}" for name in rows])


COLUMNS = {
    "family": "family",
    "a": "a",
    "rate": "rate",
    "rate_limit": "at x*",
    "rate_bound": "at least",
    "bregman_share": "f (t - t_off) / D",
    "loss": "f / f at the start",
    "status": "status",
}
OUTSIDE_COLUMNS = {
    "family": "family",
    "commuting": "commuting",
    "contracting": "contracting",
    "bregman": "Bregman",
    "a": "a",
    "lowest_h": "lowest h",
    "rate": "rate",
    "loss": "f / f at the start",
    "status": "status",
}


def solve(case: Case) -> Dataset:
    """All strengths, on times that are logarithmic from the switch-off on."""
    return sweep(case.lane, {"alpha": STRENGTHS}, t1=HORIZON, saveat=TIMES, metrics=case.metrics, rtol=RTOL)


def table_rows(family: Family, case: Case, report: Report, dataset: Dataset) -> list[dict[str, Any]]:
    """One mapping a strength, with the columns of convergence.csv; what does not exist there is missing."""
    divergences, outside = _by_theory(case, report, dataset)
    after = TIMES >= OFF
    rows = []
    for index, alpha in enumerate(STRENGTHS):
        lane = dataset.isel(alpha=index)
        loss = lane.loss.values[after]
        elapsed = TIMES[after] - OFF
        rows.append(
            {
                "family": family.title,
                "alpha": float(alpha),
                "a": float(lane.a[-1]),
                "rate": final_rate(elapsed, loss / float(lane.loss[0])),
                "rate_limit": float(lane.rate[-1]),
                "rate_bound": float(np.min(lane.rate.values[after])),
                "divergence": divergences[index],
                "outside_on_the_way": float(np.max(outside[index, :-1])),
                "outside_at_end": float(outside[index, -1]),
                "bregman_share": float(np.max(loss * elapsed)) / divergences[index],
                "loss": float(loss[-1] / lane.loss[0]),
                "lowest_h": float(np.nanmin(lane.penalty.values[~after])),
                "commuting": "yes" if report.theorem_3_6 else "no",
                "contracting": "yes" if report.contracting else "no",
                "bregman": "yes" if report.bregman else "no" if report.bregman is False else "not known",
                "theorem_3_10": "yes" if report.theorem_3_10 else "no",
                "status": "ok" if lane.status == "successful" else str(lane.status.values),
            }
        )
    return rows


def final_rate(ts: Float[np.ndarray, " time"], shares: Float[np.ndarray, " time"]) -> float:
    """`-d log f / dt`, by least squares where f is between `WINDOW` shares of its start; NaN for fewer than 3 times."""
    inside = (shares > WINDOW[0]) & (shares < WINDOW[1])
    if inside.sum() < 3:
        return float("nan")
    return float(-np.polyfit(ts[inside], np.log(shares[inside]), 1)[0])


def _by_theory(
    case: Case, report: Report, dataset: Dataset
) -> tuple[Float[np.ndarray, " strengths"], Float[np.ndarray, "strengths times"]]:
    """`D_a(x*, x_off)` of each strength, x* the end of the flow, and the share of grad R_a(x) outside range(Z^T).

    The share is read at `READ` and at the end. All are NaN for pairs that do not commute or contract.
    """
    if not (report.theorem_3_6 and report.contracting):
        return np.full(len(STRENGTHS), np.nan), np.full((len(STRENGTHS), len(READ) + 1), np.nan)
    R = legendre(case.g, case.h, case.start)
    basis = jnp.linalg.qr(case.objective.Z.T)[0]

    def outside(x, a):
        mu = R.dual(x, a).value
        return jnp.linalg.norm(mu - basis @ (basis.T @ mu)) / jnp.linalg.norm(mu)

    @jax.jit
    @jax.vmap
    def lane(x, off, points, a):
        return R.bregman(x, off, a[-1]), jax.vmap(outside)(points, a)

    read = dataset.sel(time=[*READ, HORIZON], method="nearest")
    arrays = dataset.x, dataset.parameters.sel(time=OFF), read.parameters, read.a
    divergences, shares = lane(*(jnp.asarray(each.values) for each in arrays))
    return np.asarray(divergences), np.asarray(shares)


# Key, column, statement and theorem of the claims that grad R_a(x) lies in range(Z^T).
IDENTITIES = (
    (
        "mirror-flow",
        "outside_on_the_way",
        "grad R_a(x_t) = -int grad f dt: it stays in range(Z^T), with decay on and off",
        "Theorem 3.6",
    ),
    (
        "optimality",
        "outside_at_end",
        "the limit minimises R_a among all x that fit the data: grad R_a(x) is in range(Z^T)",
        "Theorem 3.11",
    ),
)


def _claim(folder: RunFolder, inside: list[dict[str, Any]], outside: list[dict[str, Any]], losses: list[str]) -> None:
    """Compares the statements of the theorem with the measurements over all families and strengths.

    **Arguments:** `losses`: the figures of the loss.
    """
    for key, column, statement, where in IDENTITIES:
        largest = np.max([row[column] for row in inside])
        folder.claim(
            statement,
            key=key,
            paper=where,
            ours=f"a share of {largest:.1e} lies outside, over {len(inside)} lanes",
            holds=bool(largest < AGREE),
            see=("convergence",),
        )
    worst = np.max([row["loss"] for row in inside])
    folder.claim(
        "every pair that meets the conditions of Theorem 3.10 converges after switch-off",
        key="converges",
        paper="Theorem 3.10",
        ours=f"f falls to {worst:.1e} of its start or below, over {len(inside)} lanes",
        holds=bool(worst < CONVERGED) and all(row["status"] == "ok" for row in inside),
        see=("convergence", *losses),
    )
    share = np.max([row["bregman_share"] for row in inside])
    folder.claim(
        "the loss obeys f <= D_a(x*, x_off) / (t - t_off) at every saved time",
        key="bregman-bound",
        paper="at most 1",
        ours=f"f is at most {share:.3f} times the bound",
        holds=bool(share <= 1),
        see=("convergence", *losses),
    )
    margin = np.min([row["rate"] / row["rate_bound"] for row in inside])
    folder.claim(
        "the loss falls at least at the smallest rate that the metric J J^T allows along the flow",
        key="linear-rate",
        paper="at least 1",
        ours=f"at {margin:.3f} times that rate or faster",
        holds=bool(margin >= 0.99),  # the fit over a finite window is that good
        see=("rates", "convergence"),
    )
    off = np.max([abs(row["rate"] / row["rate_limit"] - 1) for row in inside])
    folder.claim(
        "the final rate of the loss is the rate of the metric at x* = argmin R_a",
        key="final-rate",
        paper="equal",
        ours=f"within {100 * off:.2g} %",
        holds=bool(off < 0.02),
        see=("rates", "convergence"),
    )
    _claim_conditions(folder, outside)


def _claim_conditions(folder: RunFolder, outside: list[dict[str, Any]]) -> None:
    """Claims what holds, or need not, outside the conditions of the theorem."""
    kept = [row["family"] for row in outside if row["theorem_3_10"] == "yes"]
    folder.claim(
        "check refuses every pair outside the theorem: h < 0, not commuting, or R_a no Bregman function",
        key="conditions-decide",
        paper="outside",
        ours=f"check passes {len(kept)} of {len({row['family'] for row in outside})} such pairs",
        holds=not kept,
        see=("convergence",),
    )
    _claim_logarithms(folder, [row for row in outside if row["family"] == "x = log u - log v"])
    ended = [row for row in outside if row["status"] != "ok"]
    folder.claim(
        "the flow of a pair outside the theorem may end before the switch-off",
        paper="no promise",
        ours=", ".join(f"{row['family']} at alpha = {row['alpha']:g}" for row in ended) or "no flow does",
        holds=bool(ended),
        see=("convergence",),
    )


FAR = np.array([5.0, 10.0, 15.0])


def _claim_logarithms(folder: RunFolder, rows: list[dict[str, Any]]) -> None:
    """States which condition x = log u - log v fails, and what happens all the same; `rows` are those of its lanes."""
    values = {}
    for family in (INSIDE[0], OUTSIDE[0]):
        R = legendre(family.g, family.h, family.weights(1))
        away = jax.jit(jax.vmap(lambda y, R=R: R.bregman(jnp.ones(1), y, 0.0)))
        values[family.title] = np.asarray(away(jnp.asarray(FAR)[:, None]))
    bounded, growing = values[OUTSIDE[0].title], values[INSIDE[0].title]
    folder.claim(
        "x = log u - log v fails Definition 3.7 (ii): D(1, y) stays bounded as y grows, where that of x = m w grows",
        key="log-no-bregman",
        paper="a condition of Theorem 3.10",
        ours=f"D(1, y) tends to {bounded[-1]:.4f}; x = m w: {growing[0]:.2g} to {growing[-1]:.2g}",
        holds=bool(abs(bounded[-1] - bounded[-2]) < 1e-6 and np.all(np.diff(growing) > 0.1)),
    )
    worst, share = (np.max([row[key] for row in rows]) for key in ("loss", "bregman_share"))
    folder.claim(
        "x = log u - log v converges after switch-off although Theorem 3.10 does not cover it",
        key="log-converges",
        paper="no promise",
        ours=f"f falls to {worst:.1e} of its start or below, and is at most {share:.3f} times D / (t - t_off)",
        holds=bool(worst < CONVERGED and share <= 1),
        see=("convergence",),
    )


RATES_CAPTION = (
    "Left: the measured final rates of the loss (dots) lie on the rates of the metric at the limit (lines). Right: the "
    "guaranteed rate is below the measured rate where the value is below 1."
)
LOSS_CAPTION = "The loss after the switch-off, beside its two upper bounds."
COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink")


def rates_figure(rows: dict[str, list[dict[str, Any]]]) -> Any:
    """Against the regularization spent: the final rate with that of the metric at x*, and the share the bound has."""
    rates, shares = [], []
    for color, family in zip(COLORS, rows.values(), strict=False):
        spent, rate, limit, bound = (
            np.array([row[key] for row in family], float) for key in ("a", "rate", "rate_limit", "rate_bound")
        )
        rates += [
            plot.Line(-spent, limit, family[0]["family"], "-", color),
            plot.Line(-spent, rate, "", "o", color),
        ]
        shares.append(plot.Line(-spent, bound / rate, "", "o-", color))
    label = "regularization spent, -a"
    panels = [
        plot.Panel(rates, "Dots: measured; lines: metric at x*", label, "final rate of f, 1 / time", y_log=True),
        plot.Panel(shares, "Rate guaranteed along the flow", label, "guaranteed / measured rate", level=1.0),
    ]
    return plot.line_panels(panels, "Convergence after switch-off", "family")


def loss_figure(rows: list[dict[str, Any]], dataset: Dataset) -> Any:
    """The loss after the switch-off, with both bounds, of the weakest and the strongest decay."""
    after = dataset.isel(time=slice(int(np.searchsorted(TIMES, OFF)) + 1, None))
    after = after.assign_coords(time=after.time - OFF)
    panels = []
    for index in (0, len(STRENGTHS) - 1):
        row, ts = rows[index], after.time.values
        start = float(dataset.loss.isel(alpha=index).sel(time=OFF))
        lines = [
            strength_lines(after, "loss", STRENGTHS[[index]], ["f(x)"])[0],
            plot.Line(ts, start * np.exp(-row["rate_bound"] * ts), "smallest rate on the way", "--", "tab:orange"),
            plot.Line(ts, row["divergence"] / ts, r"$D_a(x^*, x_{off})\ /\ (t - t_{off})$", ":", "0.3"),
        ]
        time = "time since switch-off"
        panels.append(plot.Panel(lines, f"a = {row['a']:g}", time, "f(x)", x_log=True, y_log=True, floor=1e-14))
    return plot.line_panels(panels, f"Loss after switch-off: {rows[0]['family']}")
