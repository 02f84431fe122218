"""The geometry of each family (the paper's Figs. 1, 2, 10, 12): R_a as decay is spent, and its three effects.

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
from ...plot.flows import excess_along
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
from .matrix_forms import claim_matrix_forms


@dataclass(frozen=True)
class Case:
    """One family from one start: its name, the picture's title, weights of one coordinate, strengths, reach in x.

    `figure`: the number of the paper's figure of this family, where it has one.
    """

    name: str
    title: str
    g: AbstractReparameterization
    start: tuple[float, ...]
    spent: tuple[float, ...]
    figure: int | None = None
    reach: float = 2.0

    @property
    def file(self) -> str:
        """The name of its picture: that of the paper's figure, if there is one."""
        return f"geometry_{self.name}" if self.figure is None else f"fig{self.figure}_{self.name}"

    def weights(self) -> Any:
        factors = tuple(jnp.asarray([value], float) for value in self.start)
        return factors[0] if len(factors) == 1 else factors


SPENT = (0.0, -0.1, -0.3, -1.0, -3.0)
CASES = (
    Case("hadamard", "x = m w from m = 1, w = 0", Hadamard(), (1.0, 0.0), SPENT, figure=1),
    Case("unbalanced", "x = m w from m = 1, w = 0.5", Hadamard(), (1.0, 0.5), SPENT, figure=2),
    Case("square", "x = w^2 from w = 1", Square(), (1.0,), (0.0, -0.1, -0.3, -0.6, -1.0)),
    Case("power_2", "x = u^4 - v^4 from u = 1, v = 0.9", PowerDifference(2), (1.0, 0.9), SPENT, figure=10),
    Case("power_3", "x = u^6 - v^6 from u = 1, v = 0.9", PowerDifference(3), (1.0, 0.9), SPENT),
    Case(
        "log",
        "x = log u - log v from u = 1.2, v = 1",
        LogDifference(),
        (1.2, 1.0),
        (0.0, -0.1, -0.2, -0.35, -0.45, -0.6),
        figure=12,
    ),
    Case("exp", "x = e^u - e^v from u = 0.2, v = 0", ExpDifference(), (0.2, 0.0), SPENT),
)
FILES = {case.name: case.file for case in CASES}
LEFT_OUT = {"paper": (), "quick": ("power_3",)}  # k compiles anew, and k = 2 shows the same
FINE = {"paper": 241, "quick": 121}  # points of a curve in closed form
CROSSES = {"paper": True, "quick": False}  # whether the numeric recovery is drawn
EVERY = 20  # of them the numeric recovery is drawn at one in so many
SHAPE_LABEL = r"$R_a(x) - \min R_a$, scaled to 1"
SCALE = 1.0  # the distance from the minimum at which the local exponent is read


def run(folder: RunFolder, setting: Setting) -> None:
    """Every family in turn: its picture as soon as it is drawn, and the table at the end."""
    rows, drawn_curves = [], {}
    for case in CASES:
        if case.name in LEFT_OUT[setting.preset]:
            continue
        closed, numeric = (
            legendre(case.g, Compatible(case.g), case.weights(), method=method) for method in ("closed_form", "numeric")
        )
        x = np.linspace(-case.reach, case.reach, FINE[setting.preset])
        exact = {a: curve(closed, x, a) for a in case.spent}
        recovered = {a: recovery(numeric, x[::EVERY], a, CROSSES[setting.preset]) for a in case.spent}
        measured, drawn = _both(closed, case.spent)
        rows += _rows(case, measured, [_difference(exact[a], recovered[a]) for a in case.spent])
        folder.save_figure(case.file, figure(case, exact, recovered, measured, drawn), caption(case))
        folder.save_table("geometry", rows)
        drawn_curves[case.name] = exact
    folder.show("R_a by family; |diff|: mirror map, numeric against closed form", rows, COLUMNS, "geometry")
    _claim(folder, rows, drawn_curves, 1e-9 if setting.bits == 64 else 1e-4, CROSSES[setting.preset])
    if setting.preset == "paper" and setting.bits == 64:  # each case compiles a flow of its own
        claim_matrix_forms(folder, setting.seed)


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


def caption(case: Case) -> str:
    """The text under a picture; it names the strengths without a curve, which R_a does not exist for."""
    number = "" if case.figure is None else f"Fig. {case.figure}. "
    return (
        f"{number}R_a of one coordinate as decay is spent, each scaled to its largest value shown; dots mark the "
        "minimum, crosses (at full size) the recovery from g and h alone. A strength at which R_a does not exist has "
        "no curve. Then the three effects of spending it: type of bias (2 is L2-like, 1 is L1-like), positional bias, "
        "and range."
    )


CLOSED_FORMS = {
    "closed-form-hadamard": ("x = m w", "Eq. (9)", ("hadamard", "unbalanced")),
    "closed-form-square": ("x = w^2", "Eq. (10)", ("square",)),
    "closed-form-power": ("x = u^2k - v^2k, k = 2 and 3", "Eq. (11)", ("power_2", "power_3")),
    "closed-form-log": ("x = log u - log v", "Example 3.14", ("log",)),
    "closed-form-exp": ("x = e^u - e^v", "Corollary 3.12", ("exp",)),
}


def _claim(
    folder: RunFolder,
    rows: list[dict[str, Any]],
    curves: Mapping[str, Mapping[float, "Curve"]],
    bound: float,
    crosses: bool,
) -> None:
    """Records the closed forms and the three effects.

    **Arguments:** `bound`: what the integration of the recovery leaves; `crosses`: whether the figures show it.
    """
    of = {name: [row for row in rows if row["family"] == name] for name in curves}
    for key, (title, where, names) in CLOSED_FORMS.items():
        differences = [row["numeric_difference"] for name in names for row in of.get(name, ()) if row["status"] == "ok"]
        if not differences:
            continue
        pictures = [FILES[name] for name in names if crosses and name in curves]
        folder.claim(
            f"{title}: the mirror map recovered from g and h alone equals that of the closed form",
            key=key,
            paper=where,
            ours=f"within {max(differences):.1e} (bound {bound:g})",
            holds=max(differences) < bound,
            see=(*pictures, "geometry"),
        )
    _claim_effects(folder, of)
    if "square" in curves:
        square = curves["square"]
        shifts = [np.nanmax(np.abs(each.mu - square[0.0].mu + a)) for a, each in square.items()]
        folder.claim(
            "x = w^2: decay adds c |a| |x|_1 to R, for every x",
            key="square-adds-l1",
            paper="grad R_a = grad R_0 - c a",
            ours=f"within {max(shifts):.1e}",
            holds=bool(max(shifts) < bound),
        )


def _claim_effects(folder: RunFolder, of: Mapping[str, list[dict[str, Any]]]) -> None:
    """Records the type of bias, the positional bias and the range; `of`: the rows of each family."""

    def column(name: str, key: str) -> list[float]:
        return [row[key] for row in of[name] if row["status"] == "ok"]

    if "hadamard" in of:
        exponents = column("hadamard", "local_exponent")
        folder.claim(
            "x = m w: decay moves the type of bias from L2 towards L1",
            key="type-of-bias-hadamard",
            paper="L2 to L1",
            ours=f"local exponent {exponents[0]:.2f} to {exponents[-1]:.2f}",
            holds=bool(np.all(np.diff(exponents) < 0) and exponents[-1] < 1.1),
            see=(FILES["hadamard"], "geometry"),
        )
    if "unbalanced" in of:
        minima = column("unbalanced", "argmin")
        folder.claim(
            "x = m w: decay moves argmin R_a from m0 w0 towards 0",
            key="positional-bias-hadamard",
            paper="towards 0",
            ours=f"{minima[0]:.3g} to {minima[-1]:.2g}",
            holds=bool(np.all(np.diff(minima) < 0) and 0 < minima[-1] < 1e-4 * minima[0]),
            see=(FILES["unbalanced"], "geometry"),
        )
    for name, k in (("power_2", 2), ("power_3", 3)):
        if name in of:
            _claim_power(folder, of[name], k)
    if "log" in of:
        exponents = column("log", "local_exponent")
        folder.claim(
            "x = log u - log v: decay moves the type of bias from L1 towards L2, read at one distance from argmin R_a",
            key="type-of-bias-log",
            paper="L1 to L2",
            ours=f"local exponent {exponents[0]:.2f} to {exponents[-1]:.2f}",
            holds=bool(np.all(np.diff(exponents) > 0)),
            see=(FILES["log"], "geometry"),
        )
        ended = [row["a"] for row in of["log"] if row["status"] == "range_exhausted"]
        last = min(row["a"] for row in of["log"] if row["status"] == "ok")
        folder.claim(
            "x = log u - log v from u = 1.2, v = 1 runs out of its range at a = -min(u0, v0)^2 / 2 = -0.5",
            key="range-ends-log",
            paper="range shrinks",
            ours=f"R_a exists at a = {last:g}, and not at {max(ended, default=0.0):g}",
            holds=bool(ended and max(ended) < -0.5 < last),
            see=(FILES["log"], "geometry"),
        )


def _claim_power(folder: RunFolder, rows: list[dict[str, Any]], k: int) -> None:
    """Records the two readings of range shrinking for x = u^2k - v^2k: by the metric, and by the dual interval."""
    metrics = [row["metric"] for row in rows]
    widths = [row["dual_upper"] - row["dual_lower"] for row in rows]
    folder.claim(
        f"x = u^{2 * k} - v^{2 * k}: decay shrinks the metric J J^T, the speed at which x can move",
        key="range-metric-power",
        paper="range shrinks",
        ours=f"{metrics[0]:.2g} to {metrics[-1]:.2g}",
        holds=bool(np.all(np.diff(metrics) < 0)),
        see=(FILES[rows[0]["family"]], "geometry"),
    )
    folder.claim(
        f"x = u^{2 * k} - v^{2 * k}: decay shrinks the interval of the dual variable",
        key="range-interval-power",
        paper="domain shrinks",
        ours=f"width {widths[0]:.2g} to {widths[-1]:.2g}",
        holds=bool(np.all(np.diff(widths) < 0)),
        see=("geometry",),
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
        """True if there is something to draw: R_a exists, and some point of its range is shown."""
        return bool(np.any(self.excess > 0))

    def line(self, height: float, label: str, **style: Any) -> plot.Line:
        return plot.Line(self.x, self.excess / height, label, **style)


def curve(R: AbstractLegendre, x: Float[np.ndarray, " n"], a: float) -> Curve:
    """`R_a` at the points x, by the mirror map of R alone."""
    mu, excess = (along(R, jnp.asarray(x), jnp.asarray(a)) for along in (_mirror_map, excess_along))
    return Curve(x, np.asarray(mu), np.asarray(excess))


def recovery(R: AbstractLegendre, x: Float[np.ndarray, " n"], a: float, drawn: bool) -> Curve:
    """The same of the numeric path, by its potential: each mu is an integration, and its integral would be many.

    **Arguments:** `drawn`: False to leave the values out, which compile for as long as the mirror map does.
    """
    if not drawn:
        return Curve(x, np.asarray(_mirror_map(R, jnp.asarray(x), jnp.asarray(a))), np.full_like(x, np.nan))
    mu, excess = _by_potential(R, jnp.asarray(x), jnp.asarray(a))
    return Curve(x, np.asarray(mu), np.asarray(excess))


Evaluated = tuple[Float[Array, " n"], Float[Array, " n"]]


@eqx.filter_jit
def _mirror_map(R: AbstractLegendre, x: Float[Array, " n"], a: Float[Array, ""]) -> Float[Array, " n"]:
    return jax.vmap(lambda point: R.dual(point[None], a).value[0])(x)


@eqx.filter_jit
def _by_potential(R: AbstractLegendre, x: Float[Array, " n"], a: Float[Array, ""]) -> Evaluated:
    mu = _mirror_map(R, x, a)
    potential = jax.vmap(lambda mu: R.potential(mu[None], a))(jnp.concatenate([jnp.zeros(1, x.dtype), mu]))
    excess = mu * x - potential[1:] + potential[0]  # min R_a = -Q_a(0)
    return mu, jnp.where(jnp.isfinite(mu), excess, jnp.nan)


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
            if recovered[a].exists:
                points.append(recovered[a].line(height, "", style="x", color="0.2"))
    title = "Lines: closed form; crosses: numeric" if points else "By the closed form"
    shape = plot.Panel([*lines, *points], title, "x", SHAPE_LABEL)
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
