"""The figures of `depth.py`: the paper's Figs. 8 and 9, for both splits of the time."""

from typing import Any

from ... import plot
from ..core.curves import strength_lines
from ..core.run import RunFolder
from .depth_claims import ENDINGS, SHOWN, SPLITS, Solved
from .factors import HALF, OFF, STRENGTHS
from .planted import PLANTED


def save_figures(folder: RunFolder, solved: Solved) -> None:
    """Writes Figs. 8 and 9 with as much time without decay as with it, and both with an early switch-off."""
    for t_off, setting in ((HALF, EQUAL_SETTING), (OFF, EARLY_SETTING)):
        mine = {key: dataset.sel(t_off=t_off) for key, dataset in solved.items()}
        folder.save_figure(f"fig8_recovery{ENDINGS[t_off]}", recovery_figure(mine, t_off), RECOVERY_CAPTION + setting)
        folder.save_figure(f"fig9_range{ENDINGS[t_off]}", range_figure(mine, t_off), RANGE_CAPTION + setting)


EQUAL_SETTING = f" As many steps with decay as without it, as in the paper; {SPLITS[HALF]} (recovered)."
EARLY_SETTING = f" Another split than the paper's: {SPLITS[OFF]}, which leaves strong decay the time to come back."
METRIC_FLOOR = 1e-60  # far below what can still move x
RECOVERY_CAPTION = (
    "Figs. 8 and 9: the models that approach x* after the switch-off, and the strengths from which they do. The curves "
    "of strengths that have taken x to 0 lie on each other until they come back; L1/L2 ends where x has underflown."
)
RANGE_CAPTION = (
    "Fig. 9. The metric J J^T is the speed at which x can still move. At depth 3 decay slows the clock of the dual "
    "variable by e^(-2 alpha t): where the time that is left is shorter than the time this clock needs, x keeps the "
    f"value it had at the switch-off. A metric below {METRIC_FLOOR:g} is not drawn."
)
LABELS = [f"{alpha:g}" for alpha in STRENGTHS]
TIME = "time t"
QUANTITIES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("distance", r"$|x - x^*|$", {"y_log": True, "floor": 1e-5}),
    ("ratio", r"$|x|_1\ /\ |x|_2$", {"level": PLANTED**0.5}),
)


def recovery_figure(solved: Solved, t_off: float) -> Any:
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
                events=[t_off],
                **style,
            )
            for variable, label, style in QUANTITIES
        ]
    return plot.line_panels(panels, f"Decay switched off at t = {t_off:g} (dotted); dashed: L1/L2 of x*", "strength")


def range_figure(solved: Solved, t_off: float) -> Any:
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
                events=[t_off],
                floor=METRIC_FLOOR,
            ),
            plot.Panel(
                strength_lines(first, "first", STRENGTHS, LABELS),
                f"{name}: x",
                TIME,
                "first coordinate",
                events=[t_off],
                level=1.0,
            ),
        ]
    return plot.line_panels(panels, "Range: decay slows the clock of depth 3, and x* comes back too late", "strength")
