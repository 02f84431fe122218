"""`mirrorjax explain`: prints and draws the effect of a schedule on the implicit bias of one coordinate x = g(w)."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from .. import plot
from ..experiments.theory.geometry import SHAPE_LABEL, curve
from ..geometry.base import AbstractLegendre
from ..geometry.effects import Explanation, explain
from ..geometry.leaks import clock, remaining_time
from ..geometry.legendre import legendre
from ..problem import (
    AbstractSchedule,
    Compatible,
    Constant,
    CosineDecay,
    Hadamard,
    LinearDecay,
    SwitchOff,
    WeightDecay,
    families_by_name,
)
from ..results import RESULTS, status_name

Maker = TypeVar("Maker")

SCHEDULES: dict[str, Callable[[float, float], AbstractSchedule]] = {
    "constant": lambda alpha, t_off: Constant(alpha),
    "switch-off": SwitchOff,
    "linear": LinearDecay,
    "cosine": CosineDecay,
}


def explain_bias(
    family: str,
    init: Sequence[float],
    schedule: str,
    alpha: float,
    t_off: float,
    *,
    t1: float,
    scale: float,
    times: int,
    weight_decay: bool,
    out: Path | None,
    console: Console,
) -> None:
    """Prints the table of a, argmin R_a and the local exponent over time, and draws R_a to `out` if it is given.

    Where the dual variable leaks, a second table shows its clock and the least time that a recovery takes.

    **Arguments:** `family`, `schedule`: names in `families_by_name()` and `SCHEDULES`; `init`: one number a factor,
    whose count is the depth of `hadamard`; `alpha`, `t_off`: of the schedule; `t1`: the last time; `scale`: the
    distance from the minimum at which the local exponent is read; `weight_decay`: ordinary weight decay in place of the
    regularizer that commutes with the family, which products of three factors and more do not have.
    **Raises:** `ValueError` for an unknown name, weights that have no R_a, a bad number, or where R_a exists at none of
    the times.
    """
    g = _named(family, families_by_name(), "family")()
    if isinstance(g, Hadamard):
        g = Hadamard(len(init))
    weight_decay = weight_decay or (isinstance(g, Hadamard) and g.depth > 2)
    alpha_t = _named(schedule, SCHEDULES, "schedule")(alpha, t_off)
    if not np.all(np.isfinite(init)):
        raise ValueError(f"initial weights must be finite, got {', '.join(map(str, init))}; choose them with --init")
    if not t1 > 0 or not np.isfinite(t1):
        raise ValueError(f"the last time must be positive and finite, got {t1}; choose it with --t1")
    factors = tuple(jnp.asarray([value], float) for value in init)
    w0 = factors[0] if len(factors) == 1 else factors
    R = legendre(g, WeightDecay() if weight_decay else Compatible(g), w0)
    ts = np.linspace(0.0, t1, times)
    explanation = explain(R, alpha_t, ts, scale)
    regularizer = "weight decay" if weight_decay else "compatible regularizer"
    console.print(f"{family}, {regularizer} at scale 1; {schedule}: alpha = {alpha:g}, t_off = {t_off:g}")
    console.print(explanation.table())
    for status in np.unique(status_name(explanation.effects.result)):
        if status != "successful":
            console.print(f"{status}: {RESULTS[getattr(RESULTS, status)]}", soft_wrap=True)
    console.print(f"local exponent at a distance of {scale:g} from the minimum: 2 is L2-like, 1 is L1-like")
    if not np.any(np.asarray(explanation.effects.ok)):
        raise ValueError("R_a exists at none of these times, so that there is no effect to explain")
    if np.any(np.asarray(R.leak) != 0):
        _show_leak(R, explanation, scale, console)
    if out is not None:
        plot.save(legendre_figure(R, explanation, scale), out)
        console.print(f"R_a is drawn in {out}", soft_wrap=True, highlight=False)


def _show_leak(R: AbstractLegendre, explanation: Explanation, scale: float, console: Console) -> None:
    """Prints Lambda, the clock and the least time over the times of the explanation, and their meaning in words."""
    leak = float(np.asarray(R.leak).reshape(-1)[0])  # of one coordinate
    a = jnp.asarray(explanation.effects.a)

    def at(a):
        minimizer = R.primal(jnp.zeros(1), a).value
        return clock(R, a), remaining_time(R, minimizer + scale, jnp.zeros(1), a, 1.0).value[0]

    clocks, needed = jax.jit(jax.vmap(at))(a)
    table = Table("t", "a", "clock", "least time")
    for row in zip(explanation.t, a, clocks.reshape(-1), needed, strict=True):
        table.add_row(*(f"{float(value):.6g}" for value in row))
    console.print(table)
    slows = "slows" if leak < 0 else "hastens"
    console.print(
        f"The dual variable leaks: d mu/dt = -df/dx - alpha lambda mu with lambda = {leak:g}. Decay {slows} its clock: "
        "the loss moves nu = e^(-a lambda) mu at the rate clock * |df/dx|. Least time: if decay ended at this row, x "
        f"would need at least so long from argmin R_a to a distance of {scale:g}, while |df/dx| <= 1.",
        soft_wrap=True,
        highlight=False,
    )


def legendre_figure(R: AbstractLegendre, explanation: Explanation, scale: float) -> Any:
    """R_a(x) - min R_a of one coordinate for several a, each divided by its largest value shown, minimum marked."""
    a = np.asarray(explanation.effects.a)[np.asarray(explanation.effects.ok)]
    # Few curves, close together where most of the change is: at the start.
    chosen = np.unique(np.concatenate([[0.0], np.min(a) * np.geomspace(0.01, 1.0, 4)]))[::-1]
    x = np.linspace(-3 * scale, 3 * scale, 301)
    lines = []
    for value in chosen:
        each = curve(R, x, float(value))
        if each.exists:
            minimizer = float(R.minimizer(float(value))[0])
            lines.append(each.line(np.nanmax(each.excess), f"a = {value:.3g}", marker=(minimizer, 0.0)))
    panel = plot.Panel(lines, "Dots: argmin of each", "x", SHAPE_LABEL)
    return plot.line_panels([panel], "R_a as regularization is spent", "spent")


def _named(name: str, table: Mapping[str, Maker], kind: str) -> Maker:
    if name not in table:
        raise ValueError(f"there is no {kind} {name!r}; there are: {', '.join(table)}")
    return table[name]
