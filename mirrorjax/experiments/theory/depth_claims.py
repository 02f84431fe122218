"""The claims of `depth.py`: those of the paper's text on Figs. 8 and 9, and those on the clock of the dual variable."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...geometry import Report
from ...runs.dataset import Dataset
from ..core.run import RunFolder
from .factors import EQUAL, HALF, HORIZON, OFF
from .planted import PLANTED

RECOVERED = 1e-3  # the distance to x* that counts as reaching it
FOUND = 0.1  # the |x_i| from which on a planted coordinate counts as found
SHOWN = {"x = w, L1": "proximal descent", "x = m w": "flow", "x = m w v": "flow"}  # the method of the figures
SPLITS = {OFF: f"{OFF:g} on, {HORIZON - OFF:g} off", HALF: f"{HALF:g} on, {HORIZON - HALF:g} off"}

KEYS = {OFF: " early", HALF: " equal"}  # the ends of keys: the split of the time
ENDINGS = {OFF: "_early_off", HALF: ""}  # the ends of the names of figures
OVER_SEEDS = "over-seeds"

Solved = Mapping[tuple[str, str], Dataset]


VERDICTS = {
    1: ("depth-1-does-not-commute", "x = w with weight decay does not commute", "Corollary D.1"),
    2: ("depth-2-commutes", "x = m w with weight decay commutes", "Theorem 3.6"),
    3: ("depth-3-does-not-commute", "x = m w v with weight decay does not commute", "Theorem D.2"),
}


def claim_verdict(folder: RunFolder, depth: int, report: Report) -> None:
    """Records which depth meets the condition of Theorem 3.6, by the brackets that `check` measures."""
    key, statement, where = VERDICTS[depth]
    verdict = next(text for name, text in report.rows() if name == "verdict")
    folder.claim(statement, key=key, paper=where, ours=verdict, holds=bool(report.theorem_3_6 == (depth == 2)))


def claim_linear(folder: RunFolder, t_off: float, rows: Sequence[Mapping[str, Any]]) -> None:
    """Records the paper's claims on x = w with L1; `rows` are those of that model and switch-off time."""
    split, part, see = SPLITS[t_off], KEYS[t_off], (f"fig8_recovery{ENDINGS[t_off]}", "depth")
    strong = [row for row in rows if row["strength"] >= 0.05]
    distances, ratios = [row["distance_end"] for row in strong], [row["ratio_end"] for row in strong]
    folder.claim(
        f"x = w with L1 ends the farther from x*, the stronger its decay was (0.05 to 1; {split})",
        key="linear-distance-grows" + part,
        paper="grows",
        ours=", ".join(f"{distance:.2g}" for distance in distances),
        holds=bool(np.all(np.diff(distances) > 0)),
        see=see,
    )
    folder.claim(
        f"x = w with L1 ends at an L1/L2 ratio above that of x* ({split})",
        key="linear-ratio-above" + part,
        paper=f"above {PLANTED**0.5:.3f}",
        ours=f"{min(ratios):.3f} to {max(ratios):.3f}",
        holds=bool(np.min(ratios) > PLANTED**0.5),
        see=see,
    )


def claim_deep(folder: RunFolder, t_off: float, method: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Records the paper's claims on x = m w and x = m w v; `rows` are those of one method and switch-off time."""
    split, part = f"by {method}; {SPLITS[t_off]}", KEYS[t_off]
    drawn = method == SHOWN["x = m w"]
    recovery, ranges = ([f"{name}{ENDINGS[t_off]}"] if drawn else [] for name in ("fig8_recovery", "fig9_range"))
    table = {(row["model"], row["strength"]): row for row in rows}
    ends = {key: row["distance_end"] for key, row in table.items()}
    strong = [table["x = m w", alpha] for alpha in (0.3, 1.0)]
    before, after = ([row[key] for row in strong] for key in ("distance_off", "distance_end"))
    folder.claim(
        f"x = m w reaches x* for strong decay (0.3 and 1), and only after the switch-off ({split})",
        key="depth-2-reaches" + part,
        paper=f"within {RECOVERED:g}",
        ours=f"{after[0]:.1e}, {after[1]:.1e}; at t = {t_off:g} {before[0]:.2f}, {before[1]:.2f}",
        holds=bool(np.max(after) < RECOVERED and np.min(before) > 0.5),
        see=(*recovery, "depth"),
    )
    weak = ends["x = m w v", 0.05], ends["x = m w v", 0.1]
    folder.claim(
        f"x = m w v reaches x* for weaker decay (0.05 and 0.1; {split})",
        key="depth-3-weak-reaches" + part,
        paper=f"within {RECOVERED:g}",
        ours=f"{weak[0]:.1e}, {weak[1]:.1e}",
        holds=bool(np.max(weak) < RECOVERED),
        see=(*recovery, "depth"),
    )
    stuck = table["x = m w v", 0.3]
    first, moved, needed = stuck["first_end"], abs(stuck["ratio_end"] - stuck["ratio_off"]), stuck["least_time"]
    folder.claim(
        f"x = m w v is stuck at strength 0.3: x_1 is near neither 0 nor 1 and L1/L2 does not move ({split})",
        key="depth-3-stuck" + part,
        paper="stuck",
        ours=f"x_1 = {first:.3f}, L1/L2 moves by {moved:.2g}",
        holds=min(abs(first), abs(first - 1)) > FOUND and moved < FOUND,
        see=(*recovery, *ranges, "depth"),
    )
    left = HORIZON - t_off
    folder.claim(
        f"At strength 0.3 x = m w v cannot recover x* in the {left:g} time units left ({split})",
        key="depth-3-cannot-recover" + part,
        paper="range shrinking",
        ours=f"at least {needed:.1e} time units are needed",
        holds=bool(needed > left and stuck["recovered"] == "no"),
        see=(*ranges, "depth"),
    )
    within = [row for row in rows if row["least_time"] is not None and row["recovered"] != "no"]
    folder.claim(
        f"Every lane that recovers x* takes at least the least time told at its switch-off ({split})",
        paper="-",
        ours=f"the largest least time of the {len(within)} lanes that recover is {_largest(within):.3g}",
        holds=bool(within and _largest(within) <= left),
        see=("depth",),
    )


def _largest(rows: Sequence[Mapping[str, Any]]) -> float:
    return max((row["least_time"] for row in rows), default=np.nan)


def claim_clock(folder: RunFolder, rows: Sequence[Mapping[str, Any]]) -> None:
    """Compares the times that the recovery of x = m w v needs at strengths 0.1 and 0.3, and what is recovered early.

    `rows` are those that are switched off at `OFF`.
    """
    table = {(row["model"], row["method"], row["strength"]): row for row in rows}
    weak, strong = (table["x = m w v", "flow", alpha]["least_time"] for alpha in (0.1, 0.3))
    folder.claim(
        "Strength 0.3 instead of 0.1 multiplies the time that x = m w v needs at least by 1e11 or more",
        paper="-",
        ours=f"{weak:.2g} and {strong:.2g} time units",
        holds=bool(strong / weak >= 1e11),
        see=("depth",),
    )
    by_equal = [row for row in rows if row["model"] == "x = m w" and row["recovered"] == f"by {EQUAL:g}"]
    three = [row for row in rows if row["model"] == "x = m w v" and row["recovered"] == f"by {EQUAL:g}"]
    folder.claim(
        f"At t = {EQUAL:g}, with as much time without decay as with it, x = m w is at x* for a stronger decay than any "
        "from which x = m w v recovers",
        key="depth-2-from-stronger",
        paper="Figs. 8, 9",
        ours=f"x = m w at {_strengths(by_equal)}; x = m w v at {_strengths(three)}",
        holds=max((row["strength"] for row in by_equal), default=0.0)
        > max((row["strength"] for row in three), default=0.0),
        see=(f"fig8_recovery{ENDINGS[OFF]}", "depth"),
    )


def _strengths(rows: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(sorted({f"{row['strength']:g}" for row in rows})) or "no strength"


def claim_forecast(folder: RunFolder, forecasts: Sequence[Mapping[str, Any]], solved: Solved) -> None:
    """Counts the lanes on which the forecast of depth 3 is what the flow does: stuck means a missing coordinate."""
    model = "x = m w v"
    ends = solved[model, "flow"].parameters.sel(t_off=OFF).isel(time=-1)
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
        see=("forecast", "depth"),
    )


def claim_over_seeds(folder: RunFolder, solved: Solved) -> None:
    """Counts the draws of the data on which each claim holds, by the method of the figures, switched off at `OFF`."""
    ends = {name: solved[name, method].sel(t_off=OFF).isel(time=-1) for name, method in SHOWN.items()}
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
        full = f"{statement}, on every data seed"
        see = () if "x_1" in statement else ("seeds",)  # the table has distances alone
        folder.claim(full, key=OVER_SEEDS, paper="one seed", ours=ours, holds=bool(shown.all()), see=see)
