"""The same flow as gradient flow on the weights, in the dual variable mu and in the parameters x, where R_a exists."""

import abc
from collections.abc import Callable
from typing import Any, cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ...checks import require_kind
from ...geometry.base import AbstractLegendre, Recovered
from ...geometry.legendre import legendre
from ...problem import Problem
from ...problem.objective import AbstractMeasured
from ...problem.reparam import Weights
from ...results import RESULTS, first_failure
from ..motion import AbstractFlow, AbstractMotion, Solver, Time, finite_status, refuse_nonsmooth
from ..solution import Point, is_finite
from ..solvers.controller import error_control
from ..solvers.rkc import RKC
from .given import require_belonging

State = Float[Array, "..."]


class MirrorFlow(AbstractFlow):
    """`d mu/dt = -grad f(x) - alpha Lambda^T mu`, `x = grad R_{a_t}^*(mu)`: the same flow in dual coordinates.

    Lambda is the `leak` of R, 0 in the paper's theory. Tiny weights live in the exponents of R_a, so nothing is lost
    however strong the decay was.

    **Arguments:** `R`: the Legendre function to use; `None` for `legendre(g, h, w0)`.
    **Raises:** `ValueError` for an R that is not a Legendre function; from `solve`, where (g, h, w0) has no R_a, or the
    given one is that of another problem.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Eq. (5), Theorem 3.6.
    """

    R: AbstractLegendre | None = None

    def __check_init__(self):
        require_given(self.R)

    def prepare(self, problem: Problem, w0: Weights) -> "MirrorMotion":
        return MirrorMotion(problem, *legendre_of(problem, w0, self.R), problem.g(w0))


class RiemannianFlow(AbstractFlow):
    """`dx/dt = -(Hess R_a(x))^{-1} (grad f + alpha Lambda^T mu - alpha d/da grad R_a(x))`: the same flow in x.

    Lambda is the `leak` of R. The state is x, so the flow keeps only the digits that x has: where |x| is far below
    `atol`, prefer `MirrorFlow`. Each evaluation inverts the inverse mirror map; with a numeric R that is an integration
    of its own, and slow.

    **Arguments:** `R`: the Legendre function to use; `None` for `legendre(g, h, w0)`.
    **Raises:** `ValueError` for an R that is not a Legendre function; from `solve`, where (g, h, w0) has no R_a, or the
    given one is that of another problem.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Eq. (7).
    """

    R: AbstractLegendre | None = None

    def __check_init__(self):
        require_given(self.R)

    def prepare(self, problem: Problem, w0: Weights) -> "RiemannianMotion":
        return RiemannianMotion(problem, *legendre_of(problem, w0, self.R), problem.g(w0))


class AbstractGeometricMotion(AbstractMotion):
    """A motion in mu, in x or in the data's space. A subclass gives `initial`, `velocity`, `read` and `recover`."""

    R: eqx.AbstractVar[AbstractLegendre]
    belongs: eqx.AbstractVar[Bool[Array, ""]]
    x0: eqx.AbstractVar[State]

    @abc.abstractmethod
    def recover(self, state: State, a: Float[Array, ""]) -> Recovered:
        """The other coordinates of the state, x of mu or of eta, or mu of x, with their statuses."""

    def spent(self, t: Time) -> Float[Array, ""]:
        """`a_t`, in the dtype of the state."""
        return self.problem.accumulated(t).astype(self.x0.dtype)

    def limit_legendre(self) -> AbstractLegendre:
        return self.R

    @property
    def can_be_displaced(self) -> bool:
        return self.R.separable

    def displaced(self, t: Time, state: State, change: Float[Array, "..."]) -> tuple[Array, Array]:
        mu, a = self.read(t, state).mu + change, self.spent(t)
        return self.R.primal(mu, a).value, self.R.metric_vector(mu, jnp.ones_like(mu), a)

    def own_status(self) -> RESULTS:
        # The state starts at 0 where the weights are NaN, and shows nothing.
        status = RESULTS.where(self.belongs, RESULTS.successful, RESULTS.invalid_legendre)
        return RESULTS.where(is_finite(self.x0), status, RESULTS.invalid_weights)

    def status(self, t: Time, t1: Time, state: State) -> RESULTS:
        # At t1's a: when decay has used up the range, that is why the flow ended, not the step size.
        geometry = first_failure(self.recover(state, self.spent(t1)).result)
        return RESULTS.where(t < t1, geometry, finite_status(state))


class MirrorMotion(AbstractGeometricMotion):
    """`MirrorFlow` from given weights. The state is mu."""

    problem: Problem
    R: AbstractLegendre
    belongs: Bool[Array, ""]
    x0: State

    def initial(self) -> State:
        return jnp.zeros_like(self.x0)

    def recover(self, state: State, a: Float[Array, ""]) -> Recovered:
        return self.R.primal(state, a)

    def velocity(self, t: Time, state: State) -> State:
        slope = self.problem.objective.gradient(self.recover(state, self.spent(t)).value)
        return -slope - self.problem.strength(t, like=state) * self.R.leak_product(state)

    def controller(self, rtol: Time, atol: Time, dtype: jnp.dtype) -> diffrax.AbstractStepSizeController:
        return dual_control(self, rtol, atol, dtype, jnp.ones(()))

    def read(self, t: Time, state: State) -> Point:
        a = self.spent(t)
        x = self.recover(state, a).value
        return Point(x, self.R.weights(state, a), state, self.problem.objective(x))

    def displaced_state(self, t: Time, state: State, nu: Float[Array, " n"]) -> State:
        return state + cast(AbstractMeasured, self.problem.objective).adjoint(nu)

    def default_solver(self, *, is_stiff: Callable[[], bool]) -> Solver:
        return RKC() if is_stiff() else diffrax.Tsit5()


class RiemannianMotion(AbstractGeometricMotion):
    """`RiemannianFlow` from given weights. The state is x."""

    problem: Problem
    R: AbstractLegendre
    belongs: Bool[Array, ""]
    x0: State

    def initial(self) -> State:
        return self.x0

    def recover(self, state: State, a: Float[Array, ""]) -> Recovered:
        return self.R.dual(state, a)

    def velocity(self, t: Time, state: State) -> State:
        a = self.spent(t)
        mu, drift = jax.jvp(lambda a: self.recover(state, a).value, (a,), (jnp.ones_like(a),))
        slope = self.problem.objective.gradient(state)
        strength = self.problem.strength(t, like=state)
        return -self.R.metric_vector(mu, slope + strength * (self.R.leak_product(mu) - drift), a)

    def read(self, t: Time, state: State) -> Point:
        a = self.spent(t)
        mu = self.recover(state, a).value
        return Point(state, self.R.weights(mu, a), mu, self.problem.objective(state))

    def displaced_state(self, t: Time, state: State, nu: Float[Array, " n"]) -> State:
        return self.displaced(t, state, cast(AbstractMeasured, self.problem.objective).adjoint(nu))[0]

    def default_solver(self, *, is_stiff: Callable[[], bool]) -> Solver:
        return diffrax.Tsit5()


def dual_control(
    motion: AbstractGeometricMotion, rtol: Time, atol: Time, dtype: jnp.dtype, gain: Float[Array, ""]
) -> diffrax.AbstractStepSizeController:
    """Error control of a dual variable, `gain` of which is one unit of mu.

    Where mu is any number, as for the hyperbolic entropies, an error of mu is a relative error of x, so that beyond
    size 1 the tolerance is absolute. In a dual interval with an end mu has a scale of its own, and it stays relative.
    """
    lower, upper = motion.R.dual_interval(jnp.zeros((), motion.x0.dtype))
    endless, gain = jnp.all(jnp.isinf(lower) & jnp.isinf(upper)), gain.astype(dtype)
    bound = jnp.where(endless, jnp.ones((), dtype), jnp.inf)
    breakpoints = motion.problem.schedule.breakpoints.astype(dtype)
    return error_control(breakpoints, rtol.astype(dtype), atol.astype(dtype) / gain, bound / gain)


def require_given(R: Any) -> None:
    """Raises `ValueError` unless R is `None` or a Legendre function."""
    if R is not None:
        require_kind(R, AbstractLegendre, "R", "a Legendre function such as legendre(g, h, w0)")


def legendre_of(problem: Problem, w0: Weights, R: AbstractLegendre | None) -> tuple[AbstractLegendre, Bool[Array, ""]]:
    """R_a of the problem: the one of the theory, or the given one; and True if it belongs to the problem."""
    refuse_nonsmooth(problem)
    if R is None:
        return legendre(problem.g, problem.h, w0), jnp.array(True)
    return R, require_belonging(R, problem, w0)
