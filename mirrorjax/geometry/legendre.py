"""legendre(): the R_a of (g, h, w0), in closed form where one is registered, else numeric."""

from typing import Literal, get_args

from jaxtyping import Array, Float

from ..checks import is_concrete
from ..problem import AbstractRegularizer, AbstractReparameterization
from ..problem.reparam import Weights
from . import families as families  # registers the closed forms of this package
from .base import AbstractLegendre
from .conditions import check
from .numeric import NumericLegendre
from .points import as_finite_weights, require_pair
from .registry import closed_form, register_legendre as register_legendre
from .report import VERDICT

Method = Literal["auto", "closed_form", "numeric"]


def legendre(
    g: AbstractReparameterization,
    h: AbstractRegularizer,
    w0: Weights,
    *,
    method: Method = "auto",
    unchecked: bool = False,
) -> AbstractLegendre:
    """The time-dependent Legendre function R_a of the flow of (g, h) from w0.

    The numeric path defines R_a for every commuting pair; closed forms are taken where they exist, since they are
    faster and keep more digits. A pair without a closed form is measured by `check` first.

    Where h only normalises g, `[grad h, grad g_i] = sum_j Lambda_ij grad g_j` with one constant Lambda, R_a is that of
    g alone from the decayed weights, and the flow of mu leaks under decay, `d mu/dt = -grad f(x) - alpha Lambda^T mu`;
    Lambda is `R.leak`. Weight decay of scale c and any homogeneous g of degree p are such a pair, with the scalar
    `-2 c (p - 2)`: there are closed forms for `Linear`, products of any depth (`Hadamard`), `PowerDifference`, and
    `Blocks` of those, and the numeric path takes the leak that `check` measures. For a scalar leak the limit after a
    switch-off is the minimum of R_a all the same, since mu stays in range(Z^T); otherwise it is not.

    **Arguments:** `g`, `h`: the pair; `w0`: initial weights; `method`: `"auto"` takes a closed form where there is one,
    `"closed_form"` insists on it, `"numeric"` never takes it; `unchecked`: skip `check` for pairs without a closed
    form; the result is then an R_a only on the set where the pair does commute, and has no leak.
    **Returns:** an `AbstractLegendre`.
    **Raises:** `ValueError` for a g or h that is not an object of its kind, for weights that are not finite or have no
    R_a (balanced, not positive, ...), for an unknown method, for `"closed_form"` where there is none, and, with the
    report of `check`, for a pair that neither commutes nor is normalised by h.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Theorem 3.6; normalising pairs are not in it, and their R_a is
    tested against integrations of the flow.
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}; got {method!r}")
    require_pair(g, h)
    w0 = as_finite_weights(w0)
    closed = closed_form(g, h, w0)
    if closed is None and method == "closed_form":
        raise ValueError(
            f"{type(g).__name__} with {type(h).__name__} has no closed form of R_a; use method='numeric', or the "
            "regularizer Compatible(g)"
        )
    if closed is None:
        return NumericLegendre(g, h, w0, leak=None if unchecked else _measured_leak(g, h, w0))
    return closed if method != "numeric" else NumericLegendre(g, h, w0, leak=closed.leak if closed.leaks else None)


def _measured_leak(g: AbstractReparameterization, h: AbstractRegularizer, w0: Weights) -> Float[Array, "..."] | None:
    """Lambda, or `None` where the pair commutes. Raises `ValueError` for a pair without R_a, with the report of it."""
    if not is_concrete(g, h, w0):
        raise ValueError(
            f"legendre cannot check under jit or vmap that {type(g).__name__} and {type(h).__name__} commute: build R "
            "outside, or pass unchecked=True after mirrorjax.check"
        )
    report = check(g, h, w0)
    if not bool(report.exists):
        advice = "; ".join(filter(None, (g.advice(), "unchecked=True goes on regardless")))
        raise ValueError(
            f"there is no R_a for {type(g).__name__} with {type(h).__name__} here, only the primal flow:\n{report}\n"
            f"{advice}"
        )
    return None if report.verdict == VERDICT.commuting else report.leak
