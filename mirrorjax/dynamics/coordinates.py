"""Coordinates in which the weights are integrated, so that a solver never loses digits to tiny weights.

Decay shrinks weights by e^-25 and more before they grow back; a solver that controls absolute errors of order 1e-8
would round them to zero. For homogeneous g and h the flow is therefore integrated in `w = e^s V`, with V of order one
and s the logarithm of the scale: the velocity of (s, V) is written with the powers of e^s taken out, so nothing in it
over- or underflows, uniform decay only moves s (at a constant rate, which costs no step), and float32 follows any
amount of decay.
"""

import abc
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from ..problem import Problem
from ..problem.reparam import Weights

Parameters = Float[Array, "..."]


class AbstractCoordinates(eqx.Module):
    """A point, in variables y <-> w chosen for the flow `dw/dt = -grad_w [f(g(w)) + alpha h(w)]`."""

    @abc.abstractmethod
    def weights(self) -> Weights:
        """w at this point."""

    @abc.abstractmethod
    def parameters(self, problem: Problem) -> Parameters:
        """`g(w)` at this point."""

    @abc.abstractmethod
    def velocity(self, problem: Problem, slope: Parameters, alpha: Float[ArrayLike, ""]) -> PyTree:
        """The time derivative of this point, given `slope = grad f(x)`; of the same class."""


class Plain(AbstractCoordinates):
    """`y = w`: for maps that are not homogeneous, where no scale can be taken out."""

    w: Weights

    def weights(self) -> Weights:
        return self.w

    def parameters(self, problem: Problem) -> Parameters:
        return problem.g(self.w)

    def velocity(self, problem: Problem, slope: Parameters, alpha: Float[ArrayLike, ""]) -> "Plain":
        (pull,) = jax.vjp(problem.g, self.w)[1](slope)
        decay = jax.grad(problem.h)(self.w)
        return Plain(jax.tree.map(lambda p, d: -p - alpha * d, pull, decay))


class LogScale(AbstractCoordinates):
    """`w = e^s V`, for g of degree p >= 2 and h of degree q >= 2.

    With `F = -e^{(p-2)s} J(V)^T grad f(x) - alpha e^{(q-2)s} grad h(V)` (that is, e^{-s} dw/dt), the velocity is
    `ds/dt = <V, F> / <V, V>`, `dV/dt = F - (ds/dt) V`; |V| stays constant. There is one s for each coordinate when g
    and h act elementwise (the inner product then runs over the factors), one for the whole tree otherwise.
    """

    direction: Weights
    log_scale: Float[Array, "..."]
    degrees: tuple[int, int] = eqx.field(static=True)  # static: p and q, exponents of the velocity

    def weights(self) -> Weights:
        return jax.tree.map(lambda leaf: jnp.exp(self.log_scale) * leaf, self.direction)

    def parameters(self, problem: Problem) -> Parameters:
        return _times_power(self.degrees[0], self.log_scale, problem.g(self.direction))

    def velocity(self, problem: Problem, slope: Parameters, alpha: Float[ArrayLike, ""]) -> "LogScale":
        V, s, (p, q) = self.direction, self.log_scale, self.degrees
        (pull,) = jax.vjp(problem.g, V)[1](_times_power(p - 2, s, slope))
        strength = _times_power(q - 2, s, alpha)
        decay = jax.grad(problem.h)(V)
        F = jax.tree.map(lambda pull, d: -pull - strength * d, pull, decay)
        growth = _inner(V, F, s.ndim) / _safe(_inner(V, V, s.ndim))
        return LogScale(jax.tree.map(lambda f, v: f - growth * v, F, V), growth, self.degrees)


def _times_power(power: int, log_scale: Float[Array, "..."], value: Any) -> Any:
    """`e^(power log_scale) value`, all powers from one exponential; for power 0, the common case, from none."""
    return jax.lax.integer_pow(jnp.exp(log_scale), power) * value if power else value


def choose_coordinates(problem: Problem, w0: Weights) -> AbstractCoordinates:
    """Converts w0 to `LogScale` coordinates where g and h are homogeneous of degree >= 2, to `Plain` ones otherwise."""
    p, q = problem.g.degree, problem.h.degree
    if p is None or q is None or p < 2 or q < 2:
        return Plain(w0)
    leaves = jax.tree.leaves(w0)
    elementwise = problem.g.elementwise and problem.h.elementwise
    count = len(leaves) if elementwise else sum(leaf.size for leaf in leaves)
    ndim = leaves[0].ndim if elementwise else 0
    # In two steps, since squares of tiny weights underflow. Root mean square in the end, so that the entries of V, and
    # not only its norm, are of order one.
    largest = _safe(_largest(w0, ndim))
    unit = jax.tree.map(lambda leaf: leaf / largest, w0)
    # Any scale gives the same flow, so derivatives need not go through the choice (nor through the root at zero).
    scale = jax.lax.stop_gradient(largest * jnp.sqrt(_safe(_inner(unit, unit, ndim) / count)))
    return LogScale(jax.tree.map(lambda leaf: leaf / scale, w0), jnp.log(scale), (p, q))


def _inner(a: Weights, b: Weights, ndim: int) -> Float[Array, "..."]:
    """Inner product over the leaves, coordinate by coordinate (ndim > 0), or over everything (ndim = 0)."""
    products = jax.tree.leaves(jax.tree.map(jnp.multiply, a, b))
    if ndim == 0:
        products = [jnp.sum(product) for product in products]
    return sum(products[1:], products[0])


def _largest(w: Weights, ndim: int) -> Float[Array, "..."]:
    """Largest absolute entry over the leaves, coordinate by coordinate (ndim > 0), or of everything (ndim = 0)."""
    sizes = [jnp.abs(leaf) if ndim else jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(w)]
    return functools.reduce(jnp.maximum, sizes)


def _safe(value: Float[Array, "..."]) -> Float[Array, "..."]:
    """Replaces zeros by 1: weights that are exactly zero stay zero for ever, at any scale."""
    return jnp.where(value == 0, 1.0, value)
