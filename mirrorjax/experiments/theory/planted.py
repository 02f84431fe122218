"""Sparse linear regression with a planted solution: the data of the paper's Figs. 8 and 9."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ...problem import LeastSquares

MEASUREMENTS, COORDINATES, PLANTED = 40, 100, 5


class SparseRegression(eqx.Module):
    """The planted vector x* (d,), whose first entries are 1 and the others 0, and `f = |Z x - Z x*|^2 / (2n)`."""

    target: Float[Array, " d"]
    objective: LeastSquares

    def distance(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """`|x - x*|`."""
        return jnp.linalg.norm(x - self.target)


def sparse_regression(seed: int | Int[Array, ""]) -> SparseRegression:
    """Z ~ N(0,1)^{40 x 100} and x* with five ones, noiseless. The seed may be traced: data sets are lanes of a sweep.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Figs. 8, 9.
    """
    Z = jax.random.normal(jax.random.key(seed), (MEASUREMENTS, COORDINATES))
    target = jnp.zeros(COORDINATES).at[:PLANTED].set(1.0)
    return SparseRegression(target, LeastSquares(Z, Z @ target))
