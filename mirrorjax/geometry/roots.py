"""monotone_root(): bracketed roots of increasing functions, elementwise, with implicit derivatives.

The search is written here, as one masked loop over arrays, because no library routine fits: optimistix's `Bisection`
takes one scalar, gains one bit a step, raises even with `throw=False` when nothing is bracketed, and its `Newton` has
no bracket.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from ..checks import freeze
from ..results import RESULTS, select
from .points import Recovered
from .tied import tied

_STEPS = 256  # two bisections a bit of a 64-bit float, and as many Newton steps: never reached by a monotone function


class _Bracket(eqx.Module):
    """The state of the search, elementwise: the last trial `s` with `residual` and `slope` there, and the bracket."""

    s: Array
    residual: Array
    slope: Array
    lower: Array
    upper: Array
    moved: Array  # length of the last Newton step, or of the bracket after a bisection
    halve_floats: Array  # True if the next bisection halves the count of floats between the ends, not their distance
    blind: Array  # True if fn was NaN at a trial
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
    return Recovered(_implicit_root(root, fn, jnp.where(ok, root, start), ok, y, args), result)


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
    """The status of each point after the search."""
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
    """True if no float lies strictly between the ends (also for an empty interval)."""
    low, high = _ordinal(lower), _ordinal(upper)
    return (high <= low) | (low + 1 >= high) | jnp.isnan(lower) | jnp.isnan(upper)


def _ordinal(value: Float[Array, "..."]) -> Int[Array, "..."]:
    """The place of a float among all floats of its type: increasing, consecutive, 0 at zero."""
    integer = jnp.dtype(f"int{8 * value.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(value, integer)
    return jnp.where(bits < 0, -(bits & jnp.iinfo(integer).max), bits)


@tied
def _implicit_root(root: Array, args: tuple, tangents: tuple) -> Array:
    """The root as a function of fn, y and the numbers of fn; `point` is the root, or any finite point if it failed."""
    fn, point, ok, _, numbers = args
    t_fn, _, _, t_y, t_numbers = tangents
    s = jnp.where(ok, root, point)
    _, slope = jax.jvp(lambda s: fn(s, numbers), (s,), (jnp.ones_like(s),))
    _, drift = eqx.filter_jvp(lambda fn, numbers: fn(s, numbers), (fn, numbers), (t_fn, t_numbers))
    change = (jnp.zeros_like(s) if t_y is None else t_y) - (jnp.zeros_like(s) if drift is None else drift)
    return jnp.where(ok, change / jnp.where(ok, slope, 1), jnp.nan)
