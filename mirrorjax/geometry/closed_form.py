"""closed_form: which R_a, if any, is known by formula for a pair (g, h) and its initial weights.

The families are in `hyperbolic.py` (Hadamard, Square, square difference), `brackets.py` (the other differences) and
`quadratic.py`; all hold for h scaled by c, with w0 = psi(0, 0). `Separable` has none on purpose: its psi is an integral
of unknown functions, which the numeric path's adaptive integration answers with an error estimate and a fixed
quadrature would not. The normalisations are pinned by integrating the parameter flow (tests/geometry).
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Array, Float

from ..checks import is_concrete
from ..problem import (
    AbstractDifference,
    AbstractRegularizer,
    AbstractReparameterization,
    Compatible,
    ExpDifference,
    Hadamard,
    LogDifference,
    PowerDifference,
    Quadratic,
    QuadraticForm,
    Square,
    WeightDecay,
)
from ..problem.problem import as_weights
from ..problem.reparam import Weights
from .base import AbstractLegendre
from .families.hyperbolic import HadamardLegendre, SquareDifferenceLegendre, SquareLegendre
from .families.levels import ExpDifferenceLegendre, LogDifferenceLegendre, PowerDifferenceLegendre
from .families.quadratic import QuadraticLegendre
from .families.separable import Values


def closed_form(g: AbstractReparameterization, h: AbstractRegularizer, w0: Weights) -> AbstractLegendre | None:
    """The closed form of R_a for the pair (g, h) from the weights w0, or `None` where there is none.

    **Arguments:** `g`, `h`: the pair; `w0`: the initial weights, a point of g. Traced weights are not read: points that
    would be refused get `RESULTS.invalid_weights` instead.
    **Returns:** an `AbstractLegendre`; `None` for a pair whose R_a needs the numeric path, or has none.
    **Raises:** `ValueError` when w0 does not fit g, or when the pair has a closed form that these weights do not admit.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Corollary 3.12, Example 3.14, Theorem 3.15.
    """
    w0 = as_weights(w0)
    g.check(w0)
    h.check(w0)
    if isinstance(g, Quadratic):
        return _quadratic(g, h, w0)
    scale = _matched_scale(g, h)
    if scale is None:
        return None
    if isinstance(g, Square):
        _refuse_unless_positive(g, w=w0)
        return SquareLegendre(w0, scale)
    if isinstance(g, Hadamard):
        if g.depth != 2:
            return None
        _refuse_balanced(*w0)
        return HadamardLegendre(w0[0], w0[1], scale)
    return _difference(g, w0, scale) if isinstance(g, AbstractDifference) else None


def _quadratic(g: Quadratic, h: AbstractRegularizer, w0: Weights) -> AbstractLegendre | None:
    if isinstance(h, QuadraticForm):
        return QuadraticLegendre(g.G, h.G0, w0)
    return QuadraticLegendre(g.G, 2 * h.scale, w0) if isinstance(h, WeightDecay) else None


def _difference(g: AbstractDifference, w0: Weights, scale: Float[Array, ""]) -> AbstractLegendre | None:
    u0, v0 = w0
    if isinstance(g, ExpDifference):
        return ExpDifferenceLegendre(u0, v0, scale)
    if isinstance(g, LogDifference):
        return LogDifferenceLegendre(u0, v0, scale)
    if isinstance(g, PowerDifference):
        _refuse_unless_positive(g, u=u0, v=v0)
        power = g.k > 1
        return PowerDifferenceLegendre(u0, v0, scale, g.k) if power else SquareDifferenceLegendre(u0, v0, scale)
    return None


def _matched_scale(g: AbstractReparameterization, h: AbstractRegularizer) -> Float[Array, ""] | None:
    """c when h is c times the regularizer that g's closed form is for, else `None`. c = 0 goes with every g."""
    if not isinstance(h, WeightDecay | Compatible):
        return None
    if is_concrete(h.scale) and float(h.scale) == 0.0:
        return h.scale
    if _has_squares(g):
        return h.scale if isinstance(h, WeightDecay) or _has_squares(h.g) else None
    return h.scale if isinstance(h, Compatible) and h.g == g else None


def _has_squares(g: AbstractReparameterization) -> bool:
    """Whether the compatible regularizer of g is the sum of squares of its weights."""
    return isinstance(g, Hadamard | Square) or (isinstance(g, PowerDifference) and g.k == 1)


def _refuse_balanced(m0: Values, w0: Values) -> None:
    _refuse(
        lambda m, w: np.abs(m) != np.abs(w),
        (m0, w0),
        lambda m, w: f"R_a needs |m0| != |w0|: u0 v0 = 0 there, but m0 = {m} and w0 = {w}; perturb one factor",
    )


def _refuse_unless_positive(g: AbstractReparameterization, **factors: Values) -> None:
    for name, factor in factors.items():
        _refuse(
            lambda value: value > 0,
            (factor,),
            lambda value, name=name: (
                f"R_a of {type(g).__name__} needs {name}0 > 0, but it is {value}; x has even powers, so start from "
                f"|{name}0|, and perturb zeros"
            ),
        )


def _refuse(condition: Callable[..., np.ndarray], factors: tuple[Array, ...], message: Callable[..., str]) -> None:
    """`ValueError` about the first entry that fails the condition, when the entries are concrete."""
    if not is_concrete(factors):
        return
    known = [np.asarray(factor) for factor in factors]  # numpy: under an outer jit, jax would stage the comparison
    good = condition(*known)
    if np.all(good):
        return
    first = tuple(int(i) for i in np.argwhere(~good)[0])
    others = int(np.sum(~good)) - 1
    raise ValueError(f"{message(*(factor[first] for factor in known))} (entry {first}, and {others} more)")
