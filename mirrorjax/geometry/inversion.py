"""Inverting what has no closed inverse: bracketed monotone roots, damped Newton, and their implicit derivatives.

The bracketed root is written here, as one masked loop over arrays, because no library routine fits: optimistix's
`Bisection` takes one scalar, gains one bit a step, raises even with `throw=False` when nothing is bracketed, and its
`Newton` has no bracket. Linear systems and Cholesky factors are lineax's. This is the only file that imports it.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from ..results import RESULTS, select
from .base import Recovered

_STEPS = 256  # two bisections a bit of a 64-bit float, and as many Newton steps: never reached by a monotone function


class _Bracket(eqx.Module):
    """Where the search stands, elementwise: the last trial `s` with `residual` and `slope` there, and the bracket."""

    s: Array
    residual: Array
    slope: Array
    lower: Array
    upper: Array
    moved: Array  # length of the last Newton step, or of the bracket after a bisection
    halve_floats: Array  # whether the next bisection halves the count of floats between the ends, or their distance
    blind: Array  # whether fn was NaN at a trial
    converged: Array
    collapsed: Array  # no float is left between the ends

    @property
    def done(self) -> Bool[Array, "..."]:
        return self.converged | self.collapsed


def monotone_root(
    fn: Callable,
    y: Float[Array, "..."],
    lower: Float[ArrayLike, "..."],
    upper: Float[ArrayLike, "..."],
    args: Any = None,
    *,
    max_steps: int = _STEPS,
) -> Recovered:
    """`s` with `fn(s, args) = y`, elementwise, for fn increasing on the open interval (lower, upper).

    Newton's method inside a bracket. A Newton step is taken when it stays inside and is at most half as long as the
    step before, or as the bracket; otherwise the bracket is bisected, in turn by distance and by count of floats, so
    that an infinite end, or a root close to an end, costs a few steps more and no expansion phase. It stops where the
    Newton step falls to rounding, or where rounding of fn hides the residual. A root between an end where fn has a pole
    and the last float before it is returned as that float.

    Differentiable by the implicit function theorem, `ds = (dy - d_args fn) / (d_s fn)`, any number of times, forward
    and reverse, in y, in every float leaf of args, and of fn where it is a module. A failed point is NaN, and so is its
    forward derivative; it adds nothing to a reverse one, so the points beside it keep theirs.

    **Arguments:** `fn`: (s, args) -> array shaped like s, elementwise in s; `y`: the values to attain, any shape;
    `lower`, `upper`: ends of the interval, broadcast to y, may be infinite; fn need not be defined there, nor
    differentiated through them; `args`: any pytree; `max_steps`: evaluations of fn and its slope.
    **Returns:** `Recovered`, one status a point: `outside_range` where fn stays on one side of y up to an end (or y is
    not finite), `not_converged` where max_steps ran out, fn is NaN next to the answer, or fn is flat there.
    **Raises:** `ValueError` when fn does not return an array shaped like y.
    """
    lower, upper = (jnp.broadcast_to(jnp.asarray(end, y.dtype), y.shape) for end in (lower, upper))
    shape = eqx.filter_eval_shape(fn, y, args)
    if getattr(shape, "shape", None) != y.shape or shape.dtype != y.dtype:
        raise ValueError(f"fn must act elementwise: for s of shape {y.shape} and dtype {y.dtype} it returns {shape}")
    root, result, start = _search(freeze(fn), freeze(y), freeze(lower), freeze(upper), freeze(args), max_steps)
    ok = result == RESULTS.successful
    return Recovered(_implicit_root(fn, root, jnp.where(ok, root, start), ok, y, args), result)


@eqx.filter_jit
def _search(
    fn: Callable, y: Array, lower: Array, upper: Array, args: Any, max_steps: int
) -> tuple[Float[Array, "..."], RESULTS, Float[Array, "..."]]:
    """The root (NaN where there is none), its status, and a point well inside the interval."""
    start = _middle(lower, upper, jnp.zeros(y.shape, bool))
    blank, no = jnp.zeros_like(y), jnp.zeros(y.shape, bool)
    # Slope 0 makes the first step a bisection, so that fn is compiled once.
    state = _Bracket(start, blank, blank, lower, upper, jnp.full_like(y, jnp.inf), no, no, no, _adjacent(lower, upper))

    def unfinished(carry: tuple[Array, _Bracket]) -> Bool[Array, ""]:
        return (carry[0] < max_steps) & ~jnp.all(carry[1].done)

    def step(carry: tuple[Array, _Bracket]) -> tuple[Array, _Bracket]:
        new = _advance(fn, y, args, carry[1])
        return carry[0] + 1, jax.tree.map(lambda old, new: jnp.where(carry[1].done, old, new), carry[1], new)

    _, state = jax.lax.while_loop(unfinished, step, (jnp.array(0), state))
    result = _status(fn, y, args, lower, upper, state)
    return jnp.where(result == RESULTS.successful, state.s, jnp.nan), result, start


def _advance(fn: Callable, y: Array, args: Any, old: _Bracket) -> _Bracket:
    """One trial: a Newton step where it can be trusted, else a bisection."""
    eps = jnp.finfo(y.dtype).eps
    change = -old.residual / old.slope
    # Below rounding of s a step says that s is the root: it may even leave the bracket, whose end s is.
    settled = (old.slope > 0) & (jnp.abs(change) <= 2 * eps * jnp.abs(old.s))
    inside = (old.s + change > old.lower) & (old.s + change < old.upper)
    newton = ~settled & inside & (jnp.abs(change) <= 0.5 * old.moved)
    trial = jnp.where(newton, old.s + change, _middle(old.lower, old.upper, old.halve_floats))
    value, slope = jax.jvp(lambda s: fn(s, args), (trial,), (jnp.ones_like(trial),))
    residual = value - y
    # A Newton step over which the slope keeps within 10 % must cut the residual tenfold; one that does not halve it
    # has met the rounding of fn, and the point before was as good.
    noise = (
        newton & (jnp.abs(residual) >= 0.5 * jnp.abs(old.residual)) & (jnp.abs(slope - old.slope) <= 0.1 * old.slope)
    )
    stay = settled | noise
    # NaN lies beyond an end of the region where fn is defined: away from the last point.
    above = jnp.where(jnp.isnan(residual), trial > old.s, residual > 0)
    lower, upper = jnp.where(above, old.lower, trial), jnp.where(above, trial, old.upper)
    converged = stay | (residual == 0)
    return _Bracket(
        s=jnp.where(stay, old.s, trial),
        residual=jnp.where(stay, old.residual, residual),
        slope=jnp.where(stay, old.slope, slope),
        lower=lower,
        upper=upper,
        moved=jnp.where(newton, jnp.abs(change), upper - lower),
        halve_floats=old.halve_floats ^ ~newton,
        blind=old.blind | (jnp.isnan(residual) & ~stay),
        converged=converged,
        collapsed=_adjacent(lower, upper) & ~converged,
    )


def _status(fn: Callable, y: Array, args: Any, lower: Array, upper: Array, state: _Bracket) -> RESULTS:
    """Why each point stopped."""
    low, high = state.collapsed & (state.lower == lower), state.collapsed & (state.upper == upper)
    end = jnp.where(high, upper, jnp.where(low, lower, state.s))
    limit = fn(end, args)
    # Passed only in the gap between an end (a pole) and the float before it, which is then the root to rounding; past
    # the largest float there is no such float.
    passed = jnp.where(high, limit > y, limit < y) & (low != high)
    bracketed = ~(low | high) | (passed & jnp.isfinite(end))
    regular = (state.slope > 0) & jnp.isfinite(state.slope) & jnp.isfinite(state.residual) & jnp.isfinite(y)
    found = regular & (state.converged | (state.collapsed & bracketed & ~state.blind))
    outside = ((low | high) & ~passed & ~state.blind) | jnp.isinf(y)
    failure = select(outside, RESULTS.outside_range, RESULTS.not_converged)
    return select(found, RESULTS.successful, failure)


def _middle(lower: Array, upper: Array, halve_floats: Array) -> Float[Array, "..."]:
    """A point strictly between two ends that are not adjacent: halfway by distance, or by count of floats."""
    by_distance = 0.5 * lower + 0.5 * upper
    low, high = _ordinal(lower), _ordinal(upper)
    ordinal = (low >> 1) + (high >> 1) + (low & high & 1)  # their mean without overflow
    size = jax.lax.bitcast_convert_type(jnp.abs(ordinal), lower.dtype)
    by_floats = jnp.where(ordinal < 0, -size, size)
    fits = (by_distance > lower) & (by_distance < upper) & jnp.isfinite(by_distance)
    return jnp.where(fits & ~halve_floats, by_distance, by_floats)


def _adjacent(lower: Array, upper: Array) -> Bool[Array, "..."]:
    """Whether no float lies strictly between (also for an empty interval)."""
    low, high = _ordinal(lower), _ordinal(upper)
    return (high <= low) | (low + 1 >= high) | jnp.isnan(lower) | jnp.isnan(upper)


def _ordinal(value: Float[Array, "..."]) -> Int[Array, "..."]:
    """The place of a float among all floats of its type: increasing, consecutive, 0 at zero."""
    integer = jnp.dtype(f"int{8 * value.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(value, integer)
    return jnp.where(bits < 0, -(bits & jnp.iinfo(integer).max), bits)


def freeze(tree: Any) -> Any:
    """The tree with no derivative through its arrays; other leaves are let through."""
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_inexact_array(leaf) else leaf, tree)


@eqx.filter_custom_jvp
def _implicit_root(fn: Callable, root: Array, point: Array, ok: Array, y: Array, args: Any) -> Array:
    """The root as a function of y, args and fn; `point` is the root, or where that failed any point that is finite."""
    return root


@_implicit_root.def_jvp
def _implicit_root_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    fn, _, point, ok, _, args = primals
    t_fn, _, _, _, t_y, t_args = tangents
    root = _implicit_root(*primals)
    s = jnp.where(ok, root, point)
    _, slope = jax.jvp(lambda s: fn(s, args), (s,), (jnp.ones_like(s),))
    _, drift = eqx.filter_jvp(lambda fn, args: fn(s, args), (fn, args), (t_fn, t_args))
    change = (jnp.zeros_like(s) if t_y is None else t_y) - (jnp.zeros_like(s) if drift is None else drift)
    return root, jnp.where(ok, change / jnp.where(ok, slope, 1), jnp.nan)


class Minimum(eqx.Module):
    """Where a damped Newton search ended: `value` (NaN unless it succeeded), `result`, `steps`, and `residual`.

    `residual` is the largest entry of the gradient, or of the equations, at the last point.
    """

    value: Float[Array, " n"]
    result: RESULTS
    steps: Int[Array, ""]
    residual: Float[Array, ""]


class _Trial(eqx.Module):
    """A point of a Newton search: the merit that must fall, the equations, and what `matrix` reuses of them."""

    z: Array
    merit: Array
    residual: Array
    aux: Any


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
    frozen = freeze(args)

    def evaluate(z: Array) -> _Trial:
        return _Trial(z, value(z, frozen), gradient(z, frozen), None)

    end, step, steps = _damped_newton(evaluate, lambda trial: hessian(trial.z, frozen), z0, rtol, atol, 0.0, max_steps)
    ok = _small(step, end.z, rtol, atol)
    z = _implicit_minimum(gradient, hessian, jnp.where(ok, end.z, jnp.nan), z0, ok, args)
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

    def evaluate(z: Array) -> _Trial:
        residual, aux = equations(z)
        return _Trial(z, 0.5 * jnp.sum((residual / tolerance) ** 2), residual, aux)

    def matrix(trial: _Trial) -> Array:
        return jacobian(trial.z, trial.aux)

    rounding = 4 * jnp.finfo(z0.dtype).eps  # a step below it moves nothing: the tolerance is out of reach
    end, _, steps = _damped_newton(evaluate, matrix, z0, rounding, 0.0, tolerance, max_steps, root=True)
    ok = jnp.all(jnp.abs(end.residual) <= tolerance)
    result = select(ok, RESULTS.successful, RESULTS.not_converged)
    return Minimum(jnp.where(ok, end.z, jnp.nan), result, steps, jnp.max(jnp.abs(end.residual))), end.aux


def solve_spd(matrix: Float[Array, "n n"], b: Float[Array, " n"]) -> Float[Array, " n"]:
    """`matrix^{-1} b` for a symmetric positive definite matrix, whatever the units of its rows; NaN where it is not.

    The matrix is scaled to unit diagonal and its Cholesky factor taken.
    """
    scale = jax.lax.rsqrt(jnp.diagonal(matrix))
    scale = jax.lax.stop_gradient(scale)  # any scaling gives the same solution
    operator = lx.MatrixLinearOperator(scale[:, None] * matrix * scale[None, :], lx.positive_semidefinite_tag)
    return scale * lx.linear_solve(operator, scale * b, lx.Cholesky(), throw=False).value


def _small(step: Array, z: Array, rtol: Float[ArrayLike, ""], atol: Float[ArrayLike, ""]) -> Bool[Array, ""]:
    return jnp.all(jnp.abs(step) <= atol + rtol * jnp.abs(z))


def _damped_newton(
    evaluate: Callable[[Array], _Trial],
    matrix: Callable[[_Trial], Array],
    z0: Array,
    rtol: Float[ArrayLike, ""],
    atol: Float[ArrayLike, ""],
    tolerance: Float[ArrayLike, "..."],
    max_steps: int,
    root: bool = False,
) -> tuple[_Trial, Array, Int[Array, ""]]:
    """The last point, the Newton step proposed there, and how many were taken."""
    start = evaluate(z0)
    proposed = -solve_spd(matrix(start), start.residual)

    def unfinished(carry: tuple) -> Bool[Array, ""]:
        steps, trial, step, stuck = carry
        done = jnp.all(jnp.abs(trial.residual) <= tolerance) | _small(step, trial.z, rtol, atol)
        return (steps < max_steps) & ~done & ~stuck & jnp.all(jnp.isfinite(step))

    def advance(carry: tuple) -> tuple:
        steps, trial, step, _ = carry
        # Along a Newton step the merit of a root falls at the rate -2 merit, a convex function's at <grad, step>.
        rate = -2 * trial.merit if root else jnp.sum(trial.residual * step)
        # A convex function may overflow along an early step, which then shrinks by many orders of magnitude; equations
        # cost an integration a trial, and start next to their root.
        shortest = 1e-3 if root else float(jnp.finfo(step.dtype).eps) ** 2
        new, accepted = _backtrack(evaluate, trial, step, rate, shortest)
        return steps + 1, new, jnp.where(accepted, -solve_spd(matrix(new), new.residual), step), ~accepted

    steps, end, step, _ = jax.lax.while_loop(unfinished, advance, (jnp.array(0), start, proposed, jnp.array(False)))
    return end, step, steps


def _backtrack(
    evaluate: Callable[[Array], _Trial], old: _Trial, step: Array, rate: Array, shortest: float
) -> tuple[_Trial, Array]:
    """The first of `z + step, z + step/2, z + step/4, ..` that is good enough, and whether there was one."""
    eps = jnp.finfo(old.z.dtype).eps
    size = jnp.sqrt(jnp.abs(jnp.sum(old.residual * step)))  # the residual in the norm that the matrix induces

    def good(trial: _Trial, length: Array) -> Bool[Array, ""]:
        falls = trial.merit <= old.merit + 1e-4 * length * rate
        level = trial.merit <= old.merit + 8 * eps * jnp.abs(old.merit)
        # Where the merit's fall is below its rounding, the slope along the step still tells whether it is shorter.
        flatter = jnp.abs(jnp.sum(trial.residual * step)) <= (1 - 0.1 * length) * size**2
        finite = jnp.isfinite(trial.merit) & jnp.all(jnp.isfinite(trial.residual))
        return finite & (falls | (level & flatter))

    def unfinished(carry: tuple[Array, _Trial, Array]) -> Bool[Array, ""]:
        length, _, accepted = carry
        return ~accepted & (length > shortest)

    def shorten(carry: tuple[Array, _Trial, Array]) -> tuple[Array, _Trial, Array]:
        length = carry[0] / 2
        trial = evaluate(old.z + length * step)
        return length, trial, good(trial, length)

    _, trial, accepted = jax.lax.while_loop(unfinished, shorten, (jnp.full_like(rate, 2), old, jnp.array(False)))
    return jax.tree.map(lambda new, kept: jnp.where(accepted, new, kept), trial, old), accepted


@eqx.filter_custom_jvp
def _implicit_minimum(gradient: Callable, hessian: Callable, z: Array, start: Array, ok: Array, args: Any) -> Array:
    """The minimum as a function of args; `start` stands for it where it failed."""
    return z


@_implicit_minimum.def_jvp
def _implicit_minimum_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    gradient, hessian, _, start, ok, args = primals
    z = _implicit_minimum(*primals)
    point = jnp.where(ok, z, start)
    _, drift = eqx.filter_jvp(lambda args: gradient(point, args), (args,), (tangents[-1],))
    matrix = jnp.where(ok, hessian(point, args), jnp.eye(z.size, dtype=z.dtype))
    drift = jnp.zeros_like(z) if drift is None else drift
    return z, jnp.where(ok, -solve_spd(matrix, drift), jnp.nan)
