"""Deep: products x = w_1 .. w_p of depth 2 to 5 under weight decay that is switched off, past the paper's theorem.

Beyond depth 2 weight decay does not commute with g, and the paper stops. But decay normalises g: R_a is the Legendre
function of g from the decayed weights, and the dual variable leaks. From this follow, before any integration, the limit
after the switch-off, the clock that decay slows, the strength beyond which a coordinate cannot grow, and the weighted
norm to which the bias tends. Every one of them is compared with the flow of the weights, which knows nothing of R_a.
"""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import linprog

from ... import plot
from ...checks import Number
from ...geometry import AbstractLegendre, critical_strength, legendre, predict_limit, remaining_time, strength_bound
from ...problem import Constant, Hadamard, LeastSquares, Problem, SwitchOff, WeightDecay
from ...problem.reparam import Weights
from ...results import status_name
from ...sweeps import sweep
from ..core.experiment import Setting
from ..core.run import RunFolder
from .mixed import compare_blocks

DEPTHS = {"paper": (2, 3, 4, 5), "quick": (3,)}
MEASUREMENTS, COORDINATES, PLANTED = 8, 16, 2
OFF = 1.0  # the time at which decay ends; s = 2 c a is chosen by its strength
SPENT = np.array([0.0, -0.5, -1.0, -1.5])  # the s of the flows to the limit
# The s of the limits that tend to the weighted norm.
TOWARDS = {"paper": -np.arange(1.0, 8.01, 0.5), "quick": -np.arange(1.0, 8.01)}
END = 1e8  # of the flows to the limit
RECOVERIES = -np.arange(2.0, 8.1, 1.0)  # the s of the recoveries
HALF = 0.5  # the value of x that counts as recovered; the target is 1
SHARES = np.linspace(0.95, 1.01, 61)  # strengths around the critical one, relative to it
# An implicit solver: the flows are followed over up to 12 orders of magnitude of time.
IMPLICIT = {"solver": diffrax.Kvaerno5(), "rtol": 1e-6, "atol": 1e-9}
LIMIT_TOLERANCE = 1e-5  # what those tolerances leave of the weights after thousands of steps
COLORS = {2: "tab:blue", 3: "tab:orange", 4: "tab:green", 5: "tab:red"}

Rows = list[dict[str, Any]]


def run(folder: RunFolder, setting: Setting) -> None:
    """Each question for all depths; every table is written as soon as it is there; then figures."""
    if setting.bits < 64:
        raise ValueError("deep compares limits to 1e-5 and times to 1e12; leave out --float32")
    depths = DEPTHS[setting.preset]
    tables: dict[str, Rows] = {"critical": [], "recovery": [], "limits": [], "norms": []}
    for depth in depths:
        tables["critical"] += critical_rows(depth)
        tables["recovery"] += recovery_rows(depth)
        limits, norms = limit_rows(depth, setting.seed, TOWARDS[setting.preset])
        tables["limits"] += limits
        tables["norms"] += norms
        for name, rows in tables.items():
            folder.save_table(name, rows)
    for name, rows in tables.items():
        folder.show(TITLES[name], rows, {key: key.replace("_", " ") for key in rows[0]}, name)
    _claim_critical(folder, tables["critical"])
    _claim_recovery(folder, tables["recovery"])
    _claim_limits(folder, tables["limits"], tables["norms"])
    example = example_path()
    _claim_example(folder, example)
    if setting.preset == "paper":
        compare_blocks(folder, setting.seed, IMPLICIT)
    folder.save_figure("deep", deep_figure(tables), DEEP_CAPTION)
    folder.save_figure("example", example_figure(*example), EXAMPLE_CAPTION)


TITLES = {
    "critical": "Strengths beyond which constant decay takes x to 0, target 1, of one coordinate",
    "recovery": f"Time after the switch-off until x = {HALF:g}, target 1, of one coordinate",
    "limits": "Limits after the switch-off: predicted, and the end of the flow of the weights",
    "norms": "Predicted limits, and the solution of least weighted norm",
}


def start(depth: int, size: int, first: Number = 0.0) -> Weights:
    """One factor `first`, the others 1."""
    return (jnp.full(size, first), *(jnp.ones(size) for _ in range(depth - 1)))


def one_coordinate() -> LeastSquares:
    """`f(x) = (x - 1)^2 / 2` of one coordinate."""
    return LeastSquares(jnp.ones((1, 1)), jnp.ones(1))


def critical_rows(depth: int) -> Rows:
    """The critical strength by formula, and by flows from x = 1 and from x = 0."""
    predicted = float(critical_strength(depth, 1.0))
    R = legendre(Hadamard(depth), WeightDecay(), start(depth, 1))
    strengths = predicted * SHARES

    def lane(first, alpha):
        return Problem(Hadamard(depth), WeightDecay(), Constant(alpha), one_coordinate()), start(depth, 1, first)

    # Near the saddle-node x lingers for a time of 1 / sqrt of the distance in strength: 3000 resolves 1e-3.
    ends = sweep(lane, {"first": np.array([1.0, 0.0]), "alpha": strengths}, t1=3000.0, rtol=1e-8)
    alive = np.asarray(ends.x.values)[..., 0] > 1e-3
    measured = [float(strengths[each].max()) if each.any() else 0.0 for each in alive]
    bound = float(strength_bound(R, 1.0).value[0])
    return [{"depth": depth, "formula": predicted, "from_1": measured[0], "from_0": measured[1], "bound": bound}]


def recovery_rows(depth: int) -> Rows:
    """The time from the switch-off to x = 1/2 of one coordinate, and the least time by the theory, for each s."""
    g, w0 = Hadamard(depth), start(depth, 1)

    def lane(s):
        return Problem(g, WeightDecay(), SwitchOff(-s / (2 * OFF), OFF), one_coordinate()), w0

    # Up to 20 times the length of the interval of nu, pi/2 at depth 3 and less beyond, over the slowest clock.
    ts = np.concatenate([[0.0], OFF + np.geomspace(0.01, 20 * np.exp((2 - depth) * RECOVERIES.min()), 400)])
    ts = np.insert(ts, 1, OFF)
    flows = sweep(lane, {"s": RECOVERIES}, t1=ts[-1], saveat=ts, metrics=_parameters, **IMPLICIT)
    R = legendre(g, WeightDecay(), w0)

    def least(x, s):
        return remaining_time(R, jnp.full(1, HALF), R.dual(x, s / 2).value, s / 2, 1.0).value[0]

    x = flows.parameters.values[..., 0]
    bounds = jax.jit(jax.vmap(least))(jnp.asarray(x[:, 1:2]), jnp.asarray(RECOVERIES))
    return [
        {
            "depth": depth,
            "s": float(s),
            "clock": float(np.exp((depth - 2) * s)),
            "least_time": float(bound),
            "time": crossing(ts[1:] - OFF, path[1:], HALF),
        }
        for s, bound, path in zip(RECOVERIES, bounds, x, strict=True)
    ]


def crossing(ts: Float[np.ndarray, " n"], x: Float[np.ndarray, " n"], level: float) -> float:
    """The first time at which x passes the level, by a line between two times; NaN where it never does."""
    above = np.flatnonzero(x >= level)
    if above.size == 0:
        return float("nan")
    i = above[0]
    share = (level - x[i - 1]) / (x[i] - x[i - 1])
    return float(ts[i - 1] + share * (ts[i] - ts[i - 1]))


def sparse_problem(depth: int, seed: int) -> tuple[LeastSquares, Weights]:
    """8 measurements of 16 coordinates with two ones, and weights for which the two ends of each interval differ."""
    keys = jax.random.split(jax.random.key(seed), depth + 1)
    Z = jax.random.normal(keys[0], (MEASUREMENTS, COORDINATES))
    first = jax.random.uniform(keys[1], (COORDINATES,), minval=-0.3, maxval=0.3)
    others = (jax.random.uniform(key, (COORDINATES,), minval=0.8, maxval=1.2) for key in keys[2:])
    return LeastSquares(Z, Z @ jnp.zeros(COORDINATES).at[:PLANTED].set(1.0)), (first, *others)


def limit_rows(depth: int, seed: int, towards: Float[np.ndarray, " n"]) -> tuple[Rows, Rows]:
    """Predicted limits beside the ends of flows, and, at the s of `towards`, beside the least weighted norm."""
    objective, w0 = sparse_problem(depth, seed)
    g = Hadamard(depth)
    R = legendre(g, WeightDecay(), w0)
    spent = np.concatenate([SPENT, towards])
    # One after the other: under vmap every strength would take the halvings and root searches of the slowest.
    found = jax.jit(lambda all_a: jax.lax.map(lambda a: predict_limit(R, objective, a), all_a))(jnp.asarray(spent) / 2)
    predicted = np.asarray(found.x)

    def lane(s):
        return Problem(g, WeightDecay(), SwitchOff(-s / (2 * OFF), OFF), objective), w0

    flows = sweep(lane, {"s": SPENT}, t1=END, **IMPLICIT)
    limits = [
        {
            "depth": depth,
            "s": float(s),
            "distance": float(np.linalg.norm(flows.x.values[i] - predicted[i])),
            "kkt_residual": float(found.kkt_residual[i]),
            "newton_steps": int(found.steps[i]),
            "solver_steps": int(flows.steps[i]),
            "status": str(flows.status.values[i]),
        }
        for i, s in enumerate(SPENT)
    ]
    norms: Rows = []
    if depth > 2:  # at depth 2 the interval has no ends, and no norm is the limit of R_a at this rate
        least = least_weighted_norm(R, objective)
        statuses = status_name(found.result)[len(SPENT) :]
        norms = [
            {"depth": depth, "s": float(s), "distance": float(np.linalg.norm(x - least)), "status": str(status)}
            for s, x, status in zip(towards, predicted[len(SPENT) :], statuses, strict=True)
        ]
    return limits, norms


def least_weighted_norm(R: AbstractLegendre, objective: LeastSquares) -> Float[np.ndarray, " d"]:
    """`argmin sum t+ x+ + t- x-` s.t. Zx = y, t the ends of the dual interval of R_0, by a linear program."""
    lower, upper = R.dual_interval(0.0)
    Z = np.asarray(objective.Z)
    costs = np.concatenate([np.asarray(upper), -np.asarray(lower)])
    parts = linprog(costs, A_eq=np.hstack([Z, -Z]), b_eq=np.asarray(objective.y)).x
    return parts[: Z.shape[1]] - parts[Z.shape[1] :]


EXAMPLE_Z = ((1.0, 0.5, 0.7, 0.0), (0.5, 1.0, 0.1, 0.7))
EXAMPLE_END = (0.0, 0.0, 10 / 7, -10 / 49)
EXAMPLE_OFF, EXAMPLE_S = 0.1, -8.0
EXAMPLE_TIMES = np.concatenate([[0.0, EXAMPLE_OFF], np.linspace(1.0, 8e4, 400), [1e7]])


def example_path() -> tuple[Float[np.ndarray, " time"], Float[np.ndarray, "time 4"]]:
    """The path of x in the example of arXiv 2607.12332 at depth 3, where strong decay makes the start infinitesimal."""
    objective = LeastSquares(jnp.asarray(EXAMPLE_Z), jnp.array([1.0, 0.0]))

    def lane(s):
        schedule = SwitchOff(-s / (2 * EXAMPLE_OFF), EXAMPLE_OFF)
        return Problem(Hadamard(3), WeightDecay(), schedule, objective), start(3, 4)

    strengths = np.array([EXAMPLE_S])
    flow = sweep(lane, {"s": strengths}, t1=EXAMPLE_TIMES[-1], saveat=EXAMPLE_TIMES, metrics=_parameters, **IMPLICIT)
    return EXAMPLE_TIMES, flow.parameters.values[0]


def _parameters(t, x, w):
    return {"parameters": x}


def _claim_critical(folder: RunFolder, rows: Rows) -> None:
    """Compares critical strengths with those that flows show."""
    for row in rows:
        p, predicted = row["depth"], row["formula"]
        folder.claim(
            f"At depth {p} constant decay takes x to 0 from its target beyond the critical strength of the formula",
            paper="-",
            ours=f"{row['from_1']:.5f} by flows, {predicted:.5f} by the formula",
            holds=bool(abs(row["from_1"] / predicted - 1) <= 2e-3),  # two steps of the grid
            see=("deep", "critical"),
        )
        folder.claim(
            f"At depth {p} a start at 0 needs no stronger decay than that, and the bound is above both",
            paper="-",
            ours=f"{row['from_0']:.5f} from 0, bound {row['bound']:.5f}",
            holds=bool(row["from_0"] <= 1.002 * predicted <= 1.002 * row["bound"]),
            see=("deep", "critical"),
        )


def _claim_recovery(folder: RunFolder, rows: Rows) -> None:
    """Compares times of recovery with the least times, which the slope between 1/2 and 1 makes exact to a factor 2."""
    for depth in sorted({row["depth"] for row in rows}):
        own = [row for row in rows if row["depth"] == depth]
        ratios = [row["time"] / row["least_time"] for row in own]
        folder.claim(
            f"At depth {depth} x recovers within once and twice the least time of the theory",
            paper="-",
            ours=f"{np.min(ratios):.3f} to {np.max(ratios):.3f} times; up to {own[-1]['time']:.2g} time units",
            holds=bool(np.min(ratios) >= 0.92 and np.max(ratios) <= 2.16),  # times are up to 8 % apart
            see=("deep", "recovery"),
        )


def _claim_limits(folder: RunFolder, limits: Rows, norms: Rows) -> None:
    """Compares predicted limits with flows, and their distance from the least weighted norm with e^{ps}."""
    for depth in sorted({row["depth"] for row in limits}):
        own = [row for row in limits if row["depth"] == depth]
        worst = np.max([row["distance"] for row in own])
        folder.claim(
            f"At depth {depth} the flow of the weights ends at the predicted limit, at every decay",
            paper="only depth 2",
            ours=f"within {worst:.1e}",
            holds=bool(worst < LIMIT_TOLERANCE) and all(row["status"] == "successful" for row in own),
            see=("limits",),
        )
    for depth in sorted({row["depth"] for row in norms}):
        own = [row for row in norms if row["depth"] == depth]
        rate = falling_rate(own)
        last = [row for row, clear in zip(own, above_rounding(own), strict=True) if clear][-1]
        folder.claim(
            f"At depth {depth} the limit tends to the solution of least weighted norm, like e^({depth} s)",
            paper="infinitesimal starts",
            ours=f"like e^({rate:.2f} s), {last['distance']:.1e} at s = {last['s']:g}",
            holds=bool(abs(rate / depth - 1) < 0.1),
            see=("deep", "norms"),
        )


def above_rounding(rows: Rows) -> Bool[np.ndarray, " n"]:
    """True for distances that rounding does not decide: by 100 times, but the choice of 10 or 300 changes little.

    nu comes within e^((p-2) s) of the end of its interval, where x grows like that distance to the power -p/(p-2). So
    the rounding of nu puts a relative error of `eps e^(-(p-2) s) p / (p - 2)` into x.
    """
    depth, s, distance = (np.array([row[key] for row in rows], float) for key in ("depth", "s", "distance"))
    return distance > 100 * np.finfo(float).eps * np.exp(-(depth - 2) * s) * depth / (depth - 2)


def falling_rate(rows: Rows) -> float:
    """`d log(distance) / ds`, by least squares where the distance is below 3e-3 and above rounding; NaN below three."""
    s, distance = (np.array([row[key] for row in rows], float) for key in ("s", "distance"))
    inside = above_rounding(rows) & (distance < 3e-3)
    return float(np.polyfit(s[inside], np.log(distance[inside]), 1)[0]) if inside.sum() > 2 else float("nan")


def _claim_example(folder: RunFolder, example: tuple[np.ndarray, np.ndarray]) -> None:
    """Compares the order of the features and the end with those that the source gives."""
    ts, x = example
    entered = {i + 1: crossing(ts, np.abs(x[:, i]), 0.05) for i in range(4)}
    order = sorted((i for i, t in entered.items() if np.isfinite(t)), key=lambda i: entered[i])
    folder.claim(
        "In the example of arXiv 2607.12332 features 1, 3 and 4 enter, feature 1 first and feature 2 never",
        paper="1, 3, 4",
        ours=", ".join(map(str, order)),
        holds=sorted(order) == [1, 3, 4] and order[0] == 1,
        see=("example",),
    )
    off = float(np.linalg.norm(x[-1] - np.asarray(EXAMPLE_END)))
    folder.claim(
        "In the example the flow ends at the solution of least norm, (0, 0, 10/7, -10/49)",
        paper="equal",
        ours=f"within {off:.1e}",
        holds=bool(off < 1e-4),
        see=("example",),
    )


DEEP_CAPTION = (
    "Top left: the stationary points under constant decay (lines) end at the critical strength, up to which flows from "
    "x = 1 (dots) and from x = 0 (crosses) stay alive. Top right: the time of a recovery after the switch-off (dots) "
    "and the least time (lines). Bottom: the limits tend to the solution of least weighted norm, like e^(ps) (lines), "
    "until the rounding of nu decides."
)
EXAMPLE_CAPTION = "The example of arXiv 2607.12332: feature 1 enters first, and leaves as features 3 and 4 enter."


def deep_figure(tables: dict[str, Rows]) -> Any:
    """Critical strengths, recoveries and the way to the weighted norm, a color a depth."""
    critical, recovery, norm = [], [], []
    for row in tables["critical"]:
        depth, q = row["depth"], 1 - 2 / row["depth"]
        x = np.linspace(0.0, 1.0, 100) ** 3  # dense near 0, where the curve is steep
        critical += [
            plot.Line((1 - x) * x**q / 2, x, f"depth {depth}", "-", COLORS[depth]),
            plot.Line(np.array([row["from_1"]]), np.array([q / (1 + q)]), "", "o", COLORS[depth]),
            plot.Line(np.array([row["from_0"]]), np.array([q / (1 + q)]), "", "x", COLORS[depth]),
        ]
    for name, lines, keys in (("recovery", recovery, ("least_time", "time")), ("norms", norm, ("distance",))):
        for depth in sorted({row["depth"] for row in tables[name]}):
            own = [row for row in tables[name] if row["depth"] == depth]
            s = np.array([row["s"] for row in own])
            values = [np.array([row[key] for row in own]) for key in keys]
            if name == "norms":
                last = np.flatnonzero(above_rounding(own))[-1]
                values.insert(0, values[0][last] * np.exp(depth * (s - s[last])))
            lines += [
                plot.Line(-s, values[0], f"depth {depth}", "-", COLORS[depth]),
                plot.Line(-s, values[1], "", "o", COLORS[depth]),
            ]
    spent = r"decay spent, $-s = 2c\int\alpha$"
    panels = [
        plot.Panel(critical, "Stationary x; dots, crosses: last alive", r"constant strength $\alpha$", "x"),
        plot.Panel(recovery, "Recovery of one coordinate", spent, "time to x = 1/2", y_log=True),
    ]
    if norm:
        panels.append(plot.Panel(norm, "Limit to least weighted norm", spent, "distance", y_log=True, floor=1e-10))
    return plot.line_panels(panels, "Deep products under weight decay", "x = w_1 .. w_p")


def example_figure(ts: np.ndarray, x: np.ndarray) -> Any:
    """The four coordinates over time."""
    lines = [plot.Line(ts[:-1], x[:-1, i], f"feature {i + 1}") for i in range(4)]
    panel = plot.Panel(lines, "Depth 3, strong decay until t = 0.1", "time t", "x")
    return plot.line_panels([panel], "Features enter one after the other", "coordinate")
