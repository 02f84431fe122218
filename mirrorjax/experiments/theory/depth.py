"""Depth (the paper's Figs. 8 and 9): the effect of a decay that is switched off on x = w, x = m w and x = m w v.

Sparse regression with decay until t = 50 and none after. x = w with L1 moves away from its sparse vector after the
switch-off. x = m w with weight decay ends at x*, and only after the switch-off. x = m w v with weight decay ends at x*
for weak decay only: strong decay slows the clock of its dual variable, and x* cannot be recovered in the time left.
Which lanes are stuck is predicted from the data, before anything is integrated, and the state at the switch-off bounds
the time that a recovery takes. Every model is run by gradient descent and, where it exists, by the flow, over several
draws of the data, since one draw proves little. Distances are read at t = 100, where decay has been off for as long as
it was on, as in the paper, and at t = 550.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from ... import plot
from ...geometry import Report, check, clock, legendre
from ...runs.dataset import Dataset
from ..core.curves import strength_lines
from ..core.experiment import Setting
from ..core.run import RunFolder
from .factors import EQUAL, HORIZON, MODELS, OFF, STRENGTHS, Model, forecast, needed_times, solve
from .planted import PLANTED

SEEDS = {"paper": 20, "quick": 3}
RECOVERED = 1e-3  # the distance to x* that counts as reaching it
FOUND = 0.1  # the |x_i| from which on a planted coordinate counts as found
SHOWN = {"x = w, L1": "proximal descent", "x = m w": "flow", "x = m w v": "flow"}  # the method of the figures

Solved = Mapping[tuple[str, str], Dataset]


def run(folder: RunFolder, setting: Setting) -> None:
    """Every model by every method, each written as soon as it is solved; then the tables, the figures, the claims."""
    seeds = np.array([setting.seed, *(seed for seed in range(SEEDS[setting.preset] + 1) if seed != setting.seed)])
    seeds = seeds[: SEEDS[setting.preset]]
    folder.save_table("forecast", forecasts := forecast_rows(seeds))
    solved, rows = {}, []
    for model in MODELS:
        report = check(model.g, model.h, model.start(3))
        for method, flow in model.methods.items():
            dataset = solve(model, flow, seeds)
            folder.save_dataset(f"depth_{model.depth}_{method.replace(' ', '_')}", dataset)
            solved[model.name, method] = dataset
            rows += table_rows(dataset.isel(seed=0), model, method, setting.seed, forecasts)
        folder.save_table("depth", rows)
        folder.console.print(f"{model.name}: {_verdict(report)}", highlight=False, soft_wrap=True)
    folder.show(f"Data seed {setting.seed}; decay until t = {OFF:g}, end at t = {HORIZON:g}", rows, COLUMNS, "depth")
    folder.console.print(NOTE, soft_wrap=True)
    folder.save_figure("fig8_recovery", recovery_figure(solved), RECOVERY_CAPTION)
    folder.save_figure("fig9_range", range_figure(solved), RANGE_CAPTION)
    spread = [row for (name, method), dataset in solved.items() for row in _seed_rows(dataset, name, method)]
    folder.save_table("seeds", spread)
    folder.show(f"Distance to x* at the end over {len(seeds)} data seeds", spread, SEED_COLUMNS, "seeds")
    _claim_linear(folder, [row for row in rows if row["model"] == "x = w, L1"])
    for method in ("flow", "descent"):
        _claim_deep(folder, method, [row for row in rows if row["method"] == method])
    _claim_clock(folder, rows)
    _claim_forecast(folder, forecasts, solved)
    _claim_over_seeds(folder, solved)


COLUMNS = {
    "model": "model",
    "method": "method",
    "strength": "strength",
    "distance_off": "dist. at off",
    "distance_equal": "at 100",
    "distance_end": "at 550",
    "recovered": "recovered",
    "ratio_end": "L1/L2",
    "first_end": "x_1",
    "missing": "missing",
    "forecast": "forecast",
    "clock": "clock",
    "least_time": "least time",
}
SEED_COLUMNS = {
    "model": "model",
    "method": "method",
    "strength": "strength",
    "smallest": "smallest",
    "median": "median",
    "largest": "largest",
    "recovered": "recovered",
}
NOTE = (
    f"recovered: within {RECOVERED:g} of x*; missing: planted coordinates below {FOUND:g} at the end; forecast: made "
    "before the integration; clock: the rate at which the loss still moves nu at the switch-off; least time: the time "
    "that the slowest planted coordinate needs at least, from its state at the switch-off"
)


def forecast_rows(seeds: Int[np.ndarray, " seeds"]) -> list[dict[str, Any]]:
    """One mapping a depth of 2 or more, a seed and a strength: whether the lane is forecast to be stuck at the end."""
    rows = []
    for model in (model for model in MODELS if model.depth > 1):
        told = forecast(model, seeds)
        stuck = told.is_stuck(np.broadcast_to(STRENGTHS, told.way.shape[:-1]), HORIZON - OFF)
        rows += [
            {
                "model": model.name,
                "seed": int(seed),
                "strength": float(alpha),
                "critical": float(told.critical[i, j].min()),
                "way": float(told.way[i, j].max()),
                "forecast": "stuck" if stuck[i, j] else "not stuck",
            }
            for i, seed in enumerate(seeds)
            for j, alpha in enumerate(STRENGTHS)
        ]
    return rows


def table_rows(
    dataset: Dataset, model: Model, method: str, seed: int, forecasts: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """One mapping a strength, with the columns of depth.csv; depth 1 has no clock and no forecast."""
    told = {row["strength"]: row["forecast"] for row in forecasts if (row["model"], row["seed"]) == (model.name, seed)}
    leaks = _leaks(dataset, model, seed)
    rows = []
    for alpha, leak in zip(STRENGTHS, leaks, strict=True):
        lane = dataset.sel(alpha=alpha)
        off, end = lane.sel(time=OFF), lane.isel(time=-1)
        early = float(lane.distance.sel(time=EQUAL))
        rows.append(
            {
                "model": model.name,
                "method": method,
                "strength": float(alpha),
                "distance_off": float(off.distance),
                "distance_equal": early,
                "distance_end": float(end.distance),
                "recovered": _recovered(early, float(end.distance)),
                "ratio_off": float(off.ratio),
                "ratio_end": float(end.ratio),
                "first_end": float(end.parameters[0]),
                "missing": int(np.sum(np.abs(end.parameters.values[:PLANTED]) < FOUND)),
                "metric": float(off.metric.min()),
                "forecast": told.get(float(alpha), ""),
                **leak,
                "status": str(lane.status.values),
            }
        )
    return rows


def _recovered(early: float, end: float) -> str:
    """The time by which a lane is within `RECOVERED` of x*, in words."""
    if early < RECOVERED and end < RECOVERED:
        return f"by {EQUAL:g}"
    return f"by {HORIZON:g}" if end < RECOVERED else "no"


def _leaks(dataset: Dataset, model: Model, seed: int) -> list[dict[str, Any]]:
    """For each strength the clock at the switch-off, and the least time of the slowest coordinate from there."""
    if model.depth == 1:
        return [{"clock": None, "least_time": None} for _ in STRENGTHS]
    off = dataset.sel(time=OFF)
    needed = needed_times(model, seed, off.parameters.values[:, :PLANTED], off.loss.values)
    R = legendre(model.g, model.h, model.start(PLANTED))
    return [
        {"clock": float(clock(R, -alpha * OFF)), "least_time": float(np.max(each))}
        for alpha, each in zip(STRENGTHS, needed, strict=True)
    ]


def _verdict(report: Report) -> str:
    """The verdict's sentence, and whether Theorem 3.10 applies."""
    verdict = next(text for name, text in report.rows() if name == "verdict")
    return f"{verdict}; Theorem 3.10 {'applies' if report.theorem_3_10 else 'does not apply'}"


def _seed_rows(dataset: Dataset, name: str, method: str) -> list[dict[str, Any]]:
    """Spread of the final distance over data seeds, one mapping a strength."""
    ends = dataset.distance.isel(time=-1)
    return [
        {
            "model": name,
            "method": method,
            "strength": float(alpha),
            "smallest": float(end.min()),
            "median": float(end.median()),
            "largest": float(end.max()),
            "recovered": f"{int((end < RECOVERED).sum())} of {end.size}",
        }
        for alpha, end in ((alpha, ends.sel(alpha=alpha)) for alpha in STRENGTHS)
    ]


def _claim_linear(folder: RunFolder, rows: Sequence[Mapping[str, Any]]) -> None:
    """Records the paper's claims on x = w with L1; `rows` are those of that model."""
    strong = [row for row in rows if row["strength"] >= 0.05]
    distances, ratios = [row["distance_end"] for row in strong], [row["ratio_end"] for row in strong]
    folder.claim(
        "x = w with L1 ends the farther from x*, the stronger its decay was (0.05 to 1)",
        paper="grows",
        ours=", ".join(f"{distance:.2g}" for distance in distances),
        holds=bool(np.all(np.diff(distances) > 0)),
    )
    folder.claim(
        "x = w with L1 ends at an L1/L2 ratio above that of x*",
        paper=f"above {PLANTED**0.5:.3f}",
        ours=f"{min(ratios):.3f} to {max(ratios):.3f}",
        holds=bool(np.min(ratios) > PLANTED**0.5),
    )


def _claim_deep(folder: RunFolder, method: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Records the paper's claims on x = m w and x = m w v; `rows` are those of one method."""
    table = {(row["model"], row["strength"]): row for row in rows}
    ends = {key: row["distance_end"] for key, row in table.items()}
    strong = [table["x = m w", alpha] for alpha in (0.3, 1.0)]
    before, after = ([row[key] for row in strong] for key in ("distance_off", "distance_end"))
    folder.claim(
        f"x = m w reaches x* for strong decay (0.3 and 1), and only after the switch-off, by {method}",
        paper=f"within {RECOVERED:g}",
        ours=f"{after[0]:.1e}, {after[1]:.1e}; at t = {OFF:g} {before[0]:.2f}, {before[1]:.2f}",
        holds=bool(np.max(after) < RECOVERED and np.min(before) > 0.5),
    )
    weak = ends["x = m w v", 0.05], ends["x = m w v", 0.1]
    folder.claim(
        f"x = m w v reaches x* for weaker decay (0.05 and 0.1), by {method}",
        paper=f"within {RECOVERED:g}",
        ours=f"{weak[0]:.1e}, {weak[1]:.1e}",
        holds=bool(np.max(weak) < RECOVERED),
    )
    stuck = table["x = m w v", 0.3]
    first, moved, needed = stuck["first_end"], abs(stuck["ratio_end"] - stuck["ratio_off"]), stuck["least_time"]
    folder.claim(
        f"x = m w v is stuck at strength 0.3: x_1 is near neither 0 nor 1 and L1/L2 does not move, by {method}",
        paper="stuck",
        ours=f"x_1 = {first:.3f}, L1/L2 moves by {moved:.2g}",
        holds=min(abs(first), abs(first - 1)) > FOUND and moved < FOUND,
    )
    left = HORIZON - OFF
    folder.claim(
        f"At strength 0.3 x = m w v cannot recover x* in the {left:g} time units left, by {method}",
        paper="range shrinking",
        ours=f"at least {needed:.1e} time units are needed",
        holds=bool(needed > left and stuck["recovered"] == "no"),
    )
    within = [row for row in rows if row["least_time"] is not None and row["recovered"] != "no"]
    folder.claim(
        f"Every lane that recovers x* takes at least the least time told at its switch-off, by {method}",
        paper="-",
        ours=f"the largest least time of the {len(within)} lanes that recover is {_largest(within):.3g}",
        holds=bool(within and _largest(within) <= left),
    )


def _largest(rows: Sequence[Mapping[str, Any]]) -> float:
    return max((row["least_time"] for row in rows), default=np.nan)


def _claim_clock(folder: RunFolder, rows: Sequence[Mapping[str, Any]]) -> None:
    """Compares the times that the recovery of x = m w v needs at strengths 0.1 and 0.3, and the paper's setting."""
    table = {(row["model"], row["method"], row["strength"]): row for row in rows}
    weak, strong = (table["x = m w v", "flow", alpha]["least_time"] for alpha in (0.1, 0.3))
    folder.claim(
        "Strength 0.3 instead of 0.1 multiplies the time that x = m w v needs at least by 1e11 or more",
        paper="-",
        ours=f"{weak:.2g} and {strong:.2g} time units",
        holds=bool(strong / weak >= 1e11),
    )
    by_equal = [row for row in rows if row["model"] == "x = m w" and row["recovered"] == f"by {EQUAL:g}"]
    three = [row for row in rows if row["model"] == "x = m w v" and row["recovered"] == f"by {EQUAL:g}"]
    folder.claim(
        f"At t = {EQUAL:g}, with as much time without decay as with it, x = m w is at x* for a stronger decay than any "
        "from which x = m w v recovers",
        paper="Figs. 8, 9",
        ours=f"x = m w at {_strengths(by_equal)}; x = m w v at {_strengths(three)}",
        holds=max((row["strength"] for row in by_equal), default=0.0)
        > max((row["strength"] for row in three), default=0.0),
    )


def _strengths(rows: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(sorted({f"{row['strength']:g}" for row in rows})) or "no strength"


def _claim_forecast(folder: RunFolder, forecasts: Sequence[Mapping[str, Any]], solved: Solved) -> None:
    """Counts the lanes on which the forecast of depth 3 is what the flow does: stuck means a missing coordinate."""
    model = "x = m w v"
    ends = solved[model, "flow"].parameters.isel(time=-1)
    right = [
        (row["forecast"] == "stuck")
        == bool(np.any(ends.sel(seed=row["seed"], alpha=row["strength"]).values[:PLANTED] < FOUND))
        for row in forecasts
        if row["model"] == model
    ]
    folder.claim(
        "The critical strength of each coordinate alone, and the clock, tell before the integration which lanes of "
        "x = m w v are stuck, in 9 of 10",
        paper="-",
        ours=f"right on {sum(right)} of {len(right)} lanes",
        holds=sum(right) >= 0.9 * len(right),
    )


def _claim_over_seeds(folder: RunFolder, solved: Solved) -> None:
    """Counts the draws of the data on which each claim holds, by the method of the figures."""
    ends = {name: solved[name, method].isel(time=-1) for name, method in SHOWN.items()}
    distance = ends["x = w, L1"].distance.sel(alpha=[0.05, 0.1, 0.3, 1.0]).values
    two, three = ends["x = m w"].distance, ends["x = m w v"].distance
    first = ends["x = m w v"].parameters.sel(alpha=0.3).values[:, 0]
    counts = {
        "x = w with L1 ends farther for stronger decay": np.all(np.diff(distance, axis=1) > 0, axis=1),
        "x = m w ends within 1e-3 of x* at 0.3 and 1": np.all(two.sel(alpha=[0.3, 1.0]).values < RECOVERED, axis=1),
        "x = m w ends within 0.03 of x* at 0.3 and 1": np.all(two.sel(alpha=[0.3, 1.0]).values < 0.03, axis=1),
        "x = m w v reaches x* at 0.05": three.sel(alpha=0.05).values < RECOVERED,
        "x = m w v reaches x* at 0.1": three.sel(alpha=0.1).values < RECOVERED,
        "x = m w v is stuck at 0.3, farther than 1 from x*": three.sel(alpha=0.3).values > 1,
        "x = m w v at 0.3 ends with x_1 near neither 0 nor 1": np.minimum(np.abs(first), np.abs(first - 1)) > FOUND,
    }
    for statement, shown in counts.items():
        ours = f"on {int(shown.sum())} of {shown.size}"
        folder.claim(f"{statement}, on every data seed", paper="one seed", ours=ours, holds=bool(shown.all()))


RECOVERY_CAPTION = (
    "Figs. 8 and 9: the models that approach x* after the switch-off, and the strengths from which they do."
)
RANGE_CAPTION = (
    "Fig. 9. The metric J J^T is the speed at which x can still move. At depth 3 decay slows the clock of the dual "
    "variable by e^(-2 alpha t): where the time that is left is shorter than the time this clock needs, x keeps the "
    "value it had at the switch-off."
)
LABELS = [f"{alpha:g}" for alpha in STRENGTHS]
TIME = "time t"
QUANTITIES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("distance", r"$|x - x^*|$", {"y_log": True, "floor": 1e-5}),
    ("ratio", r"$|x|_1\ /\ |x|_2$", {"level": PLANTED**0.5}),
)


def recovery_figure(solved: Solved) -> Any:
    """Figs. 8 and 9: distance to x* and L1/L2 over time, a row a model, on the first data seed."""
    panels = []
    for name, method in SHOWN.items():
        dataset = solved[name, method].isel(seed=0)
        panels += [
            plot.Panel(
                strength_lines(dataset, variable, STRENGTHS, LABELS),
                f"{name} ({method})",
                TIME,
                label,
                events=[OFF],
                **style,
            )
            for variable, label, style in QUANTITIES
        ]
    return plot.line_panels(panels, f"Decay switched off at t = {OFF:g} (dotted); dashed: L1/L2 of x*", "strength")


def range_figure(solved: Solved) -> Any:
    """Range: the first coordinate, and the smallest metric among the planted ones, of depth 2 and depth 3."""
    panels = []
    for name in ("x = m w", "x = m w v"):
        dataset = solved[name, SHOWN[name]].isel(seed=0)
        first = dataset.assign(first=dataset.parameters[..., 0], least=dataset.metric.min("metric_0"))
        panels += [
            plot.Panel(
                strength_lines(first, "least", STRENGTHS, LABELS),
                f"{name}: metric",
                TIME,
                r"smallest $(J J^T)_{ii}$, planted i",
                y_log=True,
                events=[OFF],
            ),
            plot.Panel(
                strength_lines(first, "first", STRENGTHS, LABELS),
                f"{name}: x",
                TIME,
                "first coordinate",
                events=[OFF],
                level=1.0,
            ),
        ]
    return plot.line_panels(panels, "Range: decay slows the clock of depth 3, and x* comes back too late", "strength")
