"""MomentumFlow: gradient descent with momentum as a flow of second order."""

from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...checks import Number, as_time_scalar, refuted, require_positive
from ...problem import Problem
from ...problem.reparam import Weights
from ..motion import AbstractFlow, Solver, Time, refuse_nonsmooth
from .gradients import AbstractPlainMotion, Gradients, gradients


class MomentumFlow(AbstractFlow):
    """`lambda w'' + w' = -grad_w [f(g(w)) + alpha(t) h(w)]`, lambda = gamma / (1 - beta)^2: the heavy ball, from rest.

    Theorem: descent with learning rate gamma and momentum beta is a discretization of first order of this flow, with
    steps of gamma / (1 - beta) units of time, so that for small steps runs of equal lambda follow one path. The flow
    itself depends on gamma and beta through lambda alone, and tends to gradient flow as lambda -> 0.

    Measured: where R_a exists and lambda is not small, the flow leaves the mirror flow. mu, `-int grad f(x) dt`, is
    recorded and is not `grad R_a(x)`.

    **Arguments:** `gamma`: the learning rate > 0; `beta`: the momentum, in [0, 1).
    **Raises:** `ValueError` for numbers outside these ranges; from `solve`, for a regularizer that is not
    differentiable.

    Source: Papazov, Pesme and Flammarion (arXiv 2403.05293).
    """

    gamma: Float[Array, ""]
    beta: Float[Array, ""]

    def __init__(self, gamma: Number, beta: Number):
        self.gamma, self.beta = as_time_scalar(gamma, "gamma"), as_time_scalar(beta, "beta")
        require_positive(self.gamma, "gamma")
        if refuted(lambda: (self.beta >= 0) & (self.beta < 1), self.beta):
            raise ValueError(f"beta must lie in [0, 1), got {self.beta}: at 1 nothing slows the weights down")

    @property
    def inertia(self) -> Float[Array, ""]:
        """`lambda = gamma / (1 - beta)^2`, in units of time."""
        return self.gamma / (1 - self.beta) ** 2

    def prepare(self, problem: Problem, w0: Weights) -> "MomentumMotion":
        refuse_nonsmooth(problem)
        return MomentumMotion(problem, w0, self.inertia)


class MomentumState(eqx.Module):
    """The weights, their velocity, and `mu = -int grad f(x) dt`."""

    w: Weights
    rate: Weights
    mu: Float[Array, "..."]


class MomentumMotion(AbstractPlainMotion):
    """`MomentumFlow` from given weights at rest."""

    problem: Problem
    w0: Weights
    inertia: Float[Array, ""]

    def initial(self) -> MomentumState:
        rest = jax.tree.map(jnp.zeros_like, self.w0)
        return MomentumState(self.w0, rest, jnp.zeros_like(self.problem.g(self.w0)))

    def velocity(self, t: Time, state: MomentumState) -> MomentumState:
        slopes: Gradients = gradients(self.problem, t, state.w)
        push = jax.tree.map(
            lambda loss, decay, rate: -(loss + decay + rate) / self.inertia.astype(rate.dtype),
            slopes.loss,
            slopes.decay,
            state.rate,
        )
        return MomentumState(state.rate, push, -slopes.x)

    def default_solver(self, *, is_stiff: Callable[[], bool]) -> Solver:
        return diffrax.Tsit5()
