"""The integrations of the numeric path: psi along mu, mu along x, and divergences, one cell at a time.

A cell is a part of x that is integrated by itself: one coordinate where g is elementwise, all of x otherwise.
"""

import math
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..problem import AbstractReparameterization
from ..problem.reparam import Weights
from ..results import RESULTS, select
from .newton import damped_newton, solve_spd


class End(eqx.Module):
    """The end of an integration: it arrived, or met a singularity on the way; both are False where neither is sure."""

    arrived: Bool[Array, "*cells"]
    singular: Bool[Array, "*cells"]


def flow_cell(
    g: AbstractReparameterization, w: Weights, mu: Array, rtol: Array, *along: Array
) -> tuple[Weights, Array, End]:
    """From w along J^T mu for a unit of time: the weights, `int_0^1 <v, g> ds` for v = mu and each v of `along`.

    The last result says how it ended.
    """
    vectors = jnp.stack([mu, *along]).reshape(1 + len(along), -1)
    scale = size_of(w)
    unit = size_of(vectors) * size_of(g(w)) * mu.size + size_of(g.pull(w, mu)) * scale
    unit = jnp.where(unit > 0, unit, 1) / scale

    def field(s: Array, state: tuple[Weights, Array]) -> tuple[Weights, Array]:
        return g.pull(state[0], mu), vectors @ g(state[0]).reshape(-1) / unit

    (w, q), end = integrate(g, field, (w, jnp.zeros_like(vectors[:, 0])), scale, rtol)
    inside = jnp.all(jnp.isfinite(g(w)))  # a step may land beyond the edge of the domain of g
    return w, q * unit, End(end.arrived & inside, end.singular | (end.arrived & ~inside))


def recover_cell(g: AbstractReparameterization, w_a: Weights, x: Array, rtol: Array) -> tuple[Array, Weights, RESULTS]:
    """One cell's `mu` with `g(psi(mu, a)) = x`: along a straight line from x_a, then damped Newton."""
    x_a = g(w_a)
    unit = jnp.sqrt(jnp.max(jnp.abs(g.metric(w_a))))  # mu times this has the size of the weights
    # After strong regularization x is far away on the scale of the weights: the line is followed in e-folds of it.
    folds = jnp.maximum(jnp.log1p(size_of(x - x_a) / (unit * size_of(w_a))), 1e-3)

    def field(s: Array, state: tuple[Weights, Array]) -> tuple[Weights, Array]:
        speed = folds * jnp.exp(folds * s) / jnp.expm1(folds)
        rate = solve_metric(g.metric(state[0]), (x - x_a) * speed)
        return g.pull(state[0], rate), rate * unit

    (w, mu), end = integrate(g, field, (w_a, jnp.zeros_like(x)), size_of(w_a), rtol)
    start = jnp.where(end.arrived, mu / unit, 0).reshape(-1)
    target = jnp.where(end.arrived, x, x_a)
    # g moves this much when each weight moves by the error that the integrator was allowed.
    w = where_tree(end.arrived, w, w_a)
    allowed = 20 * rtol * (jnp.abs(target) + jnp.sqrt(jnp.max(jnp.abs(g.metric(w)))) * size_of(w))

    def equations(z: Array) -> tuple[Array, Weights]:
        w, _, end = flow_cell(g, w_a, z.reshape(x.shape), rtol)
        return jnp.where(end.arrived, (g(w) - target).reshape(-1), jnp.inf), w

    found, w = damped_newton(equations, lambda z, w: g.metric(w), start, tolerance=allowed.reshape(-1))
    result = select(end.arrived, found.result, RESULTS.not_converged)
    return found.value.reshape(x.shape), w, select(end.singular, RESULTS.outside_range, result)


def rise_cell(g: AbstractReparameterization, w_z: Weights, x: Array, z: Array, rtol: Array) -> tuple[Array, Array, End]:
    """One cell's `mu_x - mu_z` and `D_a(x, z) = int_0^1 <mu(z + r(x - z)) - mu_z, x - z> dr`, from the weights at z.

    The integrand is a sum of positive numbers, so a divergence of 1e-24 has all its digits.
    """
    step = x - z
    unit = jnp.sqrt(jnp.max(jnp.abs(g.metric(w_z))))
    folds = jnp.maximum(jnp.log1p(size_of(step) / (unit * size_of(w_z))), 1e-3)
    length = jnp.where(size_of(step) > 0, size_of(step), 1.0)  # the state is scaled: squares of the step may underflow

    def field(s: Array, state: tuple[Weights, tuple[Array, Array]]) -> tuple[Weights, tuple[Array, Array]]:
        w, (rise, _) = state
        speed = folds * jnp.exp(folds * s) / jnp.expm1(folds)
        rate = solve_metric(g.metric(w), step / length * speed)
        return g.pull(w, rate * length), (rate * unit**2, jnp.sum(rise * step / length) * speed)

    zero = jnp.zeros_like(x), jnp.zeros_like(rtol)
    (_, (rise, value)), end = integrate(g, field, (w_z, zero), size_of(w_z), rtol)
    return rise / unit**2 * length, value / unit**2 * length**2, end


def follow_cell(g: AbstractReparameterization, w: Weights, axis: Array, rtol: Array) -> Array:
    """The length by which mu can grow along an axis from w: infinite where it has no end, NaN where neither shows."""

    def rate(w: Weights) -> Array:
        return size_of(w) / size_of(g.pull(w, axis))  # the time in which the weights change by their own size

    unit = rate(w) / size_of(w)
    horizon = math.log(float(jnp.finfo(rtol.dtype).max)) / 8  # leaves room for the powers of the weights in g

    def field(s: Array, state: tuple[Weights, Array]) -> tuple[Weights, Array]:
        clock = jnp.where(jnp.all(jnp.isfinite(g(state[0]))), rate(state[0]), jnp.nan)
        return jax.tree.map(lambda leaf: clock * leaf, g.pull(state[0], axis)), clock / unit

    (w_end, s), end = integrate(g, field, (w, jnp.zeros_like(rtol)), size_of(w), rtol, horizon)
    length = s * unit
    stopped = rate(w_end) <= jnp.sqrt(jnp.finfo(rtol.dtype).eps) * length
    moving = end.arrived & (rate(w_end) > 1e-3 * length)
    return jnp.where(stopped, length, jnp.where(moving, jnp.inf, jnp.nan))


def integrate(
    g: AbstractReparameterization, field: Any, start: Any, scale: Array, rtol: Array, horizon: float = 1.0
) -> tuple[Any, End]:
    """`dy/ds = field(s, y)` for y = (weights, an integral), from 0 to the horizon: the last y, and how it ended."""
    # Factors of an elementwise g keep all their digits as they decay; weights that mix coordinates may cancel, and
    # are followed to a thousandth of what the largest is.
    floor = 1e-20 if g.elementwise else 1e-3
    eps, limit = float(jnp.finfo(rtol.dtype).eps), float(jnp.finfo(rtol.dtype).max) ** 0.125
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda s, y, args: field(s, y)),
        diffrax.Dopri8(),
        t0=jnp.zeros_like(rtol),
        t1=jnp.full_like(rtol, horizon),
        dt0=None,
        y0=start,
        # Only the weights' error counts: the integral beside them is as smooth, but may pass through 0.
        # A step of exactly dtmin is accepted whatever its error: an irrational one is never met exactly.
        stepsize_controller=diffrax.PIDController(
            rtol=rtol,
            atol=floor * rtol * scale,
            norm=lambda error: size_of(error[0]),
            dtmin=5 * math.pi * eps * horizon,
            force_dtmin=False,
        ),
        saveat=diffrax.SaveAt(t1=True),
        adjoint=diffrax.ForwardMode(),  # no derivative passes through the solve, so nothing need be stored for one
        max_steps=4096,
        throw=False,
    )
    y = jax.tree.map(lambda leaf: leaf[0], solution.ys)
    arrived = (solution.result == diffrax.RESULTS.successful) & jnp.isfinite(size_of(y))
    # Steps shrink to rounding at a singularity; also where numbers overflow, which is none.
    shrunk = (solution.result == diffrax.RESULTS.dt_min_reached) & (size_of(y) < limit * scale)
    assert solution.ts is not None  # for the type checker: SaveAt(t1=True) gives it
    return y, End(arrived, shrunk & (solution.ts[0] < (1 - eps**0.5) * horizon))


def solve_metric(matrix: Float[Array, "n n"], b: Array) -> Array:
    """Solves `matrix x = b`, a positive definite matrix of the size of b; x is shaped like b."""
    if b.size == 1:
        return b / matrix.reshape(b.shape)
    return solve_spd(matrix, b.reshape(-1)).reshape(b.shape)


def size_of(tree: Any) -> Array:
    """The Euclidean norm of all entries of a tree."""
    return jnp.sqrt(jnp.sum(jnp.stack([jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)])))


def where_tree(condition: Array, tree: Any, other: Any) -> Any:
    """Chooses the leaves of `tree` where the condition holds, and elsewhere those of `other`, a tree or a number."""
    other = jax.tree.map(lambda leaf: jnp.full_like(leaf, other), tree) if isinstance(other, float) else other
    return jax.tree.map(lambda leaf, rest: jnp.where(condition, leaf, rest), tree, other)
