"""The figures of `matrix_sensing.py`: the paper's Figs. 3, 5, 6 and 7, the schedules, and the heat map."""

from collections.abc import Mapping
from typing import Any

from ... import plot
from ...runs.dataset import Dataset
from ..core.run import RunFolder

STRENGTHS = {
    "none": "no decay",
    "constant 0.01": "0.01, never off",
    "constant 0.02": "0.02, off at 625",
    "constant 0.2": "0.2, off at 62.5",
    "constant 2": "2, off at 6.25",
    "constant 20": "20, off at 0.625",
}
SHAPES = {
    "constant 0.01": "constant, never off",
    "constant 0.02": "constant, off at 625",
    "linear decay": "linear to 625",
    "cosine decay": "cosine to 625",
}
TIME = "time t (gradient flow)"
LOG_TIME = f"{TIME}, logarithmic"
ERROR_LABEL = r"$|X - X^*|_F\ /\ |X^*|_F$"
LOSS_FLOOR, ERROR_FLOOR = 1e-11, 3e-6  # just above what the solver's tolerance leaves, for every preset


def save_figures(folder: RunFolder, flow: Dataset, baseline: Dataset) -> None:
    """Writes the figures of the paper, under its numbers, and the one of the schedules.

    **Arguments:** `flow`: the schedules of Table 2 by X = U U^T; `baseline`: the same by X itself with an L1 term.
    """
    folder.save_figure("fig3_reparameterization", reparameterization_figure(flow, baseline), REPARAMETERIZATION)
    folder.save_figure("fig5_loss_and_error", recovery_figure(flow), RECOVERY)
    folder.save_figure("fig6_nuclear_norm", nuclear_norm_figure(flow), NUCLEAR_NORM)
    folder.save_figure("fig7_late_recovery", late_recovery_figure(flow), LATE)
    folder.save_figure("schedules", schedules_figure(flow), SCHEDULES)


REPARAMETERIZATION = (
    "Fig. 3. To look for: X = U U^T ends at the planted matrix where its decay was switched off; X itself with an L1 "
    "term does not, whatever the schedule. The paper: nuclear norm 1.00 after every switch-off, 0.93 under constant "
    "decay. Curves on the right lie on each other at the end, since a linear X forgets its decay."
)
RECOVERY = (
    "Fig. 5. To look for: the loss falls below the floor in every run whose decay ends, and the error there only. The "
    "paper's times to train loss: 716 (0.02), 209 (0.2), 209 (2), 239 (20). The curves of 2 and 20 lie on each other "
    "from about t = 10 on, since both have spent 12.5 by then."
)
NUCLEAR_NORM = (
    "Fig. 6. To look for: on which side of the planted norm (dashed) each run ends. The paper: 0.93 for 0.01 that is "
    "never off, 1.00 for all that are switched off."
)
LATE = "Fig. 7. To look for: how long after each switch-off (dotted) the error falls, on logarithmic time."
SCHEDULES = (
    "No figure of the paper; its Table 2 has the numbers. One total of 12.5 in several shapes ends at one matrix, once "
    "off. The paper's times to train loss: 661 (linear), 624 (cosine), 716 (constant)."
)
HEAT = (
    "No figure of the paper. The error at the end in each cell; the total spent, strength times time, is 12.5 along "
    "the dashed line, as in Table 2."
)


def _lines(dataset: Dataset, variable: str, shown: Mapping[str, str], positive: bool = False) -> list[plot.Line]:
    """One curve for each named schedule; `positive` starts at the first save time after 0, for logarithmic axes."""
    names, lines = dataset.schedule.values.tolist(), []
    for name, label in shown.items():
        lane = dataset.isel(lane=names.index(name))
        if positive:
            lane = lane.isel(time=slice(1, None))
        style = "--" if name in ("none", "constant 0.01") else "-"
        lines.append(plot.Line(lane.time.values, lane[variable].values, label, style))
    return lines


def _error_panel(flow: Dataset, shown: Mapping[str, str], title: str = "Reconstruction error") -> plot.Panel:
    return plot.Panel(_lines(flow, "rel_error", shown), title, TIME, ERROR_LABEL, y_log=True, floor=ERROR_FLOOR)


def reparameterization_figure(flow: Dataset, baseline: Dataset) -> Any:
    """Fig. 3: the reconstruction error over time of X = U U^T with weight decay, and of X itself with L1."""
    by_weights = _error_panel(flow, STRENGTHS, "X = U U^T, weight decay")
    linear = plot.Panel(_lines(baseline, "rel_error", STRENGTHS), "X itself, L1", TIME, ERROR_LABEL)
    return plot.line_panels([by_weights, linear], "The reparameterization keeps what decay did", "strength of decay")


def recovery_figure(flow: Dataset) -> Any:
    """Fig. 5: train loss and reconstruction error over time."""
    panels = [
        plot.Panel(_lines(flow, "loss", STRENGTHS), "Train loss", TIME, "f(X)", y_log=True, floor=LOSS_FLOOR),
        _error_panel(flow, STRENGTHS),
    ]
    return plot.line_panels(panels, "Switching weight decay off recovers the low-rank matrix", "strength of decay")


def nuclear_norm_figure(flow: Dataset) -> Any:
    """Fig. 6: nuclear norm over time; the planted matrix has 1."""
    lines = _lines(flow, "nuclear_norm", STRENGTHS, positive=True)
    panel = plot.Panel(
        lines, "Dashed line: the planted matrix", LOG_TIME, "nuclear norm of X", x_log=True, y_log=True, level=1.0
    )
    return plot.line_panels([panel], "Nuclear norm during and after decay", "strength of decay")


def schedules_figure(flow: Dataset) -> Any:
    """Schedules of one total: what they spend over time, and what they recover."""
    panels = [
        plot.Panel(_lines(flow, "a", SHAPES), "Regularization spent", TIME, r"$a_t = -\int_0^t \alpha$"),
        _error_panel(flow, SHAPES),
    ]
    return plot.line_panels(panels, "Schedules that spend the same total of 12.5", "schedule")


def late_recovery_figure(flow: Dataset) -> Any:
    """Fig. 7: on logarithmic time, the error drops long after the decay was switched off."""
    shown = {name: STRENGTHS[name] for name in ("none", "constant 0.02", "constant 0.2", "constant 20")}
    loss, error = (_lines(flow, name, shown, positive=True) for name in ("loss", "rel_error"))
    style: dict[str, Any] = {"x_log": True, "y_log": True, "events": [625.0, 62.5, 0.625]}
    panels = [
        plot.Panel(loss, "Train loss", LOG_TIME, "f(X)", floor=LOSS_FLOOR, **style),
        plot.Panel(error, "Reconstruction error", LOG_TIME, ERROR_LABEL, floor=ERROR_FLOOR, **style),
    ]
    return plot.line_panels(panels, "Late recovery: the drop comes after the switch-off (dotted)", "strength of decay")


def heat_map_figure(heat: Dataset, total: float) -> Any:
    """Strengths x switch-off times: the final reconstruction error, with the line along which they spend `total`."""
    return plot.heat_map(
        heat.rel_error.isel(time=-1).values,
        heat.alpha.values,
        heat.t_off.values,
        title=f"Reconstruction error at t = {float(heat.time[-1]):g}",
        row_label=r"strength $\alpha$",
        column_label="switch-off time t_off",
        value_label=ERROR_LABEL,
        floor=ERROR_FLOOR / 10,
        contour=plot.Line(heat.t_off.values, total / heat.t_off.values, f"total decay {total:g}", "--"),
    )
