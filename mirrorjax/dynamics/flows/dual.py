"""DualFlow: the mirror flow in the space of the data, for objectives of n measurements Z x.

The dual variable never leaves the range of Z^T, so n numbers describe it, and the Jacobian of the flow is n x n: an
implicit solver, whose cost would be d^3 in the weights, takes steps through the slow end of a flow that no explicit
solver can take.
"""

from collections.abc import Callable
from typing import cast

import diffrax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ...geometry.base import AbstractLegendre, Recovered, scalar_leak
from ...problem import Problem
from ...problem.objective import AbstractMeasured
from ...problem.reparam import Weights
from ..motion import AbstractFlow, Solver, Time
from ..solution import Point
from ..solvers.rkc import noise
from .mirror import AbstractGeometricMotion, dual_control, legendre_of, require_given

State = Float[Array, " n"]


class DualFlow(AbstractFlow):
    """`d eta/dt = -grad loss(Zx) - alpha lambda eta`, `x = grad R_a^*(Z^T eta)`: the flow in the data's space.

    lambda is the `leak` of R, 0 in the paper's theory. x may be a vector or a matrix, and the loss any function of Zx.

    For least squares it is the gradient flow of the convex dual `eta -> Q_a(Z^T eta) - <eta, y>`. Its Jacobian is
    `-loss'' Z Hess Q_a Z^T`, n x n, so that an implicit solver costs one factorization a step however many weights
    there are: `diffrax.Kvaerno5()`, the default, goes to t = 1e5 in a few hundred steps. An explicit solver is as good
    as long as the flow is not stiff, up to t of some hundreds. A trial step so long that x overflows is rejected.

    The factorization is diffrax's, an LU. A Cholesky factor, for losses with loss'' a multiple of the identity, saves
    1 to 7 % of the time at n = 40 and 10 to 26 % at n = 150, since the products of the Jacobian take most of it.

    **Arguments:** `R`: the Legendre function to use; `None` for `legendre(g, h, w0)`.
    **Raises:** from `solve`, `ValueError` for an objective that is not one of measurements Z x, where (g, h, w0) has no
    R_a or one whose leak is no scalar, and where the given R is not that of the problem.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Theorem 3.11, for mu in range(Z^T).
    """

    R: AbstractLegendre | None = None

    def __check_init__(self):
        require_given(self.R)

    def prepare(self, problem: Problem, w0: Weights) -> "DualMotion":
        if not isinstance(problem.objective, AbstractMeasured):
            raise ValueError(
                f"DualFlow moves in the space of measurements Z x, but {type(problem.objective).__name__} is no "
                "function of such; use LeastSquares, Logistic, MatrixSensing or a subclass of AbstractMeasured, or "
                "flow=MirrorFlow()"
            )
        R, belongs = legendre_of(problem, w0, self.R)
        scalar_leak(R, "DualFlow")
        return DualMotion(problem, R, belongs, problem.g(w0))


class DualMotion(AbstractGeometricMotion):
    """`DualFlow` from given weights. The state is eta, with `mu = Z^T eta`."""

    problem: Problem
    R: AbstractLegendre
    belongs: Bool[Array, ""]
    x0: Float[Array, "..."]

    @property
    def objective(self) -> AbstractMeasured:
        return cast(AbstractMeasured, self.problem.objective)  # as `prepare` has checked

    def initial(self) -> State:
        return jnp.zeros_like(self.objective.y)

    def recover(self, state: State, a: Float[Array, ""]) -> Recovered:
        return self.R.primal(self.objective.adjoint(state), a)

    def velocity(self, t: Time, state: State) -> State:
        x = self.recover(state, self.spent(t)).value
        leak = self.problem.strength(t, like=state) * self.R.leak
        return -self.objective.slope(self.objective.measure(x)) - leak * state

    def controller(self, rtol: Time, atol: Time, dtype: jnp.dtype) -> diffrax.AbstractStepSizeController:
        # How large the errors of mu are that errors of eta make, by the root mean squares of one example.
        error = noise(self.objective.y)
        gain = _root_mean_square(self.objective.adjoint(error)) / _root_mean_square(error)
        return dual_control(self, rtol, atol, dtype, jnp.where(gain > 0, gain, 1.0))

    def read(self, t: Time, state: State) -> Point:
        a, mu = self.spent(t), self.objective.adjoint(state)
        x = self.R.primal(mu, a).value
        return Point(x, self.R.weights(mu, a), mu, self.objective(x))

    def displaced_state(self, t: Time, state: State, nu: Float[Array, " n"]) -> State:
        return state + nu

    def default_solver(self, *, is_stiff: Callable[[], bool]) -> Solver:
        return diffrax.Kvaerno5()


def _root_mean_square(values: Float[Array, "..."]) -> Float[Array, ""]:
    return jnp.sqrt(jnp.mean(values**2))
