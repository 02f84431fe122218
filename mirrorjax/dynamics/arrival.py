"""Lanes that have arrived: those whose limit is known to be, up to the tolerance, where they are at the last time.

After the decay is switched off, least squares moves the dual variable by `Z^T nu`, where `dnu/dt = -(Z x - y)/n` is the
gradient flow of a convex function. Its distance from the minimum, `rho`, never grows, and falls like `e^{-c t}` where
the Hessian `Z D Z^T / n` is at least c in the ball of that radius. D, the diagonal of J J^T, is a convex function of
each mu_i for the g named below, so that its values at the middle and at the ends of an interval bound it inside.
"""

from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..problem import ExpDifference, Hadamard, LeastSquares, LogDifference, PowerDifference, Square
from .motion import AbstractMotion
from .options import Options
from .steppers import Lane, Prepare, change_where, over_lanes

# The g for which D is known to be convex in mu: D is a sum of products of the w_j^2, which grow with mu at the rate of
# x, or of two parts (c -+ k mu)^{-p} and exponentials. See `tests/dynamics/test_arrival.py`.
CONVEX = Hadamard | Square | PowerDifference | LogDifference | ExpDifference
# Squarings of n x n matrices for the bound of the least eigenvalue. With two it is above 0.6 of it for n = 40, not 0.1,
# and lanes of log differences are known to arrive after 40 steps, not 130.
SQUARINGS = 2
# Corrections by one factor of the Hessian at most. Each gains a digit or more where D changes little, until what is
# missed of y is a few roundings of it.
CORRECTIONS, ROUNDINGS = 12, 4
# The part of its steps by which a lane moves on before it is tried again, a quarter: a try costs as much as five steps
# or more.
AGAIN = 4
# Lanes tried together on a CPU: many where Z is small, since 16 take twice the time of 4 for 40 measurements, and no
# more than have so many numbers in their copies of Z. Elsewhere all lanes, as far as their copies take little memory.
FEWEST, MOST, COPIES = 4, 16, 2**20
COPIES_ELSEWHERE = 2**26
# A lane farther from Z x = y than this share of |y| is not tried, since D will change much on its way.
NEAR = 0.1


def may_arrive(motion: AbstractMotion) -> bool:
    """True for motions of which this file may know that they have arrived."""
    f, g = motion.problem.objective, motion.problem.g
    if not (isinstance(f, LeastSquares) and isinstance(g, CONVEX) and motion.can_be_displaced):
        return False
    # Of more measurements than unknowns Z D Z^T is singular, so that nothing bounds its least eigenvalue.
    return f.Z.shape[0] <= f.Z.shape[1]


def arrive(prepare: Prepare, options: Options, values: object, lanes: Lane) -> Lane:
    """Moves lanes that are known to have arrived to their limit, and ends them there, at t1.

    The exact flow from where such a lane is ends closer to the limit than `rtol |x|`. A save time before t1 must have
    passed.
    """
    sizes: list[int] = []

    def is_due(motion: AbstractMotion, lane: Lane) -> Bool[Array, ""]:
        if not may_arrive(motion):
            return jnp.array(False)
        sizes.append(cast(LeastSquares, motion.problem.objective).Z.size)
        return _is_due(motion, options, lane)

    due = over_lanes(prepare, is_due)(values, lanes)
    if not sizes:
        return lanes
    promising = over_lanes(prepare, lambda motion, lane: _is_promising(motion, options, lane))
    due = jax.lax.cond(jnp.any(due), lambda: due & promising(values, lanes), lambda: due)
    tries = over_lanes(prepare, lambda motion, lane: _try(motion, options, lane))
    return change_where(due, _tried_together(sizes[0]), tries, values, lanes)


def _tried_together(size: int) -> int:
    """The lanes that are tried together, at most, for `size` numbers in Z."""
    if jax.default_backend() == "cpu":
        return min(MOST, max(FEWEST, COPIES // size))
    return max(FEWEST, COPIES_ELSEWHERE // size)


def _is_due(motion: AbstractMotion, options: Options, lane: Lane) -> Bool[Array, ""]:
    """True for a lane after its last decay and its last save time before t1, and not tried just before."""
    t = motion.clock.time(lane.tick)
    # alpha is nowhere negative, so none is left where nothing more will be spent.
    is_over = motion.problem.accumulated(t) == motion.problem.accumulated(options.t1)
    ahead = (options.ts > t) & (options.ts < options.t1)
    return lane.running & is_over & jnp.logical_not(jnp.any(ahead)) & (lane.steps >= lane.next_try)


def _is_promising(motion: AbstractMotion, options: Options, lane: Lane) -> Bool[Array, ""]:
    """False where a try, which costs many products, would fail: bounds of what it computes, by three products with Z.

    With the miss `F = Z x - y` and the Hessian H, `F^T H F / |F|^2` is not below the least eigenvalue, and, where H
    changes little, the distance from the limit is not below `|F|^2 / |H F|`.
    """
    t, f = motion.clock.time(lane.tick), cast(LeastSquares, motion.problem.objective)
    x, D = motion.displaced(t, lane.state, jnp.zeros_like(f.Z[0]))
    miss = f.measure(x) - f.y
    pull = f.adjoint(miss)
    square = jnp.sum(miss**2)
    some = jnp.where(square > 0, square, 1.0)
    fastest = jnp.sum(D * pull**2) / some
    push = jnp.linalg.norm(f.measure(D * pull))
    distance = jnp.linalg.norm(D * jnp.linalg.norm(f.Z, axis=0)) * square / jnp.where(push > 0, push, 1.0)
    left = distance * jnp.exp(-fastest / f.y.size * (options.t1 - t).astype(x.dtype))
    is_near = square <= NEAR**2 * jnp.sum(f.y**2)
    return is_near & (left <= options.rtol.astype(x.dtype) * jnp.linalg.norm(x))


Solving = tuple[Int[Array, ""], Float[Array, " n"], Float[Array, " n"]]
"""The corrections made, nu, and what x misses of y."""


def _try(motion: AbstractMotion, options: Options, lane: Lane) -> Lane:
    """The lane at its limit, ended, if it is known to get there; else the lane with the time of its next try."""
    t, f = motion.clock.time(lane.tick), cast(LeastSquares, motion.problem.objective)
    x, D = motion.displaced(t, lane.state, jnp.zeros_like(f.Z[0]))
    inverse, least = _invert((f.Z * D[None]) @ f.Z.T)
    enough = ROUNDINGS * jnp.finfo(x.dtype).eps * jnp.linalg.norm(f.y)

    def is_missing(carry: Solving) -> Bool[Array, ""]:
        count, _, missed = carry
        return (count < CORRECTIONS) & (jnp.linalg.norm(missed) > enough)

    def correct(carry: Solving) -> Solving:
        count, nu, missed = carry
        nu = nu - inverse @ missed
        return count + 1, nu, f.measure(motion.displaced(t, lane.state, f.adjoint(nu))[0]) - f.y

    start = jnp.array(0), jnp.zeros_like(f.y), f.measure(x) - f.y
    _, nu, missed = jax.lax.while_loop(is_missing, correct, start)
    mu, sizes, rho = f.adjoint(nu), jnp.linalg.norm(f.Z, axis=0), jnp.linalg.norm(nu)
    signs = jnp.array([0.0, -1.0, 1.0], mu.dtype)
    xs, Ds = jax.vmap(lambda sign: motion.displaced(t, lane.state, mu + sign * rho * sizes))(signs)
    x, middle, largest = xs[0], Ds[0], jnp.max(Ds, axis=0)
    # A convex function is at least 2 D(middle) - max D between the ends.
    share = jnp.min(jnp.where(D > 0, (2 * middle - largest) / jnp.where(D > 0, D, 1.0), jnp.inf))
    convexity = least * jnp.where(share > 0, share, 0.0)
    # What is left of the way at t1, and what the corrections have left of the way to the limit.
    left = rho * jnp.exp(-convexity / f.y.size * (options.t1 - t).astype(x.dtype))
    left = left + jnp.linalg.norm(missed) / jnp.where(convexity > 0, convexity, jnp.inf)
    distance = jnp.linalg.norm(largest * sizes) * left
    arrived = (convexity > 0) & (distance <= options.rtol.astype(x.dtype) * jnp.linalg.norm(x))
    end = motion.clock.ticks(options.t1, lane.tick.dtype)
    state = motion.displaced_state(t, lane.state, nu)
    changed = (
        jnp.where(arrived, end, lane.tick),
        jax.tree.map(lambda new, old: jnp.where(arrived, new, old), state, lane.state),
        lane.running & jnp.logical_not(arrived),
        lane.steps + lane.steps // AGAIN,
    )
    return eqx.tree_at(lambda lane: (lane.tick, lane.state, lane.running, lane.next_try), lane, changed)


def _invert(H: Float[Array, "n n"]) -> tuple[Float[Array, "n n"], Float[Array, ""]]:
    """The inverse of a positive semidefinite H, and a lower bound of its least eigenvalue, `tr(H^{-p})^{-1/p}`.

    Both are of H with its rounding added, which is taken off the bound again. For p = 1 the bound is too low by up to
    the number of eigenvalues, n; for p = 2^(SQUARINGS + 1) by the p-th root of that at most.
    """
    size = jnp.max(jnp.diag(H))
    shift = len(H) * jnp.finfo(H.dtype).eps * jnp.where(size > 0, size, 1.0)
    shifted = H + shift * jnp.eye(len(H), dtype=H.dtype)
    root = _inverse_factor_written_out(shifted) if jax.default_backend() == "cpu" else _inverse_factor(shifted)
    inverse = root.T @ root
    largest = jnp.trace(inverse)
    # Powers of the inverse over the bound so far, whose traces can neither overflow nor underflow.
    power = inverse / largest
    for squaring in range(1, SQUARINGS + 1):
        power = power @ power
        trace = jnp.trace(power)
        largest, power = largest * trace**0.5**squaring, power / trace
    largest = largest * jnp.sum(power**2) ** 0.5 ** (SQUARINGS + 1)
    return inverse, jnp.maximum(1 / largest - shift, 0.0)


def _inverse_factor(H: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """The inverse of the Cholesky factor of H."""
    return jax.scipy.linalg.solve_triangular(jnp.linalg.cholesky(H), jnp.eye(len(H), dtype=H.dtype), lower=True)


def _inverse_factor_written_out(H: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """The same in plain loops, whose rounds are kernels of their own on a GPU.

    XLA's Cholesky factor and triangular solve of several matrices wait for ever where two devices of one CPU ask for
    them at the same time (jaxlib 0.10.2).
    """
    identity, place = jnp.eye(len(H), dtype=H.dtype), jnp.arange(len(H))

    def column(j: Any, factor: Float[Array, "n n"]) -> Float[Array, "n n"]:
        rest = jnp.where(place >= j, H[j] - factor @ factor[j], 0.0)
        return factor.at[:, j].set(rest / jnp.sqrt(rest[j]))

    def row(j: Any, root: Float[Array, "n n"]) -> Float[Array, "n n"]:
        return root.at[j].set((identity[j] - factor[j] @ root) / factor[j, j])

    factor = jax.lax.fori_loop(0, len(H), column, jnp.zeros_like(H))
    return jax.lax.fori_loop(0, len(H), row, jnp.zeros_like(H))
