"""Discrete training on the flow's clock: one step of size eta takes eta units of time.

Descent is a flow whose steps are given, not chosen, so it is run by the same diffrax loop: `DescentSolver` is a diffrax
solver whose step is the optimizer's update. Saving, statistics, adjoints and statuses then need no second copy.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

from ...checks import as_scalar, refuted
from ...problem import Problem
from ...problem.reparam import Weights
from ...results import RESULTS
from ..solution import Point
from .continuous import AbstractFlow, Time, finite_status, refuse_nonsmooth

Decay = Literal["coupled", "decoupled"]


def _step_size(value: ArrayLike) -> Float[Array, ""]:
    step = as_scalar(value, "step_size").astype(float)
    if refuted(lambda: jnp.isfinite(step) & (step > 0), step):
        raise ValueError(f"step_size must be positive and finite, got {step}")
    return step


def whole(count: Float[Array, "..."]) -> Bool[Array, "..."]:
    """Whether a count of steps, the quotient of two times, is a whole number but for the rounding of the times."""
    return jnp.abs(count - jnp.round(count)) <= 8 * jnp.finfo(count.dtype).eps * jnp.maximum(jnp.abs(count), 1.0)


class DescentState(eqx.Module):
    """The weights and `mu = -sum eta grad f(x)`."""

    w: Weights
    mu: Float[Array, "..."]


class AbstractDescent(AbstractFlow):
    """A discrete trajectory with steps of `step_size`, between which saved values are interpolated linearly.

    A subclass gives `optimizer_state` and `update`.
    """

    step_size: eqx.AbstractVar[Float[Array, ""]]

    @abc.abstractmethod
    def optimizer_state(self, state: DescentState) -> PyTree:
        """The optimizer's memory at t = 0."""

    @abc.abstractmethod
    def update(
        self, t: Time, eta: Time, state: DescentState, memory: PyTree, context: Problem
    ) -> tuple[DescentState, PyTree]:
        """One step of size eta from time t: the next state and memory."""

    def read(self, t: Time, state: DescentState, context: Problem) -> Point:
        x = context.g(state.w)
        return Point(x, state.w, state.mu, context.objective(x))

    def status(self, t: Time, t1: Time, state: DescentState, context: Problem) -> RESULTS:
        return finite_status(state)

    def velocity(self, t: Time, state: DescentState, context: Problem) -> DescentState:
        """`-grad f`, on the weights and on x; the regularizer is the business of `update`."""
        x, pull = jax.vjp(context.g, state.w)
        slope = context.objective.gradient(x)
        return DescentState(jax.tree.map(jnp.negative, pull(slope)[0]), -slope)


class Descent(AbstractDescent):
    """`w <- w + eta * optimizer(grad)`: gradient descent by any optax optimizer, `t <- t + eta`.

    **Arguments:** `optimizer`: an optax transformation at unit learning rate, e.g. `optax.sgd(1.0)`,
    `optax.sgd(1.0, momentum=0.9)`, `optax.adam(1.0)`; `step_size`: eta > 0, its learning rate and the time a step
    takes; `decay`: `"coupled"`: the optimizer sees `grad f + alpha grad h` (L2 regularization), `"decoupled"`: it sees
    `grad f` and `eta alpha grad h` is subtracted beside it (AdamW).
    **Raises:** `ValueError` for a step size that is not positive and finite, another `decay`, or an optimizer that is
    not an optax transformation.

    Source: the paper's section 5 (step 0.25); Loshchilov and Hutter (2019) for decoupled decay.
    """

    optimizer: optax.GradientTransformation
    step_size: Float[Array, ""]
    decay: Decay = eqx.field(static=True)  # static: two algorithms

    def __init__(self, optimizer: optax.GradientTransformation, step_size: ArrayLike, decay: Decay = "coupled"):
        self.optimizer, self.step_size, self.decay = optimizer, _step_size(step_size), decay
        if decay not in get_args(Decay):
            raise ValueError(f'decay must be "coupled" or "decoupled", got {decay!r}')
        if not isinstance(optimizer, optax.GradientTransformation):
            raise ValueError(f"optimizer must be an optax transformation such as optax.sgd(1.0), got {optimizer!r}")

    def start(self, problem: Problem, w0: Weights) -> tuple[Problem, DescentState]:
        refuse_nonsmooth(problem)
        return problem, DescentState(w0, jnp.zeros_like(problem.g(w0)))

    def optimizer_state(self, state: DescentState) -> PyTree:
        return self.optimizer.init(state.w)

    def update(
        self, t: Time, eta: Time, state: DescentState, memory: PyTree, context: Problem
    ) -> tuple[DescentState, PyTree]:
        velocity = self.velocity(t, state, context)
        decay = jax.tree.map(lambda d: context.strength(t, like=d) * d, jax.grad(context.h)(state.w))
        gradient = jax.tree.map(jnp.negative, velocity.w)
        if self.decay == "coupled":
            gradient = jax.tree.map(jnp.add, gradient, decay)
        step, memory = self.optimizer.update(gradient, memory, state.w)
        if self.decay == "decoupled":
            step = jax.tree.map(jnp.subtract, step, decay)
        move = DescentState(step, velocity.mu)  # type: ignore[arg-type]
        return jax.tree.map(lambda y, dy: y + eta.astype(y.dtype) * dy, state, move), memory


class ProximalDescent(AbstractDescent):
    """`w <- prox_{eta alpha h}(w - eta grad_w f(g(w)))`, `t <- t + eta`: for regularizers with a proximal map (`L1`).

    **Arguments:** `step_size`: eta > 0.
    **Raises:** `ValueError` for a step size that is not positive and finite; at start for a regularizer without `prox`.

    Source: Beck and Teboulle (2009), ISTA; the paper's linear + L1 baseline, section 5.
    """

    step_size: Float[Array, ""]

    def __init__(self, step_size: ArrayLike):
        self.step_size = _step_size(step_size)

    def start(self, problem: Problem, w0: Weights) -> tuple[Problem, DescentState]:
        if not hasattr(problem.h, "prox"):
            raise ValueError(f"ProximalDescent needs a regularizer with a proximal map, such as L1; got {problem.h}")
        return problem, DescentState(w0, jnp.zeros_like(problem.g(w0)))

    def optimizer_state(self, state: DescentState) -> PyTree:
        return None

    def update(
        self, t: Time, eta: Time, state: DescentState, memory: PyTree, context: Problem
    ) -> tuple[DescentState, PyTree]:
        velocity = self.velocity(t, state, context)
        moved = jax.tree.map(lambda y, dy: y + eta.astype(y.dtype) * dy, state, velocity)
        shrunk = context.h.prox(moved.w, eta * context.alpha(t))  # type: ignore[attr-defined]
        return DescentState(shrunk, moved.mu), memory


class DescentSolver(diffrax.AbstractSolver):
    """A diffrax solver whose step is one update of the descent that comes with `args`; its clock counts the steps."""

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., diffrax.LocalLinearInterpolation]] = diffrax.LocalLinearInterpolation

    def order(self, terms: PyTree) -> int:
        return 1

    def init(self, terms: PyTree, t0: Any, t1: Any, y0: DescentState, args: Any) -> PyTree:
        descent, _, _ = args
        return descent.optimizer_state(y0)

    def step(self, terms: PyTree, t0: Any, t1: Any, y0: DescentState, args: Any, solver_state: PyTree, made_jump: Any):
        descent, context, _ = args
        eta = descent.step_size
        # A few roundings after the start of the step: a switch-off on the grid of steps is never missed by one.
        t = jnp.round(t0).astype(eta.dtype) * eta * (1 + 4 * jnp.finfo(eta.dtype).eps)
        y1, memory = descent.update(t, eta, y0, solver_state, context)
        return y1, None, {"y0": y0, "y1": y1}, memory, diffrax.RESULTS.successful

    def func(self, terms: PyTree, t0: Any, y0: DescentState, args: Any) -> PyTree:
        return terms.vf(t0, y0, args)
