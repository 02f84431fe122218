"""The geometry of each family (the paper's Figs. 1, 2, 6, 10, 12): R_a as decay is spent, and its three effects.

For every family one picture: R_a in closed form with the numeric recovery on top, the type of bias (local exponent),
the positional bias (argmin R_a) and the range (dual interval and metric), each as a function of the regularization
spent. The table holds the largest difference between the two paths beside the effects.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ... import plot
from ...geometry import AbstractLegendre, legendre
from ...geometry.effects import Effects, effects
from ...problem import (
    AbstractReparameterization,
    Compatible,
    ExpDifference,
    Hadamard,
    LogDifference,
    PowerDifference,
    Square,
)
from ...results import status_name
from ..core.experiment import Setting
from ..core.run import RunFolder


@dataclass(frozen=True)
class Case:
    """One family from one start: its name, the picture's title, weights of one coordinate, strengths, reach in x."""

    name: str
    title: str
    g: AbstractReparameterization
    start: tuple[float, ...]
    spent: tuple[float, ...]
    reach: float = 2.0

    def weights(self) -> Any:
        factors = tuple(jnp.asarray([value], float) for value in self.start)
        return factors[0] if len(factors) == 1 else factors


SPENT = (0.0, -0.1, -0.3, -1.0, -3.0)
CASES = (
    Case("hadamard", "x = m w from m = 1, w = 0", Hadamard(), (1.0, 0.0), SPENT),
    Case("unbalanced", "x = m w from m = 1, w = 0.5", Hadamard(), (1.0, 0.5), SPENT),
    Case("square", "x = w^2 from w = 1", Square(), (1.0,), (0.0, -0.1, -0.3, -0.6, -1.0)),
    Case("power_2", "x = u^4 - v^4 from u = 1, v = 0.9", PowerDifference(2), (1.0, 0.9), SPENT),
    Case("power_3", "x = u^6 - v^6 from u = 1, v = 0.9", PowerDifference(3), (1.0, 0.9), SPENT),
    Case(
        "log",
        "x = log u - log v from u = 1.2, v = 1",
        LogDifference(),
        (1.2, 1.0),
        (0.0, -0.1, -0.2, -0.35, -0.45, -0.6),
    ),
    Case("exp", "x = e^u - e^v from u = 0.2, v = 0", ExpDifference(), (0.2, 0.0), SPENT),
)
FINE = {"paper": 241, "quick": 121}  # points of a curve in closed form
EVERY = 20  # of them the numeric recovery is drawn at one in so many
SHAPE_LABEL = r"$R_a(x) - \min R_a$, scaled to 1"
SCALE = 1.0  # the distance from the minimum at which the local exponent is read


def run(folder: RunFolder, setting: Setting) -> None:
    """Every family in turn: its picture as soon as it is drawn, and the table at the end."""
    rows = []
    for case in CASES:
        closed, numeric = (
            legendre(case.g, Compatible(case.g), case.weights(), method=method) for method in ("closed_form", "numeric")
        )
        x = np.linspace(-case.reach, case.reach, FINE[setting.preset])
        exact = {a: curve(closed, x, a) for a in case.spent}
        recovered = {a: curve(numeric, x[::EVERY], a) for a in case.spent}
        measured, drawn = _both(closed, case.spent)
        rows += _rows(case, measured, [_difference(exact[a], recovered[a]) for a in case.spent])
        folder.save_figure(f"geometry_{case.name}", figure(case, exact, recovered, measured, drawn), CAPTION)
        folder.save_table("geometry", rows)
    folder.show("R_a by family; |diff|: mirror map, numeric against closed form", rows, COLUMNS, "geometry")
    worst = max(row["numeric_difference"] for row in rows if row["status"] == "ok")
    bound = 1e-9 if setting.bits == 64 else 1e-4
    folder.claim(
        "the numeric recovery of x equals the closed form",
        paper=f"within {bound:g}",
        ours=f"{worst:.1e}",
        holds=worst < bound,
    )


COLUMNS = {
    "family": "family",
    "a": "a",
    "argmin": "argmin",
    "local_exponent": "exponent",
    "dual_lower": "mu from",
    "dual_upper": "to",
    "numeric_difference": "|diff|",
    "status": "status",
}


CAPTION = (
    "R_a of one coordinate as decay is spent, each scaled to its largest value shown; dots mark the minimum, "
    "crosses the recovery from g and h alone. Then the three effects of spending it: type of bias (2 is L2-like, "
    "1 is L1-like), positional bias, and range."
)


def _both(R: AbstractLegendre, spent: tuple[float, ...]) -> tuple[Effects, Effects]:
    """The effects at the strengths of the table, and at those of a curve up to the last of them, by one program."""
    fine = np.linspace(0.0, min(spent), 41)
    together = effects(R, jnp.asarray(np.append(spent, fine)), SCALE)
    count = len(spent)
    return jax.tree.map(lambda leaf: leaf[:count], together), jax.tree.map(lambda leaf: leaf[count:], together)


def _rows(case: Case, measured: Effects, differences: list[float]) -> list[dict[str, Any]]:
    names = status_name(measured.result)
    return [
        {
            "family": case.name,
            "a": a,
            "argmin": float(measured.minimizer[i, 0]),
            "local_exponent": float(measured.local_exponent[i]),
            "dual_lower": float(measured.dual_lower[i, 0]),
            "dual_upper": float(measured.dual_upper[i, 0]),
            "metric": float(measured.metric[i, 0]),
            "numeric_difference": differences[i],
            "status": "ok" if names[i] == "successful" else str(names[i]),
        }
        for i, a in enumerate(case.spent)
    ]


@dataclass(frozen=True)
class Curve:
    """Points of R_a of one coordinate: `x`, `mu = grad R_a(x)`, `excess = R_a(x) - min R_a`.

    Entries are NaN, that is not drawn, where x is outside the range.
    """

    x: Float[np.ndarray, " n"]
    mu: Float[np.ndarray, " n"]
    excess: Float[np.ndarray, " n"]

    @property
    def exists(self) -> bool:
        return bool(np.any(np.isfinite(self.excess)))

    def line(self, height: float, label: str, **style: Any) -> plot.Line:
        return plot.Line(self.x, self.excess / height, label, **style)


def curve(R: AbstractLegendre, x: Float[np.ndarray, " n"], a: float) -> Curve:
    """`R_a` at the points x, by the potential and the mirror map of R alone."""
    mu, excess = _evaluate(R, jnp.asarray(x), jnp.asarray(a))
    return Curve(x, np.asarray(mu), np.asarray(excess))


@eqx.filter_jit
def _evaluate(
    R: AbstractLegendre, x: Float[Array, " n"], a: Float[Array, ""]
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    mu = jax.vmap(lambda point: R.dual(point[None], a).value)(x)
    potential = jax.vmap(lambda mu: R.potential(mu, a))(jnp.concatenate([jnp.zeros((1, 1), x.dtype), mu]))
    # min R_a = -Q_a(0).
    excess = mu[:, 0] * x - potential[1:] + potential[0]
    return mu[:, 0], jnp.where(jnp.isfinite(mu[:, 0]), excess, jnp.nan)


def _difference(exact: Curve, recovered: Curve) -> float:
    """Largest |mu_numeric - mu_closed| / (1 + |mu_closed|) over the points where both exist; NaN if there is none."""
    mu = exact.mu[::EVERY]
    gap = np.abs(recovered.mu - mu) / (1 + np.abs(mu))
    return float(np.nanmax(gap)) if np.any(np.isfinite(gap)) else float("nan")


def figure(
    case: Case, exact: Mapping[float, Curve], recovered: Mapping[float, Curve], measured: Effects, drawn: Effects
) -> Any:
    """R_a with its minimum and the numeric recovery; local exponent, argmin and metric against the strength spent."""
    lines, points = [], []
    for minimizer, (a, each) in zip(np.asarray(measured.minimizer[:, 0]), exact.items(), strict=True):
        if each.exists:
            height = np.nanmax(each.excess)
            lines.append(each.line(height, f"a = {a:g}", marker=(float(minimizer), 0.0)))
            points.append(recovered[a].line(height, "", style="x", color="0.2"))
    shape = plot.Panel([*lines, *points], "Lines: closed form; crosses: numeric", "x", SHAPE_LABEL)
    return plot.line_panels([shape, *_effect_panels(drawn)], case.title, "spent")


def _effect_panels(drawn: Effects) -> list[plot.Panel]:
    spent = "regularization spent, -a"
    a, exponents = np.asarray(drawn.a), np.asarray(drawn.local_exponent)
    minimizers, metrics = np.asarray(drawn.minimizer[:, 0]), np.asarray(drawn.metric[:, 0])
    return [
        plot.Panel([plot.Line(-a, exponents)], "Type of bias", spent, f"local exponent at {SCALE:g} from argmin"),
        plot.Panel([plot.Line(-a, minimizers)], "Positional bias", spent, r"argmin $R_a$"),
        plot.Panel([plot.Line(-a, metrics)], "Range: metric at the minimum", spent, r"$J J^T$", y_log=True),
    ]
