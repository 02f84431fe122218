"""`mirrorjax explain`: prints and draws the effect of a schedule on the implicit bias of one coordinate x = g(w)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from .. import plot
from ..files import write_text
from ..geometry.base import AbstractLegendre
from ..geometry.effects import Explanation, explain
from ..geometry.leaks import clock, remaining_time
from ..geometry.legendre import legendre
from ..plot.flows import excess_along
from ..plot.interactive import Moments, bias_page
from ..problem import (
    AbstractReparameterization,
    AbstractSchedule,
    Blocks,
    Compatible,
    Constant,
    CosineDecay,
    Gram,
    Hadamard,
    Linear,
    LinearDecay,
    MatrixProduct,
    Quadratic,
    Square,
    SwitchOff,
    WeightDecay,
    families_by_name,
)
from ..results import RESULTS, status_name
from ..sweeps.recipe import load_object

Maker = TypeVar("Maker")

SCHEDULES: dict[str, Callable[[float, float], AbstractSchedule]] = {
    "constant": lambda alpha, t_off: Constant(alpha),
    "switch-off": SwitchOff,
    "linear": LinearDecay,
    "cosine": CosineDecay,
}
# Matrices have no R_a of their entries. Their eigenvalues or singular values follow the family of one number given
# here, and the sentence says when. Sources: SpectralGram, SpectralProduct.
SPECTRA: dict[type[AbstractReparameterization], tuple[AbstractReparameterization, str]] = {
    Gram: (
        Square(),
        "x is one eigenvalue of X = U U^T, which starts at u^2. Eigenvalues have this R_a if the sensing matrices of f "
        "commute with each other and with U U^T; else, as in a network, it is a model.",
    ),
    MatrixProduct: (
        Hadamard(),
        "x is one singular value of X = K^T Q (attention) or A B (LoRA), which starts at m w. Singular values have "
        "this R_a if the factors and the gradients of f share their singular vectors; else, as in a network, it is a "
        "model.",
    ),
}
MATRICES = {"gram": Gram, "matrix-product": MatrixProduct}
PAGE = ".html"
MOMENTS, POINTS = 61, 201  # times of the slider of the page, and points of a curve
# The same where coordinates mix: each point of the curve then takes searches in all of them.
FEW_MOMENTS, FEW_POINTS = 21, 61


@dataclass(frozen=True)
class Question:
    """The arguments of `mirrorjax explain`.

    `family`: a name in `family_names()`, or `"module:object"`; `init`: one number a factor, whose count is the depth of
    `hadamard`, or for `Quadratic` one number a weight; `schedule`: a name in `SCHEDULES`, with `alpha` and `t_off`;
    `t1`: the last time; `scale`: the distance from the minimum at which the local exponent is read; `times`: rows of
    the table; `weight_decay`: ordinary weight decay in place of the regularizer that commutes with the family, which
    some families do not have.
    """

    family: str
    init: Sequence[float]
    schedule: str
    alpha: float
    t_off: float
    t1: float
    scale: float
    times: int
    weight_decay: bool


def family_names() -> list[str]:
    """The names that `explain` takes for a family, besides `module:object`."""
    return [*_families()]


def _families() -> dict[str, Callable[[], AbstractReparameterization]]:
    return {**families_by_name(), "linear": Linear, **MATRICES}


def explain_bias(asked: Question, outs: Sequence[Path], console: Console) -> None:
    """Prints the table of a, argmin R_a and the local exponent over time, and draws R_a to each of `outs`.

    Where the dual variable leaks, a second table shows its clock and the least time that a recovery takes.

    **Raises:** `ValueError` for an unknown name, weights that have no R_a, a bad number, a file of another kind, or
    where R_a exists at none of the times.
    """
    for out in outs:
        if out.suffix.lower() not in (*plot.FORMATS, PAGE):
            raise ValueError(f"--out must be a file named {', '.join(plot.FORMATS)} or {PAGE}, got {out}")
    g = _family(asked)
    alpha_t = _named(asked.schedule, SCHEDULES, "schedule")(asked.alpha, asked.t_off)
    if not np.all(np.isfinite(asked.init)):
        numbers = ", ".join(map(str, asked.init))
        raise ValueError(f"initial weights must be finite, got {numbers}; choose them with --init")
    if not asked.t1 > 0 or not np.isfinite(asked.t1):
        raise ValueError(f"the last time must be positive and finite, got {asked.t1}; choose it with --t1")
    R, regularizer, words = _geometry(g, asked)
    explanation = explain(R, alpha_t, np.linspace(0.0, asked.t1, asked.times), asked.scale, _direction(R))
    title = (
        f"{asked.family}, {regularizer} at scale 1; {asked.schedule}: alpha = {asked.alpha:g}, t_off = {asked.t_off:g}"
    )
    console.print(title, markup=False, highlight=False, soft_wrap=True)
    if words:
        console.print(words, markup=False, highlight=False, soft_wrap=True)
    console.print(explanation.table())
    for status in np.unique(status_name(explanation.effects.result)):
        if status != "successful":
            console.print(f"{status}: {RESULTS[getattr(RESULTS, status)]}", soft_wrap=True)
    console.print(f"local exponent at a distance of {asked.scale:g} from the minimum: 2 is L2-like, 1 is L1-like")
    if not np.any(np.asarray(explanation.effects.ok)):
        raise ValueError("R_a exists at none of these times, so that there is no effect to explain")
    if np.any(np.asarray(R.leak) != 0):
        _show_leak(R, explanation, asked.scale, console)
    for out in outs:
        if out.suffix.lower() == PAGE:
            write_text(out, bias_page(_moments(R, alpha_t, asked), title))
        else:
            plot.save(_figure(R, explanation, asked.scale), out)
        console.print(f"R_a is drawn in {out}", soft_wrap=True, highlight=False, markup=False)


def _family(asked: Question) -> AbstractReparameterization:
    """The family by its name, or the user's: an object in a module, or a function or class that makes one."""
    if ":" in asked.family:
        found = load_object(asked.family, Path.cwd(), "the family")
        g = found() if callable(found) and not isinstance(found, AbstractReparameterization) else found
        if not isinstance(g, AbstractReparameterization):
            raise ValueError(f"the family {asked.family!r} must be a reparameterization or make one, got {g!r}")
        return g
    if asked.family == "hadamard":
        return Hadamard(len(asked.init))
    return _named(asked.family, _families(), "family")()


def _geometry(g: AbstractReparameterization, asked: Question) -> tuple[AbstractLegendre, str, str]:
    """R_a, the name of its regularizer, and the sentence that says what x is, "" where it is the x of the family."""
    words = ""
    if type(g) in SPECTRA:
        g, words = SPECTRA[type(g)]
    if isinstance(g, Blocks):
        raise ValueError("the coordinates of Blocks follow several families; explain the family of one block instead")
    if isinstance(g, Quadratic):
        w0 = jnp.asarray(asked.init, float)
        words = f"x is the first of {len(g.G)} coordinates, moved alone from argmin R_a."
    else:
        factors = tuple(jnp.asarray([value], float) for value in asked.init)
        w0 = factors[0] if len(factors) == 1 else factors
    h = WeightDecay() if asked.weight_decay or not _has_compatible(g) else Compatible(g)
    return legendre(g, h, w0), "compatible regularizer" if isinstance(h, Compatible) else "weight decay", words


def _direction(R: AbstractLegendre) -> jax.Array:
    """The first coordinate: the one that is drawn."""
    return jnp.zeros(R.point_like().shape).at[0].set(1.0)


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


def _figure(R: AbstractLegendre, explanation: Explanation, scale: float) -> Any:
    """R_a(x) - min R_a of one coordinate for several a, each divided by its largest value shown, minimum marked."""
    a = np.asarray(explanation.effects.a)[np.asarray(explanation.effects.ok)]
    # Few curves, close together where most of the change is: at the start.
    chosen = np.unique(np.concatenate([[0.0], np.min(a) * np.geomspace(0.01, 1.0, 4)]))[::-1]
    return plot.potential(R, chosen, np.linspace(-3 * scale, 3 * scale, 301))


def _moments(R: AbstractLegendre, alpha_t: AbstractSchedule, asked: Question) -> Moments:
    """R_a and its effects at the times of the slider, the switch-off among them."""
    moments, points = (MOMENTS, POINTS) if R.point_like().size == 1 else (FEW_MOMENTS, FEW_POINTS)
    ts = np.linspace(0.0, asked.t1, moments)
    if 0 < asked.t_off < asked.t1:
        ts[np.argmin(np.abs(ts - asked.t_off))] = asked.t_off
    effects = explain(R, alpha_t, ts, asked.scale, _direction(R)).effects
    minimizer = np.asarray(effects.minimizer)[:, 0]
    around = minimizer[np.isfinite(minimizer)]
    x = np.linspace(around.min() - 2 * asked.scale, around.max() + 2 * asked.scale, points)
    excess = np.stack([np.asarray(excess_along(R, jnp.asarray(x), a)) for a in effects.a])
    largest = np.nanmax(np.where(np.isfinite(excess), excess, 0.0), axis=1, keepdims=True)
    lower, upper = (np.asarray(end)[:, 0] for end in (effects.dual_lower, effects.dual_upper))
    shape = excess / np.where(largest > 0, largest, 1.0)
    exponent = np.asarray(effects.local_exponent)
    return Moments(ts, np.asarray(effects.a), minimizer, exponent, lower, upper, x, shape)


def _has_compatible(g: AbstractReparameterization) -> bool:
    """True if the theory names a regularizer that commutes with g, as it does not for products of three factors."""
    try:
        g.admission()
    except ValueError:
        return False
    return True


def _named(name: str, table: Mapping[str, Maker], kind: str) -> Maker:
    if name not in table:
        own = ", or your own as module:object" if kind == "family" else ""
        raise ValueError(f"there is no {kind} {name!r}; there are: {', '.join(table)}{own}")
    return table[name]
