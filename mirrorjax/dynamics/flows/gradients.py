"""What flows of the weights as they are have in common: three gradients, and how a state is read."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Float, PyTree

from ...problem import Problem
from ...problem.reparam import Weights
from ...results import RESULTS
from ..motion import AbstractMotion, Time, finite_status
from ..solution import Point


class AbstractPlainMotion(AbstractMotion):
    """A motion whose state holds the weights `w` and `mu` as they are.

    A subclass gives `initial`, `velocity` and `default_solver`.
    """

    def read(self, t: Time, state: PyTree) -> Point:
        x = self.problem.g(state.w)
        return Point(x, state.w, state.mu, self.problem.objective(x))

    def status(self, t: Time, t1: Time, state: PyTree) -> RESULTS:
        return finite_status(state)


class Gradients(NamedTuple):
    """`x`: grad f(x); `loss`: `grad_w f(g(w))`; `decay`: `alpha(t) grad h(w)`."""

    x: Float[Array, "..."]
    loss: Weights
    decay: Weights


def gradients(problem: Problem, t: Time, w: Weights) -> Gradients:
    """The gradients of the loss and of the regularizer at the weights w and time t."""
    x, pull = jax.vjp(problem.g, w)
    slope = problem.objective.gradient(x)
    decay = jax.tree.map(lambda d: problem.strength(t, like=d) * d, jax.grad(problem.h)(w))
    return Gradients(slope, pull(slope)[0], decay)
