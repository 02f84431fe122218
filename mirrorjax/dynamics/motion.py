"""Flows and motions. A flow says how a `Problem` moves; a motion is a flow started from weights, all that moves it.

Solvers, steppers and sweeps ask a motion and never ask which flow it belongs to: a new flow is one file in `flows/`.
"""

import abc
from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..geometry.base import AbstractLegendre
from ..problem import Problem
from ..problem.reparam import Weights
from ..results import RESULTS, first_of
from .clock import AbstractClock, ContinuousClock
from .solution import Point, is_finite
from .solvers.controller import error_control

Time = Float[Array, ""]
Solver = diffrax.AbstractSolver


class AbstractMotion(eqx.Module):
    """A flow of one problem from given weights, as a pytree: batches of motions can be vmapped and differentiated.

    A subclass gives `initial`, `velocity`, `read`, `status` and `default_solver`.
    """

    problem: eqx.AbstractVar[Problem]

    @property
    def clock(self) -> AbstractClock:
        """The clock that solvers of this motion run on."""
        return ContinuousClock()

    @abc.abstractmethod
    def initial(self) -> PyTree:
        """The state at t = 0."""

    @abc.abstractmethod
    def velocity(self, t: Time, state: PyTree) -> PyTree:
        """`d state / dt`, structured like the state."""

    @abc.abstractmethod
    def read(self, t: Time, state: PyTree) -> Point:
        """The parameters, weights, dual variable and loss that the state stands for."""

    @abc.abstractmethod
    def status(self, t: Time, t1: Time, state: PyTree) -> RESULTS:
        """`successful` if the flow is defined at the state reached at time t, else why the flow ended before t1."""

    @abc.abstractmethod
    def default_solver(self, *, is_stiff: Callable[[], bool]) -> Solver:
        """The solver used unless the caller names one.

        `is_stiff()` measures the flow when it is called. It is True if stability limits the steps of an explicit solver
        and the tolerance is 1e-4 or looser, which a stabilized solver of second order can meet.
        """

    def choose_solver(self, solver: Solver | None, *, is_stiff: Callable[[], bool]) -> Solver:
        """The solver that the caller named, or the default one. Raises `ValueError` where none can be chosen."""
        return self.default_solver(is_stiff=is_stiff) if solver is None else solver

    def controller(self, rtol: Time, atol: Time, dtype: jnp.dtype) -> diffrax.AbstractStepSizeController:
        """Error control that steps exactly to every breakpoint of the schedule."""
        return error_control(self.problem.schedule.breakpoints.astype(dtype), rtol.astype(dtype), atol.astype(dtype))

    def end_status(self, t: Time, state: PyTree, point: Point) -> RESULTS:
        """`diverged` if x, w or the loss of a state, its `point`, or its velocity is not finite, else `successful`.

        The state alone does not tell: weights that overflow have finite logarithms, and a velocity that overflows is
        replaced by a huge one, see `Field.velocity`, which no error estimate sees where it is the same at all points.
        """
        finite = point.is_finite() & is_finite(self.velocity(t, state))
        return RESULTS.where(finite, RESULTS.successful, RESULTS.diverged)

    @property
    def can_be_displaced(self) -> bool:
        """True if each x_i is a function of its own mu_i, so that `displaced` and `displaced_state` are known."""
        return False

    def displaced(self, t: Time, state: PyTree, change: Float[Array, "..."]) -> tuple[Array, Array]:
        """x and the diagonal of J J^T at the point whose dual variable is larger by `change` than that of the state."""
        raise NotImplementedError

    def displaced_state(self, t: Time, state: PyTree, nu: Float[Array, " n"]) -> PyTree:
        """The state whose dual variable is larger by `Z^T nu`, for objectives of measurements Z x."""
        raise NotImplementedError

    def limit_legendre(self) -> AbstractLegendre:
        """R_a of which the limit of this motion after a switch-off is the minimum, for `solve(t1=inf)`.

        **Raises:** `ValueError` where the limit of this flow is not known, or there is no R_a.
        """
        raise ValueError(
            f"the limit of {type(self).__name__} at t1 = inf is not known without integrating; pass a finite t1, or "
            "flow=PrimalFlow(), MirrorFlow(), RiemannianFlow() or DualFlow() for the limit of gradient flow"
        )

    def own_status(self) -> RESULTS:
        """`successful` if the numbers that this motion has beside the problem and its weights can be used."""
        return RESULTS.successful

    def number_status(self, state: PyTree, t1: Time) -> RESULTS:
        """`successful` if the numbers of this motion and its initial state can be used up to t1."""
        status = RESULTS.where(is_finite(state), RESULTS.successful, RESULTS.invalid_weights)
        status = first_of(status, self.own_status())
        status = RESULTS.where(self.clock.admits(t1), status, RESULTS.partial_step)
        return RESULTS.where(self.problem.schedule.valid(t1), status, RESULTS.invalid_schedule)

    def start_status(self, state: PyTree) -> RESULTS:
        """`successful` if the motion is defined at its initial state: its point and its velocity there are finite."""
        start = jnp.zeros(())
        usable = self.end_status(start, state, self.read(start, state)) == RESULTS.successful
        return RESULTS.where(usable, RESULTS.successful, RESULTS.invalid_weights)


class AbstractFlow(eqx.Module):
    """A rule by which a `Problem` moves; the `flow=` of `solve` and `sweep`. A subclass gives `prepare`.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Eq. (3), (5), (7).
    """

    @abc.abstractmethod
    def prepare(self, problem: Problem, w0: Weights) -> AbstractMotion:
        """Starts the flow of a problem from the weights w0.

        **Raises:** `ValueError`, with the remedy, where this flow does not exist for the problem.
        """

    @property
    def clock(self) -> AbstractClock:
        """The clock of this flow's motions, known before a problem is."""
        return ContinuousClock()

    def without_dual(self) -> "AbstractFlow":
        """The same trajectory without a dual variable where that saves state: a sweep keeps no mu."""
        return self


def refuse_nonsmooth(problem: Problem) -> None:
    """Raises `ValueError` where h has no gradient, naming the flow that handles such an h."""
    if not problem.h.smooth:
        raise ValueError(
            f"{type(problem.h).__name__} is not differentiable at 0, so its gradient flow is a differential inclusion; "
            "use flow=ProximalDescent(step_size), or a smooth surrogate through CustomRegularizer"
        )


def finite_status(state: PyTree) -> RESULTS:
    """`diverged` if a number in the state is not finite, else `successful`."""
    return RESULTS.where(is_finite(state), RESULTS.successful, RESULTS.diverged)


def state_bytes(state: PyTree) -> int:
    """The bytes of a state, or of its shape."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def state_dtype(state: PyTree) -> jnp.dtype:
    """The dtype of a state, in which solvers count their ticks.

    **Raises:** `ValueError` for a state of 16 bits: bfloat16 counts to 256 only, and its rounding is far above the
    tolerance of any adaptive solver.
    """
    dtype = jnp.result_type(*jax.tree.leaves(state))
    floats = [leaf.dtype for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    short = [dtype for dtype in floats if jnp.finfo(dtype).bits < 32]
    if short:
        raise ValueError(
            f"the weights are {short[0]}, too short to follow a flow or to count steps in; cast the weights and the "
            "data of the objective to float32"
        )
    return dtype
