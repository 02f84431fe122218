"""R_a and its conjugate Q_a, the Legendre functions of a pair (g, h): they know no loss and no time.

Everything follows from the flow map psi(mu, a), the weights reached from w0 by flowing along grad g_i for "time" mu_i
and along grad h for "time" a: `grad Q_a(mu) = g(psi(mu, a))`, `Hess Q_a = J J^T`, and R_a is the conjugate of Q_a.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from ..problem.reparam import Weights
from ..results import RESULTS, require_success

Scalar = Float[ArrayLike, ""]


class Recovered(eqx.Module):
    """A map evaluated point by point: `value`, NaN where there is none, and `result`, the reason, for each point.

    For separable families `result` is shaped like the value, one status a coordinate; otherwise it is one scalar.
    """

    value: Float[Array, "..."]
    result: RESULTS

    @property
    def ok(self) -> Array:
        """Boolean, shaped like `result`."""
        return self.result == RESULTS.successful


class AbstractLegendre(eqx.Module):
    """`R_a(x) = sup_mu <mu, x> - Q_a(mu)`, the time-dependent Legendre function of (g, h, w0).

    All methods take one point x or mu (shaped like `g(w)`) and the accumulated regularization a <= 0, a scalar; use
    `jax.vmap` for more. A subclass gives `weights`, `potential`, `primal`, `dual`, `metric_vector` and `dual_interval`;
    the rest follows.

    `primal` and `dual` return a status for each point. The methods named for the mathematics (`mirror_map`, ...) raise
    when a status is not successful, so none of them returns a NaN or a wrong number.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Theorem 3.6, Eq. (5), (7).
    """

    @abc.abstractmethod
    def weights(self, mu: Float[Array, "..."], a: Scalar) -> Weights:
        """`psi(mu, a)`: the weights of the flow when its dual variable is mu; NaN outside the dual interval."""

    @abc.abstractmethod
    def potential(self, mu: Float[Array, "..."], a: Scalar) -> Float[Array, ""]:
        """`Q_a(mu)`, the convex conjugate of R_a."""

    @abc.abstractmethod
    def primal(self, mu: Float[Array, "..."], a: Scalar) -> Recovered:
        """`grad Q_a(mu) = g(psi(mu, a))` with a status for each point."""

    @abc.abstractmethod
    def dual(self, x: Float[Array, "..."], a: Scalar) -> Recovered:
        """`grad R_a(x)` with a status for each point."""

    @abc.abstractmethod
    def metric_vector(self, mu: Float[Array, "..."], v: Float[Array, "..."], a: Scalar) -> Float[Array, "..."]:
        """`Hess Q_a(mu) v = J J^T v = (Hess R_a(x))^{-1} v` at w = psi(mu, a)."""

    @abc.abstractmethod
    def dual_interval(self, a: Scalar) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """The open interval of each mu_i on which Q_a is finite, `(lower, upper)`; infinite where it has no end."""

    @property
    def separable(self) -> bool:
        """True if `R_a(x) = sum_i R_a,i(x_i)`, so that each coordinate has its own status."""
        return False

    def check_measurements(self, rows: Float[Array, "k ..."]) -> None:
        """Raises `ValueError` when R_a does not hold for measurements `<row, x>`; rows are concrete, shaped like x."""

    def mirror_map(self, x: Float[Array, "..."], a: Scalar) -> Float[Array, "..."]:
        """`grad R_a(x) = mu`. Raises where x is outside the range or the inversion failed."""
        recovered = self.dual(x, a)
        return raise_unless_ok(recovered)

    def inverse_mirror_map(self, mu: Float[Array, "..."], a: Scalar) -> Float[Array, "..."]:
        """`grad R_a^*(mu) = grad Q_a(mu) = x`. Raises where mu is outside the dual interval."""
        return raise_unless_ok(self.primal(mu, a))

    def value(self, x: Float[Array, "..."], a: Scalar) -> Float[Array, ""]:
        """`R_a(x) = <mu, x> - Q_a(mu)` at `mu = grad R_a(x)`. Raises like `mirror_map`."""
        mu = self.mirror_map(x, a)
        return jnp.sum(mu * x) - self.potential(mu, a)

    def hessian(self, x: Float[Array, "..."], a: Scalar) -> Float[Array, "..."]:
        """`Hess R_a(x) = (J J^T)^{-1}`, dense, of shape `x.shape + x.shape`. Raises like `mirror_map`."""
        mu = self.mirror_map(x, a)
        basis = jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)
        metric = jax.vmap(lambda v: self.metric_vector(mu, v, a))(basis).reshape(x.size, x.size)
        return jnp.linalg.inv(metric).reshape(x.shape + x.shape)

    def bregman(self, x: Float[Array, "..."], z: Float[Array, "..."], a: Scalar) -> Float[Array, ""]:
        """`D_a(x, z) = R_a(x) - R_a(z) - <grad R_a(z), x - z> >= 0`. Raises like `mirror_map`."""
        return self.value(x, a) - self.value(z, a) - jnp.sum(self.mirror_map(z, a) * (x - z))

    def minimizer(self, a: Scalar) -> Float[Array, "..."]:
        """`argmin R_a = g(psi(0, a))`, the positional bias."""
        lower, _ = self.dual_interval(a)
        return self.inverse_mirror_map(jnp.zeros_like(lower), a)


def raise_unless_ok(recovered: Recovered) -> Float[Array, "..."]:
    """Returns the value, and raises at run time, naming the first failure, where a point was not successful."""
    return require_success(recovered.value, recovered.result)
