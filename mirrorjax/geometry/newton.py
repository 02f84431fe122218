"""Damped Newton searches with implicit derivatives: minima of convex functions, and equations with an SPD Jacobian.

One loop serves both. A merit states what a search asks of a trial: the number that must fall, how fast it should fall
along a step, and when the search has converged. Linear systems and Cholesky factors are lineax's; this is the only
file that imports it.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from ..checks import freeze
from ..results import RESULTS, select
from .tied import tied


class Minimum(eqx.Module):
    """The end of a damped Newton search: `value` (NaN unless it succeeded), `result`, `steps`, and `residual`.

    `residual` is the largest entry of the gradient, or of the equations, at the last point.
    """

    value: Float[Array, " n"]
    result: RESULTS
    steps: Int[Array, ""]
    residual: Float[Array, ""]


class _Trial(eqx.Module):
    """A point of a search: the merit that must fall, the residual or gradient, and `aux` for `AbstractMerit.matrix`."""

    z: Array
    merit: Array
    residual: Array
    aux: Any


class AbstractMerit(eqx.Module):
    """The questions that the Newton loop asks about a trial z with residual r and Newton step `-matrix^{-1} r`."""

    shortest: eqx.AbstractClassVar[float | None]
    """The shortest fraction of a step that is tried; `None` for eps^2."""

    @abc.abstractmethod
    def evaluate(self, z: Float[Array, " n"]) -> _Trial:
        """The merit and the residual at z."""

    @abc.abstractmethod
    def matrix(self, trial: _Trial) -> Float[Array, "n n"]:
        """The derivative of the residual, symmetric positive definite."""

    @abc.abstractmethod
    def rate(self, trial: _Trial, step: Float[Array, " n"]) -> Float[Array, ""]:
        """The derivative of the merit along a Newton step, which is negative."""

    @abc.abstractmethod
    def converged(self, trial: _Trial, step: Float[Array, " n"]) -> Bool[Array, ""]:
        """True if the search has succeeded at this trial, from which `step` is proposed."""

    @abc.abstractmethod
    def stalled(self, trial: _Trial, step: Float[Array, " n"]) -> Bool[Array, ""]:
        """True if no further step can help."""


class _ConvexValue(AbstractMerit):
    """The value of a convex function; the residual is its gradient, the matrix its Hessian."""

    value: Callable
    gradient: Callable
    hessian: Callable
    args: Any
    rtol: Float[ArrayLike, ""]
    atol: Float[ArrayLike, ""]

    # A convex function may overflow along an early step, which then shrinks by many orders of magnitude.
    shortest: ClassVar[float | None] = None

    def evaluate(self, z: Float[Array, " n"]) -> _Trial:
        return _Trial(z, self.value(z, self.args), self.gradient(z, self.args), None)

    def matrix(self, trial: _Trial) -> Float[Array, "n n"]:
        return self.hessian(trial.z, self.args)

    def rate(self, trial: _Trial, step: Float[Array, " n"]) -> Float[Array, ""]:
        return jnp.sum(trial.residual * step)

    def converged(self, trial: _Trial, step: Float[Array, " n"]) -> Bool[Array, ""]:
        return jnp.all(jnp.abs(step) <= self.atol + self.rtol * jnp.abs(trial.z))

    def stalled(self, trial: _Trial, step: Float[Array, " n"]) -> Bool[Array, ""]:
        return jnp.zeros((), bool)


class _Equations(AbstractMerit):
    """Half the sum of squares of the residuals over their tolerances."""

    equations: Callable
    jacobian: Callable
    tolerance: Float[Array, " n"]

    # A trial costs an integration, and the search starts next to the root: shorter steps are not worth it.
    shortest: ClassVar[float | None] = 1e-3

    def evaluate(self, z: Float[Array, " n"]) -> _Trial:
        residual, aux = self.equations(z)
        return _Trial(z, 0.5 * jnp.sum((residual / self.tolerance) ** 2), residual, aux)

    def matrix(self, trial: _Trial) -> Float[Array, "n n"]:
        return self.jacobian(trial.z, trial.aux)

    def rate(self, trial: _Trial, step: Float[Array, " n"]) -> Float[Array, ""]:
        return -2 * trial.merit

    def converged(self, trial: _Trial, step: Float[Array, " n"]) -> Bool[Array, ""]:
        return jnp.all(jnp.abs(trial.residual) <= self.tolerance)

    def stalled(self, trial: _Trial, step: Float[Array, " n"]) -> Bool[Array, ""]:
        # A step below the rounding of z moves nothing: the tolerance is out of reach.
        return jnp.all(jnp.abs(step) <= 4 * jnp.finfo(step.dtype).eps * jnp.abs(trial.z))


def convex_minimum(
    value: Callable,
    z0: Float[Array, " n"],
    args: Any = None,
    *,
    gradient: Callable | None = None,
    hessian: Callable | None = None,
    rtol: Float[ArrayLike, ""],
    atol: Float[ArrayLike, ""],
    max_steps: int = 100,
) -> Minimum:
    """`argmin_z phi(z, args)` for a smooth convex phi, by Newton's method with Armijo back-tracking.

    A trial is taken when its value is finite and falls by a fraction of what the slope promises or, where rounding of
    the value hides that, when the gradient falls. It stops when each entry of the Newton step is at most
    `atol + rtol |z|`. Differentiable in every float leaf of args by the implicit function theorem,
    `dz = -(Hess phi)^{-1} d_args grad phi`, any number of times; a failed point has the derivatives of
    `monotone_root`'s.

    **Arguments:** `value`: (z, args) -> scalar, `inf` or NaN outside its domain; `z0` (n,): a point of the domain;
    `args`: any pytree; `gradient`, `hessian`: (z, args) -> (n,), (n, n), by default autodiff of `value`; `rtol`,
    `atol`: of z; `max_steps`: Newton steps.
    **Returns:** `Minimum`; `not_converged` where max_steps ran out or no trial along a step was acceptable.
    """
    gradient = jax.grad(value) if gradient is None else gradient
    hessian = jax.jacfwd(gradient) if hessian is None else hessian
    merit = _ConvexValue(value, gradient, hessian, freeze(args), rtol, atol)
    end, step, steps = _search(merit, z0, max_steps)
    ok = merit.converged(end, step)
    z = _implicit_minimum(jnp.where(ok, end.z, jnp.nan), gradient, hessian, z0, ok, args)
    result = select(ok, RESULTS.successful, RESULTS.not_converged)
    return Minimum(z, result, steps, jnp.max(jnp.abs(end.residual), initial=0.0))


def damped_newton(
    equations: Callable,
    jacobian: Callable,
    z0: Float[Array, " n"],
    *,
    tolerance: Float[Array, " n"],
    max_steps: int = 20,
) -> tuple[Minimum, Any]:
    """`z` with `|residual_i(z)| <= tolerance_i`, where the Jacobian is symmetric positive definite.

    Newton's method from near the root, back-tracking on `|residual / tolerance|^2` down to a thousandth of a step. It
    gives up where steps fall below the rounding of z. It defines no derivative: the caller, who knows the
    residual's, states one.

    **Arguments:** `equations`: z -> (residual (n,), aux); `jacobian`: (z, aux) -> (n, n), so that work shared with the
    residual is done once; `z0` (n,): the start; `tolerance` (n,): of each equation; `max_steps`: Newton steps.
    **Returns:** `Minimum` and the aux at its value; `not_converged` where the tolerance was not reached.
    """

    merit = _Equations(equations, jacobian, tolerance)
    end, step, steps = _search(merit, z0, max_steps)
    result = select(merit.converged(end, step), RESULTS.successful, RESULTS.not_converged)
    value = jnp.where(result == RESULTS.successful, end.z, jnp.nan)
    return Minimum(value, result, steps, jnp.max(jnp.abs(end.residual))), end.aux


def solve_spd(matrix: Float[Array, "n n"], b: Float[Array, " n"]) -> Float[Array, " n"]:
    """`matrix^{-1} b` for a symmetric positive definite matrix, whatever the units of its rows; NaN where it is not.

    The matrix is scaled to unit diagonal and its Cholesky factor taken.
    """
    scale = jax.lax.rsqrt(jnp.diagonal(matrix))
    scale = jax.lax.stop_gradient(scale)  # any scaling gives the same solution
    operator = lx.MatrixLinearOperator(scale[:, None] * matrix * scale[None, :], lx.positive_semidefinite_tag)
    return scale * lx.linear_solve(operator, scale * b, lx.Cholesky(), throw=False).value


def _search(
    merit: AbstractMerit, z0: Float[Array, " n"], max_steps: int
) -> tuple[_Trial, Float[Array, " n"], Int[Array, ""]]:
    """The last point, the Newton step proposed there, and the number of steps taken."""
    # Step -1 goes nowhere: it evaluates z0 inside the loop, so that evaluate and matrix are compiled once.
    # Its trace, which may hold integrations, is made once, for the loop and for the shapes of its first trial.
    evaluate = eqx.filter_closure_convert(merit.evaluate, z0)
    shapes = eqx.filter_eval_shape(evaluate, z0)
    blank = eqx.tree_at(lambda trial: trial.z, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), z0)

    def unfinished(carry: tuple) -> Bool[Array, ""]:
        steps, trial, step, stuck = carry
        done = merit.converged(trial, step) | merit.stalled(trial, step) | ~jnp.all(jnp.isfinite(step))
        return (steps < 0) | ((steps < max_steps) & ~done & ~stuck)

    def advance(carry: tuple) -> tuple:
        steps, trial, step, _ = carry
        new, accepted = _backtrack(merit, evaluate, trial, step, steps < 0)
        return steps + 1, new, jnp.where(accepted, -solve_spd(merit.matrix(new), new.residual), step), ~accepted

    start = jnp.array(-1), blank, jnp.zeros_like(z0), jnp.array(False)
    steps, end, step, _ = jax.lax.while_loop(unfinished, advance, start)
    return end, step, steps


def _backtrack(
    merit: AbstractMerit, evaluate: Callable, old: _Trial, step: Float[Array, " n"], first: Bool[Array, ""]
) -> tuple[_Trial, Bool[Array, ""]]:
    """The first of `z + step, z + step/2, ..` that is good enough, else the old point, and True if there was one.

    The first point of a search is always good enough.
    """
    eps, rate = jnp.finfo(old.z.dtype).eps, merit.rate(old, step)
    size = jnp.sqrt(jnp.abs(jnp.sum(old.residual * step)))  # the residual in the norm that the matrix induces

    def trial(length: Array) -> tuple[_Trial, Bool[Array, ""]]:
        new = evaluate(old.z + length * step)
        falls = new.merit <= old.merit + 1e-4 * length * rate
        level = new.merit <= old.merit + 8 * eps * jnp.abs(old.merit)
        # Where the merit's fall is below its rounding, the slope along the step still shows if the residual is shorter.
        flatter = jnp.abs(jnp.sum(new.residual * step)) <= (1 - 0.1 * length) * size**2
        finite = jnp.isfinite(new.merit) & jnp.all(jnp.isfinite(new.residual))
        return new, first | (finite & (falls | (level & flatter)))

    shortest = float(eps) ** 2 if merit.shortest is None else merit.shortest
    new, accepted = first_good(trial, old, shortest, rate.dtype)
    return jax.tree.map(lambda new, kept: jnp.where(accepted, new, kept), new, old), accepted


def first_good(
    trial: Callable[[Array], tuple[Any, Bool[Array, ""]]],
    blank: Any,
    shortest: Float[ArrayLike, ""],
    dtype: jnp.dtype,
) -> tuple[Any, Bool[Array, ""]]:
    """`trial(t)` at the first t of 1, 1/2, 1/4, .. that is good, down to `shortest`; and True if there was one.

    **Arguments:** `trial`: t -> (a pytree, True if good); `blank`: a pytree like it, which is not read; `dtype`: of t.
    """

    def unfinished(carry: tuple[Array, Any, Array]) -> Bool[Array, ""]:
        t, _, good = carry
        return ~good & (t > shortest)

    def shorten(carry: tuple[Array, Any, Array]) -> tuple[Array, Any, Array]:
        t = carry[0] / 2
        return t, *trial(t)

    # From t = 2, not good, so that the trial is compiled once.
    start = jnp.full((), 2.0, dtype), blank, jnp.zeros((), bool)
    return jax.lax.while_loop(unfinished, shorten, start)[1:]


@tied
def _implicit_minimum(z: Array, args: tuple, tangents: tuple) -> Array:
    """The minimum z as a function of the last argument; `start` replaces z where the search failed."""
    gradient, hessian, start, ok, numbers = args
    point = jnp.where(ok, z, start)
    _, drift = eqx.filter_jvp(lambda numbers: gradient(point, numbers), (numbers,), (tangents[-1],))
    matrix = jnp.where(ok, hessian(point, numbers), jnp.eye(z.size, dtype=z.dtype))
    drift = jnp.zeros_like(z) if drift is None else drift
    return jnp.where(ok, -solve_spd(matrix, drift), jnp.nan)
