"""The three gradients at given weights that flows outside log-scale coordinates are made of."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Float

from ...problem import Problem
from ...problem.reparam import Weights
from ..motion import Time


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
