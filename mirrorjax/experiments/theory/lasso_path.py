"""The time average of x from an infinitesimal start against the Lasso path (Berthier, arXiv 2509.18766).

For x = m w from weights with |u0 v0| = eps, `|x_i|` is of order one only where `2 |mu_i| = log(1/eps)`. With the time
`s = 2 t / log(1/eps)` and the average `x_bar = 1/t int_0^t x`, mu_t = -t grad f(x_bar), so that for eps -> 0
`|grad f(x_bar)| <= 1/s` in each entry, with equality where x is not 0: the conditions of the Lasso of penalty 1/s,
except that they ask for it where x, and not x_bar, is not 0. Since `x = d(s x_bar)/ds`, the two agree exactly as long
as `s |x_lasso|` grows in each entry.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from diffrax import Kvaerno5

from ... import plot
from ...dynamics import MirrorFlow, solve
from ...problem import Hadamard, LeastSquares, Problem, WeightDecay
from ..core.experiment import Setting
from ..core.run import RunFolder

# log10 of 1/eps. The error of finite eps is of order 1/log(1/eps), so each is four times the last.
STARTS = {"paper": (16, 64, 256), "quick": (16, 64, 256)}
POINTS = {"paper": 241, "quick": 121}  # times s
SPAN = 1500.0  # s from half of the first kink of the path to so many times it


class Data(NamedTuple):
    """Measurements Z (n, d) and y, and the names of the columns of Z."""

    Z: np.ndarray
    y: np.ndarray
    names: tuple[str, ...]


class Averages(NamedTuple):
    """The Lasso path and the time averages of one data set, all at the same s.

    `lasso` (s, d); `averages`: log10(1/eps) -> (s, d); `bound`: log10(1/eps) -> max over s of |s grad f(x_bar)|;
    `first`: the s from which on `s |x_lasso|` falls in some entry, `inf` if it does not.
    """

    data: Data
    s: np.ndarray
    lasso: np.ndarray
    averages: dict[int, np.ndarray]
    bound: dict[int, float]
    first: float

    def errors(self, digits: int) -> np.ndarray:
        """The distance of the average from the Lasso at each s, relative to the largest |x| of the path."""
        return np.abs(self.averages[digits] - self.lasso).max(axis=1) / np.abs(self.lasso).max()


def run(folder: RunFolder, setting: Setting) -> None:
    """A monotone path and that of the diabetes data, which is not; tables, figures and claims of both."""
    if setting.bits < 64:
        raise ValueError("lasso-path starts from weights of 1e-128, below float32; leave out --float32")
    found = {
        "monotone": averaged(planted(setting.seed), setting),
        "diabetes": averaged(diabetes(), setting),
    }
    rows = [row for name, each in found.items() for row in _rows(name, each)]
    folder.save_table("errors", rows)
    folder.show("Distance of the average from the Lasso path, relative to the largest |x|", rows, COLUMNS, "errors")
    for name, each in found.items():
        folder.save_table(f"path_{name}", _path(each))
        folder.save_figure(name, path_figure(name, each), CAPTIONS[name])
    folder.save_figure("errors", error_figure(found), ERROR_CAPTION)
    _claim_monotone(folder, found["monotone"])
    _claim_other(folder, found["diabetes"])
    _claim_bound(folder, found)


COLUMNS = {
    "data": "data",
    "digits": "log10(1/eps)",
    "before": "before s |x| falls",
    "after": "after",
    "bound": "max |s grad f|",
}


def planted(seed: int) -> Data:
    """442 correlated measurements of a sparse vector of 10 entries, whose path is monotone.

    They have the shape of the diabetes data, so that one compiled program serves both.
    """
    rng = np.random.default_rng(seed)
    Z = rng.normal(size=(442, 10)) + 0.5 * rng.normal(size=(442, 1))
    x = np.array([2.0, 1.5, 1.0, 0.5, 0.25, *np.zeros(5)])
    return Data(Z, Z @ x + 0.1 * rng.normal(size=442), tuple(f"x_{i}" for i in range(10)))


def diabetes() -> Data:
    """The diabetes data of Efron et al. (2004), with columns and targets of unit variance."""
    from sklearn.datasets import load_diabetes

    raw: Any = load_diabetes()
    Z, y = raw.data / raw.data.std(axis=0), raw.target - raw.target.mean()
    return Data(Z, y / y.std(), tuple(raw.feature_names))


def lasso_path(data: Data) -> Callable[[np.ndarray], np.ndarray]:
    """s -> the minimum of `|Z x - y|^2 / (2n) + |x|_1 / s`, from scikit-learn's path, which is linear in 1/s."""
    from sklearn.linear_model import lars_path

    penalties, _, coefficients = lars_path(data.Z, data.y, method="lasso")
    order = np.argsort(penalties)

    def at(s: np.ndarray) -> np.ndarray:
        return np.stack([np.interp(1 / s, penalties[order], row[order]) for row in coefficients], axis=1)

    return at


def averaged(data: Data, setting: Setting) -> Averages:
    """The Lasso path of the data, and the time averages of the flow from each start."""
    first = 1 / np.max(np.abs(data.Z.T @ data.y)) * len(data.y)
    s = first * np.geomspace(0.5, SPAN, POINTS[setting.preset])
    lasso = lasso_path(data)(s)
    averages, bound = {}, {}
    for digits in STARTS[setting.preset]:
        averages[digits], gradients = time_averages(data, s, digits)
        bound[digits] = float(np.max(np.abs(gradients) * s[:, None]))
    return Averages(data, s, lasso, averages, bound, _first_fall(data))


def time_averages(data: Data, s: np.ndarray, digits: int) -> tuple[np.ndarray, np.ndarray]:
    """`1/t int_0^t x` and grad f there, at `t = s log(1/eps) / 2`, `eps = 10^-digits`.

    No average is integrated: `mu_t = -t grad f(x_bar)` gives it, where Z has full column rank.
    """
    log = digits * np.log(10.0)
    d = data.Z.shape[1]
    start = jnp.full(d, np.sqrt(2.0) * 10.0 ** (-digits / 2)), jnp.zeros(d)
    problem = Problem(Hadamard(), WeightDecay(), 0.0, LeastSquares(data.Z, data.y))
    times = jnp.asarray(s * log / 2)
    # While x is 0 the flow moves at a constant rate; where an entry of x grows by e^100 it is stiff.
    sol = solve(problem, start, t1=times[-1], saveat=times, flow=MirrorFlow(), solver=Kvaerno5())
    gradients = -np.asarray(sol.mu) / np.asarray(times)[:, None]
    n = len(data.y)
    average = np.linalg.solve(data.Z.T @ data.Z / n, (data.Z.T @ data.y / n)[:, None] + gradients.T)
    return average.T, gradients


def _first_fall(data: Data) -> float:
    """The first s at which an entry of `s |x_lasso|` falls: one of the kinks of the path."""
    first = len(data.y) / np.max(np.abs(data.Z.T @ data.y))
    fine = first * np.geomspace(1.0, SPAN, 20_001)
    size = fine[:, None] * np.abs(lasso_path(data)(fine))
    falls = np.any(np.diff(size, axis=0) < -1e-9 * size.max(), axis=1)
    return float(fine[np.argmax(falls)]) if falls.any() else float("inf")


def _rows(name: str, found: Averages) -> list[dict[str, Any]]:
    """One mapping a start, with the columns of errors.csv."""
    rows = []
    for digits in found.averages:
        errors, before = found.errors(digits), found.s <= found.first
        rows.append(
            {
                "data": name,
                "digits": digits,
                "before": float(errors[before].max()),
                "after": float(errors[~before].max()) if not before.all() else None,
                "bound": found.bound[digits],
            }
        )
    return rows


def _path(found: Averages) -> list[dict[str, Any]]:
    """One mapping a time s: the Lasso and the average of the smallest start."""
    nearest = found.averages[max(found.averages)]
    return [
        {
            "s": float(s),
            **{f"lasso {name}": float(value) for name, value in zip(found.data.names, lasso, strict=True)},
            **{f"average {name}": float(value) for name, value in zip(found.data.names, average, strict=True)},
        }
        for s, lasso, average in zip(found.s, found.lasso, nearest, strict=True)
    ]


def _claim_monotone(folder: RunFolder, found: Averages) -> None:
    errors = [float(found.errors(digits).max()) for digits in found.averages]
    folder.claim(
        "On the monotone data s |x_lasso| never falls",
        paper="the path is monotone",
        ours="it never falls" if np.isinf(found.first) else f"it falls at s = {found.first:.3g}",
        holds=bool(np.isinf(found.first)),
        see=("monotone", "path_monotone"),
    )
    ratios = [after / before for before, after in itertools.pairwise(errors)]
    folder.claim(
        "On the monotone data the time average tends to the Lasso path, with an error of order 1/log(1/eps)",
        paper="equal for eps -> 0",
        ours=", ".join(f"{error:.1e}" for error in errors),
        holds=all(0.15 < ratio < 0.4 for ratio in ratios) and errors[-1] < 0.01,
        see=("monotone", "errors"),
    )


def _claim_other(folder: RunFolder, found: Averages) -> None:
    before = found.s <= found.first
    early = [float(found.errors(digits)[before].max()) for digits in found.averages]
    late = [float(found.errors(digits)[~before].max()) for digits in found.averages]
    folder.claim(
        "On the diabetes data the time average agrees with the Lasso path until an entry of s |x_lasso| falls",
        paper="equal for eps -> 0 there",
        ours=", ".join(f"{error:.1e}" for error in early),
        holds=early[-1] < 0.01 and early[-1] < 0.4 * early[-2],
        see=("diabetes", "errors"),
    )
    folder.claim(
        "On the diabetes data it leaves the path then, by a distance that does not fall with eps",
        paper="approximate only",
        ours=", ".join(f"{error:.1e}" for error in late),
        holds=late[-1] > 0.05 and late[-1] > 0.7 * late[-2],
        see=("diabetes", "errors"),
    )


def _claim_bound(folder: RunFolder, found: dict[str, Averages]) -> None:
    excess = {digits: max(each.bound[digits] - 1 for each in found.values()) for digits in STARTS["paper"]}
    folder.claim(
        "On all data no entry of grad f at the time average exceeds 1/s, up to 1/log(1/eps)",
        paper="at most 1/s",
        ours=", ".join(f"by {100 * share:.2g} %" for share in excess.values()),
        holds=all(share <= 2 / (digits * np.log(10.0)) for digits, share in excess.items()),
        see=("errors",),
    )


CAPTIONS = {
    "monotone": "Time averages of x (lines) and the Lasso path (dashed) on data whose path is monotone: they agree.",
    "diabetes": (
        "The diabetes data. From the dotted line on an entry of s |x_lasso| falls: the Lasso gives up an entry that "
        "the time average still remembers."
    ),
}
ERROR_CAPTION = (
    "The distance of the time average from the Lasso path. On monotone data it falls like 1/log(1/eps); on the "
    "diabetes data it does so until an entry of s |x_lasso| falls (dotted), and again where it has grown back."
)


def path_figure(name: str, found: Averages) -> Any:
    """All entries of the average from the smallest start, and of the Lasso, over s."""
    nearest = found.averages[max(found.averages)]
    colors = plot.colors(len(found.data.names))
    lines = [
        plot.Line(found.s, nearest[:, i], label, color=color)
        for i, (label, color) in enumerate(zip(found.data.names, colors, strict=True))
    ]
    lines += [plot.Line(found.s, found.lasso[:, i], style="--", color="black") for i in range(len(colors))]
    events = [found.first] if np.isfinite(found.first) else []
    panel = plot.Panel(
        lines, f"{name} data", "s = 2 t / log(1/eps), or 1 / penalty", "coefficient", x_log=True, events=events
    )
    return plot.line_panels([panel], "Time averages (lines) and the Lasso path (dashed)", "entry")


def error_figure(found: dict[str, Averages]) -> Any:
    """The error over s for each start, a panel a data set."""
    panels = []
    for name, each in found.items():
        lines = [
            plot.Line(each.s, each.errors(digits), f"1e-{digits}", color=color)
            for digits, color in zip(each.averages, plot.colors(len(each.averages)), strict=True)
        ]
        events = [each.first] if np.isfinite(each.first) else []
        panels.append(
            plot.Panel(
                lines, f"{name} data", "s", "distance from the Lasso", x_log=True, y_log=True, events=events, floor=1e-6
            )
        )
    return plot.line_panels(panels, "How far the time average is from the Lasso", "eps")
