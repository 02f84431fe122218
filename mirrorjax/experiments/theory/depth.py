"""Depth (the paper's Figs. 8 and 9): the effect of a decay that is switched off on x = w, x = m w and x = m w v.

Sparse regression with decay until t = 50 and none after. x = w with L1 moves away from its sparse vector after the
switch-off. x = m w with weight decay ends at x*, and only after the switch-off. x = m w v with weight decay ends at x*
for weak decay only: strong decay makes its metric J J^T vanish, and x* cannot be recovered in the time left. Every
model is run by gradient descent and, where it exists, by the flow, over several draws of the data, since one draw
proves little.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ... import plot
from ...geometry import Report, check
from ...runs.dataset import Dataset
from ..core.curves import strength_lines
from ..core.experiment import Setting
from ..core.run import RunFolder
from .factors import HORIZON, MODELS, OFF, STRENGTHS, Model, least_time, solve
from .planted import PLANTED, sparse_regression

SEEDS = {"paper": 20, "quick": 3}
RECOVERED = 1e-3  # the distance to x* that counts as reaching it
FOUND = 0.1  # the |x_i| from which on a planted coordinate counts as found
SHOWN = {"x = w, L1": "proximal descent", "x = m w": "flow", "x = m w v": "flow"}  # the method of the figures

Solved = Mapping[tuple[str, str], Dataset]


def run(folder: RunFolder, setting: Setting) -> None:
    """Every model by every method, each written as soon as it is solved; then the tables, the figures, the claims."""
    seeds = np.array([setting.seed, *(seed for seed in range(SEEDS[setting.preset] + 1) if seed != setting.seed)])
    seeds = seeds[: SEEDS[setting.preset]]
    solved, rows = {}, []
    for model in MODELS:
        report = check(model.g, model.h, model.start(3))
        for method, flow in model.methods.items():
            dataset = solve(model, flow, seeds)
            folder.save_dataset(f"depth_{model.depth}_{method.replace(' ', '_')}", dataset)
            solved[model.name, method] = dataset
            rows += table_rows(dataset.isel(seed=0), model, method, setting.seed)
        folder.save_table("depth", rows)
        folder.console.print(f"{model.name}: {_verdict(report)}", highlight=False, soft_wrap=True)
    folder.show(f"Data seed {setting.seed}; decay until t = {OFF:g}, end at t = {HORIZON:g}", rows, COLUMNS, "depth")
    folder.console.print(LEAST_TIME_NOTE, soft_wrap=True)
    folder.save_figure("fig8_recovery", recovery_figure(solved), RECOVERY_CAPTION)
    folder.save_figure("fig9_range", range_figure(solved), RANGE_CAPTION)
    spread = [row for (name, method), dataset in solved.items() for row in _seed_rows(dataset, name, method)]
    folder.save_table("seeds", spread)
    folder.show(f"Distance to x* at the end over {len(seeds)} data seeds", spread, SEED_COLUMNS, "seeds")
    _claim_linear(folder, [row for row in rows if row["model"] == "x = w, L1"])
    for method in ("flow", "descent"):
        _claim_deep(folder, method, [row for row in rows if row["method"] == method])
    _claim_over_seeds(folder, solved)


COLUMNS = {
    "model": "model",
    "method": "method",
    "strength": "strength",
    "distance_off": "dist. at off",
    "distance_end": "at end",
    "ratio_end": "L1/L2",
    "first_end": "x_1",
    "missing": "missing",
    "metric": "J J^T",
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
LEAST_TIME_NOTE = (
    f"missing: planted coordinates below {FOUND:g} at the end; J J^T: the smallest metric of a planted one at the "
    "switch-off; least time: what a missing one needs to reach 1 at the steepest slope it felt after the switch-off"
)


def table_rows(dataset: Dataset, model: Model, method: str, seed: int) -> list[dict[str, Any]]:
    """One mapping a strength, with the columns of depth.csv."""
    objective = sparse_regression(seed).objective
    rows = []
    for alpha in STRENGTHS:
        lane = dataset.sel(alpha=alpha)
        off, end = lane.sel(time=OFF), lane.isel(time=-1)
        after = jnp.asarray(lane.parameters.sel(time=slice(OFF, None)).values)
        steepest = np.abs(jax.vmap(objective.gradient)(after)[:, :PLANTED]).max(axis=0)
        missing = np.abs(end.parameters.values[:PLANTED]) < FOUND
        needed = least_time(off.weight_size.values[missing], steepest[missing], model.depth)
        rows.append(
            {
                "model": model.name,
                "method": method,
                "strength": float(alpha),
                "distance_off": float(off.distance),
                "distance_end": float(end.distance),
                "ratio_off": float(off.ratio),
                "ratio_end": float(end.ratio),
                "first_end": float(end.parameters[0]),
                "missing": int(missing.sum()),
                "metric": float(off.metric.min()),
                "least_time": float(np.min(needed)) if missing.any() else None,
                "status": str(lane.status.values),
            }
        )
    return rows


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
    folder.claim(
        f"x = m w v cannot recover x* in the {HORIZON - OFF:g} time units left at strength 0.3, by {method}",
        paper="range shrinking",
        ours="no coordinate is missing"
        if needed is None
        else f"J J^T is {stuck['metric']:.1e}, so at least {needed:.1e} time units are needed",
        holds=needed is not None and needed > HORIZON - OFF,
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
    "Fig. 9. The metric J J^T is the speed at which x can still move. Where the metric does not grow back in time, x "
    "keeps the value it had at the switch-off."
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
    return plot.line_panels(panels, "Range: depth 3 loses the metric that the recovery of x* needs", "strength")
