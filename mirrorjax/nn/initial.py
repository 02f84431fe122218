"""Where training starts when a trained or freshly drawn tensor x is to be written as g(w): weights w with g(w) = x."""

from functools import singledispatch

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..checks import refuted
from ..problem import (
    AbstractReparameterization,
    ExpDifference,
    Hadamard,
    Linear,
    LogDifference,
    MatrixProduct,
    PowerDifference,
    Square,
)
from ..problem.reparam import Weights

Tensor = Float[Array, "..."]
Scalar = Float[Array, ""]


@singledispatch
def initial_weights(g: AbstractReparameterization, x: Tensor, balance: Scalar) -> Weights:
    """Weights with `g(w) = x` to rounding. Of the many, `balance` b > 0 picks one:

    - `Hadamard`, x = m w: `m^2 - w^2 = b`, so that R_0 has the width A = b/2 and m > 0.
    - `PowerDifference(k)`, `ExpDifference`, x = p - q with p, q > 0: `p q = (b/2)^2`, so that p = q = b/2 at x = 0.
    - `LogDifference`, x = log u - log v: `u v = b^2`.
    - `MatrixProduct`: the singular values in equal shares, `K K^T = Q Q^T`, at full rank; b plays no part.
    - `Square` (x >= 0) and `Linear` leave no choice.

    Another family's rule is added by `initial_weights.register`, or given to `Factored(initial=...)`.

    **Raises:** `ValueError` where there is no rule, or no weights give x.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Theorem 3.15 and Example 3.14 for what stays free.
    """
    raise ValueError(
        f"{type(g).__name__} has no rule for weights that give a tensor; hand one over, "
        "Factored(g, initial=lambda x: w) with g(w) = x"
    )


@initial_weights.register(Linear)
def _linear(g: Linear, x: Tensor, balance: Scalar) -> Weights:
    return x


@initial_weights.register(Square)
def _square(g: Square, x: Tensor, balance: Scalar) -> Weights:
    if refuted(lambda: jnp.all(x >= 0), x):
        raise ValueError(f"Square gives x = w^2 >= 0 only, the tensor goes down to {np.min(np.asarray(x))}")
    return jnp.sqrt(x)


@initial_weights.register(Hadamard)
def _hadamard(g: Hadamard, x: Tensor, balance: Scalar) -> Weights:
    if g.depth != 2:
        raise ValueError(
            f"Hadamard(depth={g.depth}) has no rule for weights that give a tensor (and commutes with no weight decay, "
            "Theorem D.2); use depth 2, or Factored(g, initial=lambda x: w)"
        )
    m = jnp.sqrt((balance + jnp.hypot(balance, 2 * x)) / 2)
    return m, x / m


@initial_weights.register(PowerDifference)
def _power(g: PowerDifference, x: Tensor, balance: Scalar) -> Weights:
    plus, minus = _parts(x, balance)
    return plus ** (0.5 / g.k), minus ** (0.5 / g.k)


@initial_weights.register(ExpDifference)
def _exponential(g: ExpDifference, x: Tensor, balance: Scalar) -> Weights:
    plus, minus = _parts(x, balance)
    return jnp.log(plus), jnp.log(minus)


@initial_weights.register(LogDifference)
def _logarithm(g: LogDifference, x: Tensor, balance: Scalar) -> Weights:
    return balance * jnp.exp(x / 2), balance * jnp.exp(-x / 2)


@initial_weights.register(MatrixProduct)
def _product(g: MatrixProduct, x: Tensor, balance: Scalar) -> Weights:
    if x.ndim < 2:
        raise ValueError(f"MatrixProduct gives matrices, the tensor has shape {x.shape}")
    left, values, right = jnp.linalg.svd(x, full_matrices=False)
    roots = jnp.sqrt(values)
    first, second = left * roots[..., None, :], roots[..., :, None] * right
    return (jnp.swapaxes(first, -1, -2) if g.transpose else first), second


def _parts(x: Tensor, balance: Scalar) -> tuple[Tensor, Tensor]:
    """`p - q = x` with `p q = (balance/2)^2`, without cancellation in the smaller one."""
    larger = (jnp.abs(x) + jnp.hypot(x, balance)) / 2
    smaller = (balance / 2) * (balance / 2 / larger)
    return jnp.where(x >= 0, larger, smaller), jnp.where(x >= 0, smaller, larger)
