"""legendre(): which R_a belongs to (g, h, w0). Not in `legendre.py`, so that the classes it picks can import theirs."""

from typing import Literal, get_args

from ..checks import is_concrete
from ..problem import AbstractRegularizer, AbstractReparameterization, Gram, MatrixProduct
from ..problem.problem import as_weights
from ..problem.reparam import Weights
from .base import AbstractLegendre
from .closed_form import closed_form
from .conditions import check
from .numeric import NumericLegendre

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

    **Arguments:** `g`, `h`: the pair; `w0`: initial weights; `method`: `"auto"` takes a closed form where there is one,
    `"closed_form"` insists on it, `"numeric"` never takes it; `unchecked`: skip `check` for pairs without a closed
    form, for those who know better (what comes back is then an R_a only on the set where the pair does commute).
    **Returns:** an `AbstractLegendre`.
    **Raises:** `ValueError` for weights that have no R_a (balanced, not positive, ...), for an unknown method, for
    `"closed_form"` where there is none, and, with the report of `check`, for a pair outside the theory.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Theorem 3.6.
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}; got {method!r}")
    w0 = as_weights(w0)
    closed = closed_form(g, h, w0)
    if closed is None and method == "closed_form":
        raise ValueError(
            f"{type(g).__name__} with {type(h).__name__} has no closed form of R_a; use method='numeric', or the "
            "regularizer Compatible(g)"
        )
    if closed is None and not unchecked:
        _refuse_outside_theory(g, h, w0)
    return closed if closed is not None and method != "numeric" else NumericLegendre(g, h, w0)


def _refuse_outside_theory(g: AbstractReparameterization, h: AbstractRegularizer, w0: Weights) -> None:
    if not is_concrete(g, h, w0):
        raise ValueError(
            f"whether {type(g).__name__} and {type(h).__name__} commute cannot be checked under jit or vmap: build R "
            "outside, or pass unchecked=True after mirrorjax.check"
        )
    report = check(g, h, w0)
    if not bool(report.theorem_3_6):
        raise ValueError(
            f"there is no R_a for {type(g).__name__} with {type(h).__name__} here, only the primal flow:\n{report}\n"
            f"{_advice(g)}unchecked=True goes on regardless"
        )


def _advice(g: AbstractReparameterization) -> str:
    spectral = {Gram: "SpectralGram(U0, scale)", MatrixProduct: "SpectralProduct(K0, Q0, left, right, scale)"}
    if type(g) not in spectral:
        return ""
    return f"for measurements that commute or are aligned with the weights, build {spectral[type(g)]} yourself; "
