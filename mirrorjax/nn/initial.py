"""Initial weights of a trained or freshly drawn tensor x that is to be written as g(w): weights w with g(w) = x."""

from jaxtyping import Array, ArrayLike, Float

from ..checks import as_float, as_scalar, require_finite, require_kind, require_positive
from ..problem import AbstractReparameterization
from ..problem.reparam import Weights


def initial_weights(g: AbstractReparameterization, x: Float[Array, "..."], balance: Float[ArrayLike, ""]) -> Weights:
    """Weights with `g(w) = x` to rounding. Of the many, `balance` b > 0 picks one:

    - `Hadamard`, x = m w: `m^2 - w^2 = b`, so that R_0 has the width A = b/2 and m > 0.
    - `PowerDifference(k)`, `ExpDifference`, x = p - q with p, q > 0: `p q = (b/2)^2`, so that p = q = b/2 at x = 0.
    - `LogDifference`, x = log u - log v: `u v = b^2`.
    - `MatrixProduct`: the singular values in equal shares, `K K^T = Q Q^T`, at full rank; b plays no part.
    - `Square` (x >= 0) and `Linear` leave no choice.

    Another family states its rule by overriding the method `initial_weights`, or it is given to
    `Factored(initial=...)`.

    **Raises:** `ValueError` where there is no rule, or no weights give x; for entries of x that are not finite, and a
    balance that is not positive and finite.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Theorem 3.15 and Example 3.14 for what stays free.
    """
    require_kind(g, AbstractReparameterization, "g", "a reparameterization such as mirrorjax.Hadamard()")
    x, balance = as_float(x, "x"), as_scalar(balance, "balance")
    require_finite(x, "x")
    require_positive(balance, "balance")
    return g.initial_weights(x, balance.astype(x.dtype))
