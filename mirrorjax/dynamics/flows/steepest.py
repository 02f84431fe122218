"""SteepestFlow: steepest descent in another norm, the continuous model of sign descent and Adam."""

from collections.abc import Callable
from typing import get_args

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...checks import Number, as_time_scalar, refuted
from ...problem import Problem
from ...problem.reparam import Weights
from ...results import RESULTS
from ..motion import AbstractFlow, AbstractMotion, Solver, Time, finite_status, refuse_nonsmooth
from ..solution import Point
from .descent import Decay
from .gradients import gradients


class SteepestFlow(AbstractFlow):
    """`dw/dt = -sign(G) |G|^(q-1)`, entry by entry, with G the gradient: q = 2 is gradient flow, q = 1 sign descent.

    With coupled decay `G = grad_w [f(g(w)) + alpha h(w)]`; with decoupled decay G is the gradient of f alone, and
    `-alpha grad h` is added to the velocity, as AdamW does. For x = w_1 w_2 with decoupled weight decay the balance
    `|w_1|^q - |w_2|^q` decays exactly as e^(2qca), and `mu = -int sign(grad f) |grad f|^(q-1) dt`, which is recorded,
    is the dual variable of a mirror flow with `Hess R = (4|x|^q + balance^2)^(-1/2)`.

    At q = 1 the velocity jumps where an entry of G changes sign, so that a solver with error control takes ever
    smaller steps along such a line: expect `max_steps_reached`, or take q a little above 1.

    **Arguments:** `q`: in [1, 2]; `decay`: `"coupled"` or `"decoupled"`.
    **Raises:** `ValueError` for a q outside [1, 2] or another `decay`; from `solve`, for a regularizer that is not
    differentiable.

    Source: Jacobs et al. (arXiv 2603.02064); the statements on decay are checked by integration (tests).
    """

    q: Float[Array, ""]
    decay: Decay = eqx.field(static=True)  # static: two algorithms

    def __init__(self, q: Number, decay: Decay = "decoupled"):
        self.q, self.decay = as_time_scalar(q, "q"), decay
        if refuted(lambda: (self.q >= 1) & (self.q <= 2), self.q):
            raise ValueError(f"q must lie in [1, 2], from sign descent to gradient flow, got {self.q}")
        if decay not in get_args(Decay):
            raise ValueError(f'decay must be "coupled" or "decoupled", got {decay!r}')

    def prepare(self, problem: Problem, w0: Weights) -> "SteepestMotion":
        refuse_nonsmooth(problem)
        return SteepestMotion(problem, w0, self)


class SteepestState(eqx.Module):
    """The weights, and `mu = -int sign(grad f) |grad f|^(q-1) dt`."""

    w: Weights
    mu: Float[Array, "..."]


class SteepestMotion(AbstractMotion):
    """`SteepestFlow` from given weights."""

    problem: Problem
    w0: Weights
    flow: SteepestFlow

    def initial(self) -> SteepestState:
        return SteepestState(self.w0, jnp.zeros_like(self.problem.g(self.w0)))

    def velocity(self, t: Time, state: SteepestState) -> SteepestState:
        slopes = gradients(self.problem, t, state.w)
        if self.flow.decay == "coupled":
            rate = jax.tree.map(lambda loss, decay: -self._steepest(loss + decay), slopes.loss, slopes.decay)
        else:
            rate = jax.tree.map(lambda loss, decay: -self._steepest(loss) - decay, slopes.loss, slopes.decay)
        return SteepestState(rate, -self._steepest(slopes.x))

    def read(self, t: Time, state: SteepestState) -> Point:
        x = self.problem.g(state.w)
        return Point(x, state.w, state.mu, self.problem.objective(x))

    def status(self, t: Time, t1: Time, state: SteepestState) -> RESULTS:
        return finite_status(state)

    def default_solver(self, *, is_stiff: Callable[[], bool]) -> Solver:
        return diffrax.Tsit5()

    def _steepest(self, G: Array) -> Array:
        """`sign(G) |G|^(q-1)`; 0 at G = 0, with derivative 0 there, where the power has none."""
        size = jnp.where(G == 0, 1.0, jnp.abs(G))
        return jnp.sign(G) * size ** (self.flow.q.astype(G.dtype) - 1)
