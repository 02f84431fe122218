"""R_a and its conjugate Q_a, the Legendre functions of a pair (g, h): they know no loss and no time.

Everything follows from the flow map psi(mu, a), the weights reached from w0 by flowing along grad g_i for "time" mu_i
and along grad h for "time" a: `grad Q_a(mu) = g(psi(mu, a))`, `Hess Q_a = J J^T`, and R_a is the conjugate of Q_a.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..checks import Numbers, is_concrete, require_kind
from ..problem.reparam import Weights
from .bias import Bias
from .divergence import divergence, envelope
from .points import Point, Recovered as Recovered, Strength, as_point, as_strength, at_strength, compiled, require_ok


class AbstractLegendre(eqx.Module):
    """`R_a(x) = sup_mu <mu, x> - Q_a(mu)`, the time-dependent Legendre function of (g, h, w0).

    All methods take one point x or mu (shaped like `g(w)`) and the accumulated regularization a <= 0, a scalar; use
    `jax.vmap` for more. Where R is `separable`, a may be an array shaped like x, and `R_a(x) = sum_i R_{a_i}(x_i)`: for
    the a_i that a training run has left in each coordinate, of either sign.

    They convert and check their arguments and call the method of the same name with the ending `_at`. A subclass gives
    `weights_at`, `potential_at`, `primal_at`, `dual_at`, `metric_vector_at` and `dual_interval_at`, for arguments that
    are checked already; the rest follows.

    `primal` and `dual` return a status for each point. The methods named for the mathematics (`mirror_map`, ...) raise
    when a status is not successful, so none of them returns a NaN or a wrong number.

    **Raises:** every method, `ValueError` for a point that is not an array of real numbers of the shape of g(w), and
    for an a that is neither a finite scalar <= 0 nor a finite array for an R that takes one. Where a is traced, methods
    with a status return `invalid_strength` instead, those that raise do so at run time, and the others return NaN.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Theorem 3.6, Eq. (5), (7).
    """

    @abc.abstractmethod
    def weights_at(self, mu: Point, a: Strength) -> Weights:
        """`psi(mu, a)`; NaN outside the dual interval."""

    @abc.abstractmethod
    def potential_at(self, mu: Point, a: Strength) -> Float[Array, ""]:
        """`Q_a(mu)`."""

    @abc.abstractmethod
    def primal_at(self, mu: Point, a: Strength) -> Recovered:
        """`grad Q_a(mu)` with a status for each point."""

    @abc.abstractmethod
    def dual_at(self, x: Point, a: Strength) -> Recovered:
        """`grad R_a(x)` with a status for each point."""

    @abc.abstractmethod
    def metric_vector_at(self, mu: Point, v: Point, a: Strength) -> Point:
        """`Hess Q_a(mu) v`."""

    @abc.abstractmethod
    def dual_interval_at(self, a: Strength) -> tuple[Point, Point]:
        """Both ends of the interval of each mu_i; NaN where R_a does not exist."""

    def point_like(self) -> jax.ShapeDtypeStruct:
        """The shape and dtype of x and mu."""
        return jax.eval_shape(lambda: self.evaluate("dual_interval_at", 0.0)[0])

    def value_at(self, x: Point, mu: Point, a: Strength) -> Float[Array, ""]:
        """`R_a(x)`, for x in range and mu = grad R_a(x), with the derivative mu in x."""
        return envelope(self, x, mu, a)

    def hessian_at(self, x: Point, mu: Point, a: Strength) -> Float[Array, "..."]:
        """`Hess R_a(x)`, for x in range and mu = grad R_a(x)."""
        basis = jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)
        metric = jax.vmap(lambda v: self.metric_vector_at(mu, v, a))(basis).reshape(x.size, x.size)
        return jnp.linalg.inv(metric).reshape(x.shape + x.shape)

    def bregman_at(self, x: Point, z: Point, mu_x: Point, mu_z: Point, a: Strength) -> Float[Array, ""]:
        """`D_a(x, z)`, for points in range with mirror maps `mu_x` and `mu_z`."""
        return divergence(self, x, z, mu_x, mu_z, a)

    def primal_from_at(self, mu: Point, step: Point, a: Strength) -> Recovered:
        """`grad Q_a(mu + step)` with a status for each point, for steps that may be below the rounding of mu.

        A subclass whose dual interval has an end computes x from its distance to that end, of which mu alone has too
        few digits.
        """
        return self.primal_at(mu + step, a)

    def minimizer_at(self, a: Strength) -> Recovered:
        """`argmin R_a` with a status for each point."""
        like = self.point_like()
        return self.primal_at(jnp.zeros(like.shape, like.dtype), a)

    def bias_at(self, w: Weights) -> Bias:
        """`(mu_i, a_i)` with `psi(mu_i, a_i) = w` in coordinate i. Raises `ValueError` for families without a rule."""
        raise ValueError(f"{type(self).__name__} has no rule that reads mu and a off the weights of a coordinate")

    def dilated_bias_at(self, w: Weights, scale: Float[Array, ""]) -> Bias:
        """`bias_at` for the weight decay `scale |w|^2` where it only dilates g. Raises `ValueError` without a rule."""
        raise ValueError(f"{type(self).__name__} has no rule that reads mu and a off decayed weights of a coordinate")

    @property
    def separable(self) -> bool:
        """True if `R_a(x) = sum_i R_a,i(x_i)`, so that each coordinate has its own status."""
        return False

    @property
    def leaks(self) -> bool:
        """True unless the flow of h is known to commute with that of g, so that `leak` is 0 whatever its numbers."""
        return False

    @property
    def leak(self) -> Float[Array, "..."]:
        """Lambda in `d mu/dt = -grad f(x) - alpha Lambda^T mu`; 0 where the flow of h commutes with that of g.

        Where h only normalises g, `[grad h, grad g_i] = sum_j Lambda_ij grad g_j`, decay acts on the dual variable too.
        The shape is () where Lambda is a multiple of I, that of x where it is diagonal, `x.shape + x.shape` otherwise.
        """
        like = self.point_like()
        return jnp.zeros((), like.dtype)

    def leak_product(self, mu: Point) -> Point:
        """`Lambda^T mu`, shaped like mu: the rate, per unit of alpha, at which decay drains the dual variable."""
        return transposed_product(self.leak, mu)

    def evaluate(self, hook: str, a: Strength, *points: Point) -> Any:
        """`hook(*points, a)` for one of the methods `_at`, as one program: by single operations it takes 5 to 50 times.

        A Python number becomes an array of weak type: it still takes the precision of the arrays it meets, and another
        value of it does not compile the program again. At a traced a that is not valid the answer is `at_strength`'s.
        """
        with jax.transfer_guard("allow"):
            strength = jnp.asarray(a)
        return _evaluate(self, hook, strength, is_concrete(a), points)

    def check_measurements(self, rows: Float[Array, "k ..."]) -> None:
        """Raises `ValueError` when R_a does not hold for measurements `<row, x>`; rows are concrete, shaped like x."""

    def weights(self, mu: Numbers, a: Numbers) -> Weights:
        """`psi(mu, a)`: the weights of the flow when its dual variable is mu; NaN outside the dual interval."""
        mu = as_point(mu, self.point_like(), "mu")
        return self.evaluate("weights_at", as_strength(a, self), mu)

    def potential(self, mu: Numbers, a: Numbers) -> Float[Array, ""]:
        """`Q_a(mu)`, the convex conjugate of R_a."""
        mu = as_point(mu, self.point_like(), "mu")
        return self.evaluate("potential_at", as_strength(a, self), mu)

    def primal(self, mu: Numbers, a: Numbers) -> Recovered:
        """`grad Q_a(mu) = g(psi(mu, a))` with a status for each point.

        It is right for the mu given. Near an end of the dual interval the rounding of mu alone moves x by much.
        """
        mu = as_point(mu, self.point_like(), "mu")
        return self.evaluate("primal_at", as_strength(a, self), mu)

    def dual(self, x: Numbers, a: Numbers) -> Recovered:
        """`grad R_a(x)` with a status for each point."""
        x = as_point(x, self.point_like(), "x")
        return self.evaluate("dual_at", as_strength(a, self), x)

    def metric_vector(self, mu: Numbers, v: Numbers, a: Numbers) -> Point:
        """`Hess Q_a(mu) v = J J^T v = (Hess R_a(x))^{-1} v` at w = psi(mu, a)."""
        like = self.point_like()
        mu, v = as_point(mu, like, "mu"), as_point(v, like, "v")
        return self.evaluate("metric_vector_at", as_strength(a, self), mu, v)

    def dual_interval(self, a: Numbers) -> tuple[Point, Point]:
        """The open interval of each mu_i on which Q_a is finite, `(lower, upper)`; infinite where it has no end.

        Both ends are NaN in a coordinate where R_a does not exist; `primal` and `dual` give the reason.
        """
        return self.evaluate("dual_interval_at", as_strength(a, self))

    def mirror_map(self, x: Numbers, a: Numbers) -> Point:
        """`grad R_a(x) = mu`. Raises where x is outside the range or the inversion failed."""
        x = as_point(x, self.point_like(), "x")
        recovered = self.dual(x, a)
        return require_ok(recovered.value, recovered.result, x, "x")

    def inverse_mirror_map(self, mu: Numbers, a: Numbers) -> Point:
        """`grad R_a^*(mu) = grad Q_a(mu) = x`. Raises where mu is outside the dual interval."""
        mu = as_point(mu, self.point_like(), "mu")
        recovered = self.primal(mu, a)
        return require_ok(recovered.value, recovered.result, mu, "mu")

    def value(self, x: Numbers, a: Numbers) -> Float[Array, ""]:
        """`R_a(x) = <mu, x> - Q_a(mu)` at `mu = grad R_a(x)`. Raises like `mirror_map`.

        Its gradient is the mirror map itself, with all the digits of mu.
        """
        (x,), (mu,), a = self._recovered(a, x=x)
        return self.evaluate("value_at", a, x, mu)

    def hessian(self, x: Numbers, a: Numbers) -> Float[Array, "..."]:
        """`Hess R_a(x) = (J J^T)^{-1}`, dense, of shape `x.shape + x.shape`. Raises like `mirror_map`."""
        (x,), (mu,), a = self._recovered(a, x=x)
        return self.evaluate("hessian_at", a, x, mu)

    def bregman(self, x: Numbers, z: Numbers, a: Numbers) -> Float[Array, ""]:
        """`D_a(x, z) = R_a(x) - R_a(z) - <grad R_a(z), x - z> >= 0`. Raises like `mirror_map`.

        The closed forms and the numeric path never take this difference, so that D keeps its digits where x is close
        to z; `mirrorjax.geometry.divergence` says how, and what other subclasses get.
        """
        (x, z), (mu_x, mu_z), a = self._recovered(a, x=x, z=z)
        return self.evaluate("bregman_at", a, x, z, mu_x, mu_z)

    def minimizer(self, a: Numbers) -> Point:
        """`argmin R_a = g(psi(0, a))`, the positional bias. Raises where R_a does not exist."""
        recovered = self.evaluate("minimizer_at", as_strength(a, self))
        return require_ok(recovered.value, recovered.result, jnp.zeros_like(recovered.value), "mu")

    def _recovered(self, a: Numbers, **points: Numbers) -> tuple[list[Point], list[Point], Strength]:
        """The points and their mirror maps, which are checked to be successful, and a."""
        like = self.point_like()
        given = {name: as_point(point, like, name) for name, point in points.items()}
        found = [self.dual(point, a) for point in given.values()]
        # The check sits on the points: a formula that needs no mu would otherwise lose it under jit.
        checked = [
            require_ok(point, recovered.result, point, name)
            for (name, point), recovered in zip(given.items(), found, strict=True)
        ]
        return checked, [recovered.value for recovered in found], as_strength(a, self)


@compiled
def _evaluate(R: AbstractLegendre, hook: str, a: Float[Array, "..."], valid: bool, points: tuple[Point, ...]) -> Any:
    """`R.<hook>(*points, a)`, for an a that is known to be valid or else checked at run time."""

    def evaluate(a: Strength) -> Any:
        return getattr(R, hook)(*points, a)

    return evaluate(a) if valid else at_strength(evaluate, a)


def transposed_product(leak: Float[Array, "..."], mu: Point) -> Point:
    """`Lambda^T mu` for a Lambda given as in `AbstractLegendre.leak`: a multiple of I, a diagonal, or all entries."""
    return leak * mu if leak.ndim <= mu.ndim else jnp.tensordot(mu, leak, mu.ndim)


def scalar_leak(R: AbstractLegendre, what: str) -> Float[Array, ""]:
    """The leak of R, a scalar. Raises `ValueError`, with the name of what needs it, where Lambda is no multiple of I.

    For such a Lambda mu leaves the range of Z^T, so that the limit is no minimum of R_a.
    """
    leak = R.leak
    if leak.ndim:
        raise ValueError(
            f"{what} needs a dual variable that leaks at one rate, but the leak of this R has shape {leak.shape} "
            "(Lambda is no multiple of I): mu leaves range(Z^T), and the limit does not minimise R_a; use MirrorFlow()"
        )
    return leak


def require_legendre(R: Any) -> None:
    """Raises `ValueError` unless R is a Legendre function."""
    require_kind(R, AbstractLegendre, "R", "a Legendre function, such as legendre(g, h, w0) returns")
