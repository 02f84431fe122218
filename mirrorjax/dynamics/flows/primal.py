"""Gradient flow on the weights, with and without the dual variable integrated along."""

from collections.abc import Callable
from typing import Any, cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...geometry.base import AbstractLegendre
from ...geometry.legendre import legendre
from ...problem import Problem
from ...problem.objective import AbstractMeasured
from ...problem.reparam import AbstractReparameterization, Weights
from ...results import RESULTS
from ..coordinates import AbstractCoordinates, choose_coordinates
from ..motion import AbstractFlow, AbstractMotion, Solver, Time, finite_status, refuse_nonsmooth
from ..solution import Point
from ..solvers.rkc import RKC

# Steps of `along_gradient`. The changes that count are below 0.1, where D bounds them, and the error of a step is of
# fifth order.
DISPLACING = 4


class PrimalFlow(AbstractFlow):
    """`dw/dt = -grad_w [f(g(w)) + alpha(t) h(w)]`: gradient flow on the weights, defined for every smooth pair (g, h).

    Integrated on a logarithmic scale where g and h are homogeneous, see `dynamics/coordinates.py`; `d mu/dt = -grad
    f(x)` is integrated along.

    **Raises:** from `solve`, `ValueError` for a regularizer that is not differentiable.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Eq. (3).
    """

    def prepare(self, problem: Problem, w0: Weights) -> "PrimalMotion":
        refuse_nonsmooth(problem)
        return PrimalMotion(problem, w0)

    def without_dual(self) -> "WeightFlow":
        return WeightFlow()


class WeightFlow(AbstractFlow):
    """`dw/dt = -grad_w [f(g(w)) + alpha(t) h(w)]`, the weights and nothing else: the flow that a sweep integrates.

    `PrimalFlow` without mu, which no result of a sweep holds and which would double the state: `mu` of its solutions
    is NaN.
    """

    def prepare(self, problem: Problem, w0: Weights) -> "WeightMotion":
        refuse_nonsmooth(problem)
        return WeightMotion(problem, w0)


class WeightMotion(AbstractMotion):
    """`WeightFlow` from the weights w0. The state is the weights in `AbstractCoordinates`."""

    problem: Problem
    w0: Weights

    def initial(self) -> AbstractCoordinates:
        return choose_coordinates(self.problem, self.w0)

    def velocity(self, t: Time, state: AbstractCoordinates) -> AbstractCoordinates:
        return self.velocity_and_slope(t, state)[0]

    def velocity_and_slope(self, t: Time, state: AbstractCoordinates) -> tuple[AbstractCoordinates, Array]:
        """The velocity and `grad f(x)`, from which the velocity is computed."""
        slope = self.problem.objective.gradient(state.parameters(self.problem))
        return state.velocity(self.problem, slope, self.problem.strength(t, like=slope)), slope

    @property
    def can_be_displaced(self) -> bool:
        return self.problem.g.elementwise

    def displaced(self, t: Time, state: AbstractCoordinates, change: Float[Array, "..."]) -> tuple[Array, Array]:
        w = along_gradient(self.problem.g, state.weights(), change)
        squares = jax.tree.map(jnp.square, gradient_of(self.problem.g, w))
        return self.problem.g(w), jax.tree.reduce(jnp.add, squares)

    def displaced_state(self, t: Time, state: AbstractCoordinates, nu: Float[Array, " n"]) -> AbstractCoordinates:
        change = cast(AbstractMeasured, self.problem.objective).adjoint(nu)
        return choose_coordinates(self.problem, along_gradient(self.problem.g, state.weights(), change))

    def read(self, t: Time, state: AbstractCoordinates) -> Point:
        x = state.parameters(self.problem)
        return Point(x, state.weights(), jnp.full_like(x, jnp.nan), self.problem.objective(x))

    def status(self, t: Time, t1: Time, state: AbstractCoordinates) -> RESULTS:
        return finite_status(state)

    def default_solver(self, *, is_stiff: Callable[[], bool]) -> Solver:
        return RKC() if is_stiff() else diffrax.Tsit5()


class PrimalState(eqx.Module):
    """The weights, in the coordinates they are integrated in, and `mu = -int grad f(x) dt`."""

    position: AbstractCoordinates
    mu: Float[Array, "..."]


class PrimalMotion(AbstractMotion):
    """`PrimalFlow` from given weights: the motion of the weights, and mu beside it."""

    problem: Problem
    w0: Weights

    @property
    def weights(self) -> WeightMotion:
        return WeightMotion(self.problem, self.w0)

    def initial(self) -> PrimalState:
        return PrimalState(self.weights.initial(), jnp.zeros_like(self.problem.g(self.w0)))

    def velocity(self, t: Time, state: PrimalState) -> PrimalState:
        rate, slope = self.weights.velocity_and_slope(t, state.position)
        return PrimalState(rate, -slope)

    def read(self, t: Time, state: PrimalState) -> Point:
        point = self.weights.read(t, state.position)
        return Point(point.x, point.w, state.mu, point.loss)

    def limit_legendre(self) -> AbstractLegendre:
        return legendre(self.problem.g, self.problem.h, self.w0)

    def status(self, t: Time, t1: Time, state: PrimalState) -> RESULTS:
        return finite_status(state)

    def default_solver(self, *, is_stiff: Callable[[], bool]) -> Solver:
        return RKC() if is_stiff() else diffrax.Tsit5()


def gradient_of(g: AbstractReparameterization, w: Weights) -> Weights:
    """`d x_i / d w_i` of an elementwise g."""
    x, pull = jax.vjp(g, w)
    return pull(jnp.ones_like(x))[0]


def along_gradient(g: AbstractReparameterization, w: Weights, change: Float[Array, "..."]) -> Weights:
    """The weights to which `dw/dmu = grad g(w)` leads from w, by a few steps of the classical Runge-Kutta method.

    That is how weights move with the dual variable after decay, whatever R_a is. For an elementwise g.
    """
    step = change / DISPLACING

    def moved(w: Weights, length: Array, slope: Weights) -> Weights:
        return jax.tree.map(lambda leaf, slope: leaf + length * slope, w, slope)

    def advance(_: Any, w: Weights) -> Weights:
        first = gradient_of(g, w)
        second = gradient_of(g, moved(w, step / 2, first))
        third = gradient_of(g, moved(w, step / 2, second))
        fourth = gradient_of(g, moved(w, step, third))
        mean = jax.tree.map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, first, second, third, fourth)
        return moved(w, step, mean)

    return jax.lax.fori_loop(0, DISPLACING, advance, w)
