"""The three flows that must agree: state, velocity and read-out of each. They know nothing of solvers.

A flow is told the problem once, in `start`, which returns a context (whatever the velocity needs) and the initial
state.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ...checks import refuted
from ...geometry.base import AbstractLegendre
from ...geometry.legendre import legendre
from ...problem import Problem
from ...problem.reparam import Weights
from ...results import RESULTS, first_failure
from ..coordinates import AbstractCoordinates, choose_coordinates
from ..solution import Point

Time = Float[Array, ""]


class AbstractFlow(eqx.Module):
    """How a `Problem` moves. A subclass gives `start`, `velocity`, `read` and `status`.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Eq. (3), (5), (7).
    """

    @abc.abstractmethod
    def start(self, problem: Problem, w0: Weights) -> tuple[Any, PyTree]:
        """`(context, state at t = 0)`. Raises `ValueError` where this flow does not exist for the problem."""

    @abc.abstractmethod
    def velocity(self, t: Time, state: PyTree, context: Any) -> PyTree:
        """`d state / dt`, like the state."""

    @abc.abstractmethod
    def read(self, t: Time, state: PyTree, context: Any) -> Point:
        """What the state stands for."""

    @abc.abstractmethod
    def status(self, t: Time, t1: Time, state: PyTree, context: Any) -> RESULTS:
        """Whether the state reached at time t is one the flow is defined at, and why it may have ended before t1."""


def refuse_nonsmooth(problem: Problem) -> None:
    """A flow needs grad h; where h has none, say what does handle it."""
    if not problem.h.smooth:
        raise ValueError(
            f"{type(problem.h).__name__} is not differentiable at 0, so its gradient flow is a differential inclusion; "
            "use flow=ProximalDescent(step_size), or a smooth surrogate through CustomRegularizer"
        )


def finite_status(state: PyTree) -> RESULTS:
    """`diverged` when a number in the state is not finite."""
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(eqx.filter(state, eqx.is_inexact_array))]
    return RESULTS.where(jnp.all(jnp.stack(finite)), RESULTS.successful, RESULTS.diverged)


class WeightFlow(AbstractFlow):
    """`dw/dt = -grad_w [f(g(w)) + alpha(t) h(w)]`, the weights and nothing else: what a sweep follows.

    `PrimalFlow` without mu, which no result of a sweep holds and which would double the state: `read` gives NaN for it.
    """

    def start(self, problem: Problem, w0: Weights) -> tuple[Problem, AbstractCoordinates]:
        refuse_nonsmooth(problem)
        return problem, choose_coordinates(problem, w0)

    def velocity(self, t: Time, state: AbstractCoordinates, context: Problem) -> PyTree:
        return self.velocity_and_slope(t, state, context)[0]

    def velocity_and_slope(self, t: Time, state: AbstractCoordinates, context: Problem) -> tuple[PyTree, Array]:
        """Also `grad f(x)`, which it is computed from."""
        slope = context.objective.gradient(state.parameters(context))
        return state.velocity(context, slope, context.strength(t, like=slope)), slope

    def read(self, t: Time, state: AbstractCoordinates, context: Problem) -> Point:
        x = state.parameters(context)
        return Point(x, state.weights(), jnp.full_like(x, jnp.nan), context.objective(x))

    def status(self, t: Time, t1: Time, state: AbstractCoordinates, context: Problem) -> RESULTS:
        return finite_status(state)


class PrimalState(eqx.Module):
    """The weights, in the coordinates they are integrated in, and `mu = -int grad f(x) dt`."""

    position: AbstractCoordinates
    mu: Float[Array, "..."]


class PrimalFlow(AbstractFlow):
    """`dw/dt = -grad_w [f(g(w)) + alpha(t) h(w)]`: gradient flow on the weights, defined for every smooth pair (g, h).

    Integrated on a logarithmic scale where g and h are homogeneous, see `dynamics/coordinates.py`; `d mu/dt = -grad
    f(x)` is integrated along.

    Source: the paper's Eq. (3).
    """

    def start(self, problem: Problem, w0: Weights) -> tuple[Problem, PrimalState]:
        _, position = WeightFlow().start(problem, w0)
        return problem, PrimalState(position, jnp.zeros_like(problem.g(w0)))

    def velocity(self, t: Time, state: PrimalState, context: Problem) -> PrimalState:
        rate, slope = WeightFlow().velocity_and_slope(t, state.position, context)
        return PrimalState(rate, -slope)

    def read(self, t: Time, state: PrimalState, context: Problem) -> Point:
        point = WeightFlow().read(t, state.position, context)
        return Point(point.x, point.w, state.mu, point.loss)

    def status(self, t: Time, t1: Time, state: PrimalState, context: Problem) -> RESULTS:
        return finite_status(state)


Geometric = tuple[Problem, AbstractLegendre]


def _geometry(problem: Problem, w0: Weights, R: AbstractLegendre | None) -> AbstractLegendre:
    """R_a of the problem: the given one, which must start at w0, or the one that theory gives."""
    refuse_nonsmooth(problem)
    if R is None:
        return legendre(problem.g, problem.h, w0)
    x0 = problem.g(w0)
    start = R.primal(jnp.zeros_like(x0), jnp.zeros((), x0.dtype)).value
    if refuted(lambda: jnp.allclose(start, x0, rtol=1e-4, atol=1e-6), start, x0):
        raise ValueError(f"the given R starts at x = {start}, the weights at g(w0) = {x0}; build R from the same w0")
    return R


def _accumulated(problem: Problem, t: Time, like: Float[Array, "..."]) -> Float[Array, ""]:
    return problem.accumulated(t).astype(like.dtype)


class MirrorFlow(AbstractFlow):
    """`d mu/dt = -grad f(x)`, `x = grad R_{a_t}^*(mu)`: the same flow in dual coordinates.

    Tiny weights live in the exponents of R_a, so nothing is lost however strong the decay was.

    **Arguments:** `R`: the Legendre function to use; `None` for `legendre(g, h, w0)`.
    **Raises:** at start `ValueError` where (g, h, w0) has no R_a, or the given one starts elsewhere.

    Source: the paper's Eq. (5), Theorem 3.6.
    """

    R: AbstractLegendre | None = None

    def start(self, problem: Problem, w0: Weights) -> tuple[Geometric, Float[Array, "..."]]:
        R = _geometry(problem, w0, self.R)
        return (problem, R), jnp.zeros_like(problem.g(w0))

    def velocity(self, t: Time, state: Float[Array, "..."], context: Geometric) -> Float[Array, "..."]:
        problem, R = context
        x = R.primal(state, _accumulated(problem, t, state)).value
        return -problem.objective.gradient(x)

    def read(self, t: Time, state: Float[Array, "..."], context: Geometric) -> Point:
        problem, R = context
        a = _accumulated(problem, t, state)
        x = R.primal(state, a).value
        return Point(x, R.weights(state, a), state, problem.objective(x))

    def status(self, t: Time, t1: Time, state: Float[Array, "..."], context: Geometric) -> RESULTS:
        problem, R = context
        # At t1's a: when decay has used up the range, that is why the flow ended, not the step size.
        geometry = first_failure(R.primal(state, _accumulated(problem, t1, state)).result)
        return RESULTS.where(t < t1, geometry, finite_status(state))


class RiemannianFlow(AbstractFlow):
    """`dx/dt = -(Hess R_a(x))^{-1} (grad f(x) - alpha d/da grad R_a(x))`: the same flow in x itself.

    Its state is x, so it keeps only the digits that x has: where |x| is far below `atol`, prefer `MirrorFlow`. Each
    evaluation inverts the inverse mirror map; with a numeric R that is an integration of its own, and slow.

    **Arguments:** `R`: the Legendre function to use; `None` for `legendre(g, h, w0)`.
    **Raises:** at start `ValueError` where (g, h, w0) has no R_a, or the given one starts elsewhere.

    Source: the paper's Eq. (7).
    """

    R: AbstractLegendre | None = None

    def start(self, problem: Problem, w0: Weights) -> tuple[Geometric, Float[Array, "..."]]:
        R = _geometry(problem, w0, self.R)
        return (problem, R), problem.g(w0)

    def velocity(self, t: Time, state: Float[Array, "..."], context: Geometric) -> Float[Array, "..."]:
        problem, R = context
        a = _accumulated(problem, t, state)
        mu, drift = jax.jvp(lambda a: R.dual(state, a).value, (a,), (jnp.ones_like(a),))
        slope = problem.objective.gradient(state)
        return -R.metric_vector(mu, slope - problem.strength(t, like=state) * drift, a)

    def read(self, t: Time, state: Float[Array, "..."], context: Geometric) -> Point:
        problem, R = context
        a = _accumulated(problem, t, state)
        mu = R.dual(state, a).value
        return Point(state, R.weights(mu, a), mu, problem.objective(state))

    def status(self, t: Time, t1: Time, state: Float[Array, "..."], context: Geometric) -> RESULTS:
        problem, R = context
        geometry = first_failure(R.dual(state, _accumulated(problem, t1, state)).result)
        return RESULTS.where(t < t1, geometry, finite_status(state))
