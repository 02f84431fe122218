"""NumericLegendre: R_a of any commuting pair from its definition, which every closed form must equal.

psi is integrated, first along grad h for time a, then along the grad g_i for times mu_i. The fields commute, so the
order is free; this order gives `x_a = g(psi(0, a))` on the way and separates the coordinates of an elementwise g. A
cell is a part of x that is integrated by itself: one coordinate where g is elementwise, all of x otherwise. Each cell
has its own steps and its own status, so a bad cell does not spoil the others.

No derivative passes through an integrator. Each result is tied to its arguments by the exact local rule,
`d psi = J^T dmu + grad h da`, `d mu = (J J^T)^{-1} (dx - J grad h da)`, `dQ = <g, dmu> + h da`.
"""

import math
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..checks import freeze, is_concrete
from ..problem import AbstractRegularizer, AbstractReparameterization
from ..problem.problem import as_weights
from ..problem.reparam import Weights
from ..results import RESULTS, select
from .base import AbstractLegendre, Recovered, Scalar
from .newton import damped_newton, solve_spd
from .tied import tied


class _End(eqx.Module):
    """The end of an integration: it arrived, or met a singularity on the way; both are False where neither is sure."""

    arrived: Bool[Array, "*cells"]
    singular: Bool[Array, "*cells"]


class NumericLegendre(AbstractLegendre):
    """`R_a` of a commuting (g, h) from w0, by integration and Newton's method: no formula is needed.

    - `psi(mu, a)` by integrating `dw/ds = a grad h(w)`, then `dw/ds = J(w)^T mu`, s in [0, 1];
    - `Q_a(mu) = int_0^a h(psi(0, s)) ds + int_0^1 <mu, g(psi(s mu, a))> ds`: the free constant is `Q_0(0) = 0`, so
      that `R_0(x_init) = 0`; closed forms fix another, and only differences between (x, a) compare;
    - `x -> mu` in a straight line from `x_a = g(psi(0, a))`: `dw/ds = J^T (J J^T)^{-1} (x - x_a)`,
      `dmu/ds = (J J^T)^{-1} (x - x_a)`, then damped Newton on `g(psi(mu, a)) = x` with the Jacobian J J^T there;
    - `R_a(x) = <mu, x> - Q_a(mu)`, in which an error of mu enters only squared, since `grad Q_a(mu) = x`.

    Differentiable in mu, x and a, any number of times, forward and reverse, by the implicit function theorem. A
    derivative in w0, or in numbers held by g and h, is refused with a `ValueError`: use a closed form.

    The status `not_converged` marks the points that it cannot resolve: a singularity within 1e-8 of the end of the
    integration (3e-4 in float32), an x so near the end of the range that mu has too few digits for it, a decay that
    takes more than 4096 steps (weights near e^-1000).

    **Arguments:** `g`, `h`: a pair that commutes (not checked here, see `check`); `w0`: initial weights with full-rank
    J; `rtol`: tolerance of the integrations relative to the weights, by default 1e-12 in float64 and 1e-6 in float32.
    **Raises:** `ValueError` for weights g or h does not take, or that are not finite; for an h that is not
    differentiable.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Theorem 3.6.
    """

    g: AbstractReparameterization
    h: AbstractRegularizer
    w0: Weights
    rtol: Float[Array, ""]

    def __init__(self, g: AbstractReparameterization, h: AbstractRegularizer, w0: Weights, *, rtol: Any = None):
        self.g, self.h, self.w0 = g, h, as_weights(w0)
        g.check(self.w0)
        h.check(self.w0)
        if not h.smooth:
            raise ValueError(f"{type(h).__name__} is not differentiable, so it has no R_a; use a smooth regularizer")
        leaves = jax.tree.leaves(self.w0)
        if is_concrete(leaves) and not all(np.all(np.isfinite(leaf)) for leaf in leaves):
            raise ValueError("w0 holds NaN or infinite entries")
        if len({leaf.dtype for leaf in leaves}) > 1:
            raise ValueError(f"w0 must have one dtype, got {sorted({str(leaf.dtype) for leaf in leaves})}")
        default = 1e-12 if leaves[0].dtype == jnp.float64 else 1e-6
        self.rtol = jnp.asarray(default if rtol is None else rtol, leaves[0].dtype)

    def weights(self, mu: Float[Array, "..."], a: Scalar) -> Weights:
        return self._psi(mu, a)[0]

    def potential(self, mu: Float[Array, "..."], a: Scalar) -> Float[Array, ""]:
        """`Q_a(mu)`, with `Q_0(0) = 0`; NaN outside the dual interval."""
        a = jnp.asarray(a, self.rtol.dtype)
        w, q, _ = self._psi(mu, a)
        return _tie_potential(q, self, w, mu, a)

    def primal(self, mu: Float[Array, "..."], a: Scalar) -> Recovered:
        w, _, result = self._psi(mu, a)
        ok = result == RESULTS.successful
        return Recovered(jnp.where(ok, self.g(_where(ok, w, self.w0)), jnp.nan), result)

    def dual(self, x: Float[Array, "..."], a: Scalar) -> Recovered:
        a = jnp.asarray(a, self.rtol.dtype)
        mu, w, result = _recover(*freeze((self, x, a)))
        ok = result == RESULTS.successful
        return Recovered(_tie_dual(mu, self, w, ok, x, a), result)

    def metric_vector(self, mu: Float[Array, "..."], v: Float[Array, "..."], a: Scalar) -> Float[Array, "..."]:
        w, _, result = self._psi(mu, a)
        ok = result == RESULTS.successful
        return jnp.where(ok, self.g.push(_where(ok, w, self.w0), v), jnp.nan)

    def dual_interval(self, a: Scalar) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Both ends of each mu_i, found by following the flow along that axis with the others at 0.

        The flow is followed for 88 e-folds of the weights (11 in float32). An end is finite where they blow up or leave
        the domain of g while mu_i has stopped moving, infinite where mu_i still moves in proportion to itself, NaN
        where neither shows, or psi(0, a) does not exist. For a g whose coordinates share weights, Q_a is finite on a
        convex set that need not be a box: these are its ends on the axes. Derivatives are refused.
        """
        arguments = (self, jnp.asarray(a, self.rtol.dtype))
        return _ends(*eqx.internal.nondifferentiable(arguments, name="NumericLegendre.dual_interval"))

    def minimizer(self, a: Scalar) -> Float[Array, "..."]:
        """`argmin R_a = g(psi(0, a))`, the positional bias. Raises where it does not exist."""
        return self.inverse_mirror_map(jnp.zeros_like(self.g(self.w0)), a)

    def _start(self, a: Float[Array, ""]) -> tuple[Weights, Float[Array, ""], _End]:
        """`psi(0, a)`, `Q_a(0)` and how it ended."""
        scale = _size(self.w0)
        unit = jnp.abs(a) * (jnp.abs(self.h(self.w0)) + _size(jax.grad(self.h)(self.w0)) * scale)
        unit = jnp.where(unit > 0, unit, 1) / scale

        def field(s: Array, state: tuple[Weights, Array]) -> tuple[Weights, Array]:
            value, slope = jax.value_and_grad(self.h)(state[0])
            return jax.tree.map(lambda leaf: a * leaf, slope), a * value / unit

        (w, q), end = _integrate(self.g, field, (self.w0, jnp.zeros_like(a)), scale, self.rtol)
        return w, q * unit, end

    def _psi(self, mu: Float[Array, "..."], a: Scalar) -> tuple[Weights, Float[Array, ""], RESULTS]:
        """`psi(mu, a)` and `Q_a(mu)`, NaN where they do not exist, and a status a cell; only psi has derivatives."""
        a = jnp.asarray(a, self.rtol.dtype)
        w, q, result = _advance(*freeze((self, mu, a)))
        return _tie_weights(w, self, result == RESULTS.successful, mu, a), q, result

    def _cells(self, x: Float[Array, "..."]) -> Float[Array, "cells ..."]:
        return x.reshape(-1) if self.g.elementwise else x[None]

    def _split(self, w: Weights) -> Weights:
        return jax.tree.map(self._cells, w)

    def _join(self, w: Weights) -> Weights:
        return jax.tree.map(lambda leaf, like: leaf.reshape(like.shape), w, self.w0)

    def _shape(self, result: RESULTS) -> RESULTS:
        shape = jax.eval_shape(self.g, self.w0).shape if self.g.elementwise else ()
        return jax.tree.map(lambda code: code.reshape(shape), result)


@eqx.filter_jit
def _advance(
    legendre: NumericLegendre, mu: Float[Array, "..."], a: Float[Array, ""]
) -> tuple[Weights, Float[Array, ""], RESULTS]:
    """`psi(mu, a)` and `Q_a(mu)`, NaN where they do not exist, and a status a cell."""
    w_a, q_a, start = legendre._start(a)
    cells = legendre._cells(mu)
    finite = jnp.all(jnp.isfinite(cells), axis=tuple(range(1, cells.ndim)))
    flow = jax.vmap(lambda w, mu: _flow(legendre.g, w, mu, legendre.rtol))
    w, q, end = flow(legendre._split(w_a), jnp.where(_expand(finite, cells), cells, 0))
    failure = select(end.singular | ~finite, RESULTS.outside_dual_interval, RESULTS.not_converged)
    result = legendre._shape(_with_start(start, select(end.arrived & finite, RESULTS.successful, failure)))
    ok = result == RESULTS.successful
    return _where(ok, legendre._join(w), jnp.nan), jnp.where(jnp.all(ok), q_a + jnp.sum(q), jnp.nan), result


@eqx.filter_jit
def _recover(
    legendre: NumericLegendre, x: Float[Array, "..."], a: Float[Array, ""]
) -> tuple[Float[Array, "..."], Weights, RESULTS]:
    """`mu` with `g(psi(mu, a)) = x`, the weights there, and a status a cell."""
    w_a, _, start = legendre._start(a)
    cells = legendre._cells(x)
    finite = jnp.all(jnp.isfinite(cells), axis=tuple(range(1, cells.ndim)))
    recover = jax.vmap(lambda w, x: _recover_cell(legendre.g, w, x, legendre.rtol))
    mu, w, result = recover(
        legendre._split(w_a), jnp.where(_expand(finite, cells), cells, legendre._cells(legendre.g(legendre.w0)))
    )
    result = _with_start(start, select(finite, result, RESULTS.outside_range))
    mu = jnp.where(_expand(result == RESULTS.successful, mu), mu, jnp.nan)
    return mu.reshape(x.shape), legendre._join(w), legendre._shape(result)


@eqx.filter_jit
def _ends(legendre: NumericLegendre, a: Float[Array, ""]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Both ends of each mu_i on its axis, NaN where psi(0, a) does not exist."""
    w, _, start = legendre._start(a)
    x = jax.eval_shape(legendre.g, legendre.w0)
    if legendre.g.elementwise:
        w, axes, over = legendre._split(w), jnp.ones(x.size, x.dtype), 0
    else:
        axes, over = jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape), None
    follow = jax.vmap(lambda w, axis: _follow(legendre.g, w, axis, legendre.rtol), in_axes=(over, 0))
    lower, upper = -follow(w, -axes).reshape(x.shape), follow(w, axes).reshape(x.shape)
    return _where(start.arrived, (lower, upper), jnp.nan)


def _flow(g: AbstractReparameterization, w: Weights, mu: Array, rtol: Array) -> tuple[Weights, Array, _End]:
    """From w along J^T mu for a unit of time: the weights, `int_0^1 <mu, g> ds`, and how it ended."""
    scale = _size(w)
    unit = _size(mu) * _size(g(w)) * mu.size + _size(g.pull(w, mu)) * scale
    unit = jnp.where(unit > 0, unit, 1) / scale

    def field(s: Array, state: tuple[Weights, Array]) -> tuple[Weights, Array]:
        return g.pull(state[0], mu), jnp.sum(mu * g(state[0])) / unit

    (w, q), end = _integrate(g, field, (w, jnp.zeros_like(rtol)), scale, rtol)
    inside = jnp.all(jnp.isfinite(g(w)))  # a step may land beyond the edge of the domain of g
    return w, q * unit, _End(end.arrived & inside, end.singular | (end.arrived & ~inside))


def _recover_cell(g: AbstractReparameterization, w_a: Weights, x: Array, rtol: Array) -> tuple[Array, Weights, RESULTS]:
    """One cell's `mu` with `g(psi(mu, a)) = x`: along a straight line from x_a, then damped Newton."""
    x_a = g(w_a)
    unit = jnp.sqrt(jnp.max(jnp.abs(g.metric(w_a))))  # mu times this has the size of the weights
    # After strong regularization x is far away on the scale of the weights: the line is followed in e-folds of it.
    folds = jnp.maximum(jnp.log1p(_size(x - x_a) / (unit * _size(w_a))), 1e-3)

    def field(s: Array, state: tuple[Weights, Array]) -> tuple[Weights, Array]:
        speed = folds * jnp.exp(folds * s) / jnp.expm1(folds)
        rate = _solve(g.metric(state[0]), (x - x_a) * speed)
        return g.pull(state[0], rate), rate * unit

    (w, mu), end = _integrate(g, field, (w_a, jnp.zeros_like(x)), _size(w_a), rtol)
    start = jnp.where(end.arrived, mu / unit, 0).reshape(-1)
    target = jnp.where(end.arrived, x, x_a)
    # g moves this much when each weight moves by the error that the integrator was allowed.
    w = _where(end.arrived, w, w_a)
    allowed = 20 * rtol * (jnp.abs(target) + jnp.sqrt(jnp.max(jnp.abs(g.metric(w)))) * _size(w))

    def equations(z: Array) -> tuple[Array, Weights]:
        w, _, end = _flow(g, w_a, z.reshape(x.shape), rtol)
        return jnp.where(end.arrived, (g(w) - target).reshape(-1), jnp.inf), w

    found, w = damped_newton(equations, lambda z, w: g.metric(w), start, tolerance=allowed.reshape(-1))
    result = select(end.arrived, found.result, RESULTS.not_converged)
    return found.value.reshape(x.shape), w, select(end.singular, RESULTS.outside_range, result)


def _follow(g: AbstractReparameterization, w: Weights, axis: Array, rtol: Array) -> Array:
    """The length by which mu can grow along an axis from w: infinite where it has no end, NaN where neither shows."""

    def rate(w: Weights) -> Array:
        return _size(w) / _size(g.pull(w, axis))  # the time in which the weights change by their own size

    unit = rate(w) / _size(w)
    horizon = math.log(float(jnp.finfo(rtol.dtype).max)) / 8  # leaves room for the powers of the weights in g

    def field(s: Array, state: tuple[Weights, Array]) -> tuple[Weights, Array]:
        clock = jnp.where(jnp.all(jnp.isfinite(g(state[0]))), rate(state[0]), jnp.nan)
        return jax.tree.map(lambda leaf: clock * leaf, g.pull(state[0], axis)), clock / unit

    (w_end, s), end = _integrate(g, field, (w, jnp.zeros_like(rtol)), _size(w), rtol, horizon)
    length = s * unit
    stopped = rate(w_end) <= jnp.sqrt(jnp.finfo(rtol.dtype).eps) * length
    moving = end.arrived & (rate(w_end) > 1e-3 * length)
    return jnp.where(stopped, length, jnp.where(moving, jnp.inf, jnp.nan))


def _integrate(
    g: AbstractReparameterization, field: Any, start: Any, scale: Array, rtol: Array, horizon: float = 1.0
) -> tuple[Any, _End]:
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
            norm=lambda error: _size(error[0]),
            dtmin=5 * math.pi * eps * horizon,
            force_dtmin=False,
        ),
        saveat=diffrax.SaveAt(t1=True),
        adjoint=diffrax.ForwardMode(),  # no derivative passes through the solve, so nothing need be stored for one
        max_steps=4096,
        throw=False,
    )
    y = jax.tree.map(lambda leaf: leaf[0], solution.ys)
    arrived = (solution.result == diffrax.RESULTS.successful) & jnp.isfinite(_size(y))
    # Steps shrink to rounding at a singularity; also where numbers overflow, which is none.
    shrunk = (solution.result == diffrax.RESULTS.dt_min_reached) & (_size(y) < limit * scale)
    assert solution.ts is not None  # for the type checker: SaveAt(t1=True) gives it
    return y, _End(arrived, shrunk & (solution.ts[0] < (1 - eps**0.5) * horizon))


def _solve(matrix: Float[Array, "n n"], b: Array) -> Array:
    if b.size == 1:
        return b / matrix.reshape(b.shape)
    return solve_spd(matrix, b.reshape(-1)).reshape(b.shape)


def _size(tree: Any) -> Array:
    return jnp.sqrt(jnp.sum(jnp.stack([jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)])))


def _expand(flags: Bool[Array, " cells"], like: Float[Array, "cells ..."]) -> Bool[Array, "cells ..."]:
    return flags.reshape(flags.shape + (1,) * (like.ndim - 1))


def _where(condition: Array, tree: Any, other: Any) -> Any:
    other = jax.tree.map(lambda leaf: jnp.full_like(leaf, other), tree) if isinstance(other, float) else other
    return jax.tree.map(lambda leaf, rest: jnp.where(condition, leaf, rest), tree, other)


def _with_start(start: _End, result: RESULTS) -> RESULTS:
    everywhere = jnp.broadcast_to(start.singular, (result == RESULTS.successful).shape)
    failure = select(everywhere, RESULTS.range_exhausted, RESULTS.not_converged)
    return select(jnp.broadcast_to(start.arrived, everywhere.shape), result, failure)


def _filled(tangents: tuple, *like: Array) -> tuple[Array, ...]:
    """The tangents of the last arguments, zeros where there is none; refused where the first argument has one."""
    if jax.tree.leaves(tangents[0]):
        raise ValueError(
            "NumericLegendre has derivatives in mu, x and a only, not in w0, rtol, or numbers held by g and h: "
            "use a closed form (method='closed_form'), or integrate the flow itself"
        )
    given = tangents[len(tangents) - len(like) :]
    return tuple(jnp.zeros_like(zero) if t is None else t for t, zero in zip(given, like, strict=True))


@tied
def _tie_weights(w: Weights, args: tuple, tangents: tuple) -> Weights:
    """`psi(mu, a)`, known to be w, with its derivatives: `dw = J^T dmu + grad h da`."""
    legendre, ok, mu, a = args
    t_mu, t_a = _filled(tangents, mu, a)
    change = _change_of_weights(legendre, _where(ok, w, legendre.w0), t_mu, t_a)
    return _where(ok, change, jnp.nan)


# The two rules are compiled whole: outside jit, each of their hundred operations would be compiled by itself.
@eqx.filter_jit
def _change_of_weights(legendre: NumericLegendre, w: Weights, t_mu: Array, t_a: Array) -> Weights:
    """`dw = J^T dmu + grad h da`."""
    along_g, along_h = legendre.g.pull(w, t_mu), jax.grad(legendre.h)(w)
    return jax.tree.map(lambda g, h: g + h * t_a, along_g, along_h)


@eqx.filter_jit
def _change_of_mu(legendre: NumericLegendre, w: Weights, t_x: Array, t_a: Array) -> Array:
    """`dmu = (J J^T)^{-1} (dx - J grad h da)`."""
    change = t_x - jax.jvp(legendre.g, (w,), (jax.grad(legendre.h)(w),))[1] * t_a
    solve = jax.vmap(lambda w, change: _solve(legendre.g.metric(w), change))
    return solve(legendre._split(w), legendre._cells(change)).reshape(t_x.shape)


@tied
def _tie_potential(q: Array, args: tuple, tangents: tuple) -> Array:
    """`Q_a(mu)`, known to be q, with its derivatives: `dQ = <g(w), dmu> + h(w) da`."""
    legendre, w, mu, a = args
    t_mu, t_a = _filled(tangents, mu, a)
    ok = jnp.isfinite(q)
    point = _where(ok, w, legendre.w0)
    change = jnp.sum(legendre.g(point) * t_mu) + legendre.h(point) * t_a
    return jnp.where(ok, change, jnp.nan)


@tied
def _tie_dual(mu: Array, args: tuple, tangents: tuple) -> Array:
    """`grad R_a(x)`, known to be mu, with its derivatives: `dmu = (J J^T)^{-1} (dx - J grad h da)`."""
    legendre, w, ok, x, a = args
    t_x, t_a = _filled(tangents, x, a)
    point = _where(ok, _tie_weights(w, legendre, ok, mu, a), legendre.w0)
    return jnp.where(ok, _change_of_mu(legendre, point, t_x, t_a), jnp.nan)
