"""Discrete training on the flow's clock: one step of size eta takes eta units of time.

A descent is a flow whose steps are given and not chosen, so the same diffrax loop runs it: `DescentSolver` is a diffrax
solver whose step is the optimizer's update. Saving, statistics, adjoints and statuses need no second copy then.
"""

import abc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, get_args

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from ...calls import calling
from ...checks import Number, require_kind
from ...problem import Problem
from ...problem.reparam import Weights
from ...programs import interned
from ..clock import StepClock
from ..guards import Field
from ..motion import AbstractFlow, Solver, Time, refuse_nonsmooth
from .gradients import AbstractPlainMotion

Decay = Literal["coupled", "decoupled"]


class Descent(AbstractFlow):
    """`w <- w + eta * optimizer(grad)`: gradient descent by any optax optimizer, `t <- t + eta`.

    **Arguments:** `optimizer`: an optax transformation at unit learning rate, e.g. `optax.sgd(1.0)`,
    `optax.sgd(1.0, momentum=0.9)`, `optax.adam(1.0)`; `step_size`: eta > 0, its learning rate and the time a step
    takes; `decay`: `"coupled"`: the optimizer sees `grad f + alpha grad h` (L2 regularization), `"decoupled"`: it sees
    `grad f` and `eta alpha grad h` is subtracted beside it (AdamW).
    **Raises:** `ValueError` for a step size that is not positive and finite, another `decay`, or an optimizer that is
    not an optax transformation; from `solve` for weights of 16 bits, and for an optimizer that wants more than Descent
    gives, such as `optax.lookahead`, which keeps weights of its own.

    Optimizers that want more than the gradient (`optax.lbfgs`, `polyak_sgd`, line searches, `reduce_on_plateau`) are
    given the loss that they see, `f` or `f + alpha h`, as `value` and `value_fn`, and its gradient as `grad`. A line
    search tries whole steps `w + step`, so that it needs `step_size=1.0` to land where it looked.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), section 5 (step 0.25); Loshchilov and Hutter (2019) for decoupled
    decay.
    """

    optimizer: optax.GradientTransformation
    steps: StepClock
    decay: Decay = eqx.field(static=True)  # static: two algorithms

    def __init__(self, optimizer: optax.GradientTransformation, step_size: Number, decay: Decay = "coupled"):
        self.optimizer, self.steps, self.decay = interned(optimizer), StepClock(step_size), decay
        if decay not in get_args(Decay):
            raise ValueError(f'decay must be "coupled" or "decoupled", got {decay!r}')
        wanted = "an optax transformation such as optax.sgd(1.0)"
        require_kind(optimizer, optax.GradientTransformation, "optimizer", wanted)

    @property
    def clock(self) -> StepClock:
        return self.steps

    def prepare(self, problem: Problem, w0: Weights) -> "DescentMotion":
        refuse_nonsmooth(problem)
        return DescentMotion(problem, w0, self)


class ProximalDescent(AbstractFlow):
    """`w <- prox_{eta alpha h}(w - eta grad_w f(g(w)))`, `t <- t + eta`: for regularizers with a proximal map (`L1`).

    **Arguments:** `step_size`: eta > 0.
    **Raises:** `ValueError` for a step size that is not positive and finite; from `solve` for a regularizer without
    `prox`.

    Source: Beck and Teboulle (2009), ISTA; the paper's linear + L1 baseline, section 5.
    """

    steps: StepClock

    def __init__(self, step_size: Number):
        self.steps = StepClock(step_size)

    @property
    def clock(self) -> StepClock:
        return self.steps

    def prepare(self, problem: Problem, w0: Weights) -> "ProximalMotion":
        if not hasattr(problem.h, "prox"):
            raise ValueError(f"ProximalDescent needs a regularizer with a proximal map, such as L1; got {problem.h}")
        return ProximalMotion(problem, w0, self)


class DescentState(eqx.Module):
    """The weights and `mu = -sum eta grad f(x)`."""

    w: Weights
    mu: Float[Array, "..."]

    def moved_by(self, eta: Time, rate: "DescentState") -> "DescentState":
        """This state plus eta times a rate, each leaf in its own precision."""
        return jax.tree.map(lambda y, dy: y + eta.astype(y.dtype) * dy, self, rate)


class AbstractDescentMotion(AbstractPlainMotion):
    """A descent from given weights; values saved between two steps are interpolated linearly.

    A subclass gives `optimizer_state` and `update`.
    """

    w0: eqx.AbstractVar[Weights]
    descent: eqx.AbstractVar[Descent | ProximalDescent]

    @abc.abstractmethod
    def optimizer_state(self, state: DescentState) -> PyTree:
        """The optimizer's memory at t = 0."""

    @abc.abstractmethod
    def update(self, t: Time, eta: Time, state: DescentState, memory: PyTree) -> tuple[DescentState, PyTree]:
        """One step of size eta from time t: the next state and memory."""

    @property
    def clock(self) -> StepClock:
        return self.descent.clock

    def initial(self) -> DescentState:
        return DescentState(self.w0, jnp.zeros_like(self.problem.g(self.w0)))

    def velocity(self, t: Time, state: DescentState) -> DescentState:
        """`-grad f`, on the weights and on x; `update` adds the regularizer."""
        x, pull = jax.vjp(self.problem.g, state.w)
        slope = self.problem.objective.gradient(x)
        return DescentState(jax.tree.map(jnp.negative, pull(slope)[0]), -slope)

    def default_solver(self, *, is_stiff: Callable[[], bool]) -> Solver:
        return DescentSolver()

    def choose_solver(self, solver: Solver | None, *, is_stiff: Callable[[], bool]) -> Solver:
        if solver is not None:
            raise ValueError(f"{type(self.descent).__name__} makes its own steps; leave out solver={solver!r}")
        return self.default_solver(is_stiff=is_stiff)

    def controller(self, rtol: Time, atol: Time, dtype: jnp.dtype) -> diffrax.AbstractStepSizeController:
        return diffrax.ConstantStepSize()


class DescentMotion(AbstractDescentMotion):
    """`Descent` from given weights."""

    problem: Problem
    w0: Weights
    descent: Descent

    def optimizer_state(self, state: DescentState) -> PyTree:
        with _running(self.descent.optimizer):
            return self.descent.optimizer.init(state.w)

    def update(self, t: Time, eta: Time, state: DescentState, memory: PyTree) -> tuple[DescentState, PyTree]:
        velocity = self.velocity(t, state)
        slope = jax.grad(self.problem.h)(state.w)
        decay = jax.tree.map(lambda d: self.problem.strength(t, like=d) * d, slope)
        gradient = jax.tree.map(jnp.negative, velocity.w)
        if self.descent.decay == "coupled":
            gradient = jax.tree.map(jnp.add, gradient, decay)

        def loss(w: Weights) -> Float[Array, ""]:
            """The function whose gradient the optimizer sees."""
            value = self.problem.loss(w)
            if self.descent.decay == "decoupled":
                return value
            return value + self.problem.strength(t, like=value) * self.problem.h(w)

        more = {"value": loss(state.w), "grad": gradient, "value_fn": loss}
        with _running(self.descent.optimizer):
            update = optax.with_extra_args_support(self.descent.optimizer).update
            step, memory = update(gradient, memory, state.w, **more)
        if self.descent.decay == "decoupled":
            step = jax.tree.map(jnp.subtract, step, decay)
        return state.moved_by(eta, DescentState(step, velocity.mu)), memory  # type: ignore[arg-type]


@contextmanager
def _running(optimizer: optax.GradientTransformation) -> Iterator[None]:
    """Turns errors of an optimizer that wants something else inside the `with` into one that names it."""
    try:
        with calling("the optimizer"):
            yield
    except (AttributeError, TypeError, ValueError) as error:
        name = getattr(optimizer.update, "__qualname__", "optimizer").partition(".")[0]
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"Descent cannot run this {name} ({reason}): it gives an optimizer the gradient, the weights w, and value, "
            "grad and value_fn; one that keeps weights of its own, such as optax.lookahead, has no place here: use the "
            "optimizer inside it"
        ) from None


class ProximalMotion(AbstractDescentMotion):
    """`ProximalDescent` from given weights."""

    problem: Problem
    w0: Weights
    descent: ProximalDescent

    def optimizer_state(self, state: DescentState) -> PyTree:
        return None

    def update(self, t: Time, eta: Time, state: DescentState, memory: PyTree) -> tuple[DescentState, PyTree]:
        moved = state.moved_by(eta, self.velocity(t, state))
        shrunk = self.problem.h.prox(moved.w, eta * self.problem.schedule(t))  # type: ignore[attr-defined]
        return DescentState(shrunk, moved.mu), memory


class DescentSolver(diffrax.AbstractSolver):
    """A diffrax solver whose step is one update of a descent, the motion in `args`; its clock counts the steps."""

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., diffrax.LocalLinearInterpolation]] = diffrax.LocalLinearInterpolation

    def order(self, terms: PyTree) -> int:
        return 1

    def init(self, terms: PyTree, t0: Any, t1: Any, y0: DescentState, args: Field) -> PyTree:
        return self._motion(args).optimizer_state(y0)

    def step(
        self, terms: PyTree, t0: Any, t1: Any, y0: DescentState, args: Field, solver_state: PyTree, made_jump: Any
    ):
        motion = self._motion(args)
        clock = motion.clock
        y1, memory = motion.update(clock.start_of_step(t0), clock.step_size, y0, solver_state)
        return y1, None, {"y0": y0, "y1": y1}, memory, diffrax.RESULTS.successful

    def func(self, terms: PyTree, t0: Any, y0: DescentState, args: Field) -> PyTree:
        return terms.vf(t0, y0, args)

    def _motion(self, args: Field) -> AbstractDescentMotion:
        assert isinstance(args.motion, AbstractDescentMotion)
        return args.motion
