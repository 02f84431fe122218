"""Depth (the paper's Figs. 8 and 9): the effect of a decay that is switched off on x = w, x = m w and x = m w v.

Sparse regression with decay until t_off and none after. x = w with L1 moves away from its sparse vector after the
switch-off. x = m w with weight decay ends at x*, and only after the switch-off. x = m w v with weight decay ends at x*
for weak decay only: strong decay slows the clock of its dual variable, and x* cannot be recovered in the time left.
Which lanes are stuck is predicted from the data, before anything is integrated, and the state at the switch-off bounds
the time that a recovery takes. Every model is run by gradient descent and, where it exists, by the flow, over several
draws of the data, since one draw proves little.

The paper spends as many steps with decay as without it. So every lane runs twice up to t = 550: with decay until
t = 275, and with decay until t = 50, where the weights have more time to come back. Distances of the second are also
read at t = 100, where decay has been off for as long as it was on. All other numbers of this setting are recovered.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from ...geometry import Report, check, clock, legendre
from ...problem import WeightDecay
from ...runs.dataset import Dataset
from ..core.experiment import Setting
from ..core.run import RunFolder
from .depth_claims import (
    FOUND,
    RECOVERED,
    SHOWN,
    SPLITS,
    claim_clock,
    claim_deep,
    claim_forecast,
    claim_linear,
    claim_over_seeds,
    claim_verdict,
)
from .depth_figures import save_figures
from .factors import HORIZON, MODELS, OFF, STRENGTHS, Model, forecast, needed_times, solve
from .planted import PLANTED

SEEDS = {"paper": 20, "quick": 2}
METHODS = {"paper": (), "quick": tuple(SHOWN.values())}  # the quick preset has those of the figures, the other has all


def run(folder: RunFolder, setting: Setting) -> None:
    """Every model by every method, each written as soon as it is solved; then the tables, the figures, the claims."""
    seeds = np.array([setting.seed, *(seed for seed in range(SEEDS[setting.preset] + 1) if seed != setting.seed)])
    seeds = seeds[: SEEDS[setting.preset]]
    folder.save_table("forecast", forecasts := forecast_rows(seeds))
    solved, rows = {}, []
    for model in MODELS:
        h = WeightDecay()  # also of x = w, whose L1 is not smooth: the proximal steps take it as it is
        report = check(model.g, h, model.start(3))
        for method, flow in model.methods.items():
            if method not in (METHODS[setting.preset] or model.methods):
                continue
            dataset = solve(model, flow, seeds)
            folder.save_dataset(f"depth_{model.depth}_{method.replace(' ', '_')}", dataset)
            solved[model.name, method] = dataset
            for t_off in SPLITS:
                mine = dataset.isel(seed=0).sel(t_off=t_off)
                rows += table_rows(mine, model, method, setting.seed, forecasts if t_off == OFF else ())
        folder.save_table("depth", rows)
        folder.console.print(f"{model.name}: {_verdict(report)}", highlight=False, soft_wrap=True)
        claim_verdict(folder, model.depth, report)
    for t_off, split in SPLITS.items():
        chosen = [row for row in rows if row["t_off"] == t_off]
        folder.show(f"Data seed {setting.seed}; {split} (recovered)", chosen, COLUMNS, "depth")
    folder.console.print(NOTE, soft_wrap=True)
    save_figures(folder, solved)
    spread = [row for (name, method), dataset in solved.items() for row in _seed_rows(dataset, name, method)]
    folder.save_table("seeds", spread)
    folder.show(f"Distance to x* at the end over {len(seeds)} data seeds", spread, SEED_COLUMNS, "seeds")
    for t_off in SPLITS:
        claim_linear(folder, t_off, [row for row in rows if row["model"] == "x = w, L1" and row["t_off"] == t_off])
        for method in ("flow", "descent"):
            if mine := [row for row in rows if (row["method"], row["t_off"]) == (method, t_off)]:
                claim_deep(folder, t_off, method, mine)
    early = [row for row in rows if row["t_off"] == OFF]
    claim_clock(folder, early)
    claim_forecast(folder, forecasts, solved)
    claim_over_seeds(folder, solved)


COLUMNS = {
    "model": "model",
    "method": "method",
    "strength": "strength",
    "distance_off": "dist. at off",
    "distance_equal": "as long off",
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
    "t_off": "off at t",
    "strength": "strength",
    "smallest": "smallest",
    "median": "median",
    "largest": "largest",
    "recovered": "recovered",
}
NOTE = (
    "as long off: at the time at which decay has been off for as long as it was on; recovered: within "
    f"{RECOVERED:g} of x*; missing: planted coordinates below {FOUND:g} at the end; forecast: made "
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
    t_off = float(dataset.t_off)
    leaks = _leaks(dataset, model, seed)
    rows = []
    for alpha, leak in zip(STRENGTHS, leaks, strict=True):
        lane = dataset.sel(alpha=alpha)
        off, end = lane.sel(time=t_off), lane.isel(time=-1)
        early = float(lane.distance.sel(time=2 * t_off))
        rows.append(
            {
                "model": model.name,
                "method": method,
                "strength": float(alpha),
                "t_off": t_off,
                "distance_off": float(off.distance),
                "distance_equal": early,
                "distance_end": float(end.distance),
                "recovered": _recovered(early, float(end.distance), 2 * t_off),
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


def _recovered(early: float, end: float, equal: float) -> str:
    """The time by which a lane is within `RECOVERED` of x*, in words; `early`: its distance at the time `equal`."""
    if early < RECOVERED and end < RECOVERED:
        return f"by {equal:g}"
    return f"by {HORIZON:g}" if end < RECOVERED else "no"


def _leaks(dataset: Dataset, model: Model, seed: int) -> list[dict[str, Any]]:
    """For each strength the clock at the switch-off, and the least time of the slowest coordinate from there."""
    if model.depth == 1:
        return [{"clock": None, "least_time": None} for _ in STRENGTHS]
    t_off = float(dataset.t_off)
    off = dataset.sel(time=t_off)
    needed = needed_times(model, seed, off.parameters.values[:, :PLANTED], off.loss.values, t_off)
    R = legendre(model.g, model.h, model.start(PLANTED))
    return [
        {"clock": float(clock(R, -alpha * t_off)), "least_time": float(np.max(each))}
        for alpha, each in zip(STRENGTHS, needed, strict=True)
    ]


def _verdict(report: Report) -> str:
    """The verdict's sentence, and whether Theorem 3.10 applies."""
    verdict = next(text for name, text in report.rows() if name == "verdict")
    return f"{verdict}; Theorem 3.10 {'applies' if report.theorem_3_10 else 'does not apply'}"


def _seed_rows(dataset: Dataset, name: str, method: str) -> list[dict[str, Any]]:
    """Spread of the final distance over data seeds, one mapping a strength and switch-off time."""
    ends = dataset.distance.isel(time=-1)
    return [
        {
            "model": name,
            "method": method,
            "t_off": t_off,
            "strength": float(alpha),
            "smallest": float(end.min()),
            "median": float(end.median()),
            "largest": float(end.max()),
            "recovered": f"{int((end < RECOVERED).sum())} of {end.size}",
        }
        for t_off, alpha, end in ((t, alpha, ends.sel(alpha=alpha, t_off=t)) for t in SPLITS for alpha in STRENGTHS)
    ]
