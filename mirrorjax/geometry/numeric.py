"""NumericLegendre: R_a of any commuting or normalising pair from its definition, which every closed form must equal.

psi is integrated, first along grad h for time a, then along the grad g_i for times mu_i. This order gives `x_a =
g(psi(0, a))` on the way and separates the coordinates of an elementwise g. Where all fields commute the order is free;
where h only normalises g, `[grad h, grad g_i] = sum_j Lambda_ij grad g_j`, it defines mu, which then leaks. A cell is a
part of x that is integrated by itself: one coordinate where g is elementwise, all of x otherwise. Each cell has its own
steps and its own status, so a bad cell does not spoil the others.

No derivative passes through an integrator. Each result is tied to its arguments by the exact local rule,
`d psi = J^T (dmu - Lambda^T mu da) + grad h da`, `d mu = (J J^T)^{-1} (dx - J grad h da) + Lambda^T mu da`,
`dQ = <x, dmu> + (h - <Lambda^T mu, x> + E) da` with `E = int_0^1 <Lambda^T mu, g(psi(s mu, a))> ds`. (Fields carried by
the flow of h obey `d/da Phi_a^* grad g_i = -sum_j Lambda_ij Phi_a^* grad g_j`, from which the first rule follows; the
gradient in mu of the factor of da in dQ is then dx/da, as it must be.)
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..checks import Numbers, as_float, as_scalar, freeze, require_finite, require_positive
from ..problem import AbstractRegularizer, AbstractReparameterization
from ..problem.reparam import Weights
from ..results import RESULTS, require_success, select
from .base import AbstractLegendre
from .cells import End, flow_cell, follow_cell, integrate, recover_cell, rise_cell, size_of, solve_metric, where_tree
from .divergence import tie_divergence
from .points import Recovered, Strength, as_finite_weights, at_strength, require_pair
from .tied import tied


class NumericLegendre(AbstractLegendre):
    """`R_a` of a commuting or normalising (g, h) from w0, by integration and Newton's method: no formula is needed.

    - `psi(mu, a)` by integrating `dw/ds = a grad h(w)`, then `dw/ds = J(w)^T mu`, s in [0, 1];
    - `Q_a(mu) = int_0^a h(psi(0, s)) ds + int_0^1 <mu, g(psi(s mu, a))> ds`: the free constant is `Q_0(0) = 0`, so
      that `R_0(x_init) = 0`; closed forms fix another, and only differences between (x, a) compare;
    - `x -> mu` in a straight line from `x_a = g(psi(0, a))`: `dw/ds = J^T (J J^T)^{-1} (x - x_a)`,
      `dmu/ds = (J J^T)^{-1} (x - x_a)`, then damped Newton on `g(psi(mu, a)) = x` with the Jacobian J J^T there;
    - `R_a(x) = <mu, x> - Q_a(mu)`, in which an error of mu enters only squared, since `grad Q_a(mu) = x`;
    - with a leak, `dR_a(x)/da = -h + lambda (R_a(x) - min R_a)` for Lambda = lambda I, h at psi: contracting where
      h >= 0 and lambda <= 0.

    Differentiable in mu, x and a, any number of times, forward and reverse, by the implicit function theorem; with a
    leak, `potential` and `value` are differentiated in a only once. A derivative in w0, in the leak, or in numbers held
    by g and h, is refused with a `ValueError`: use a closed form.

    The status `not_converged` marks the points that it cannot resolve: a singularity within 1e-8 of the end of the
    integration (3e-4 in float32), an x so near the end of the range that mu has too few digits for it, a decay that
    takes more than 4096 steps (weights near e^-1000).

    **Arguments:** `g`, `h`: a pair that commutes, or of which h normalises g (not checked here, see `check`); `w0`:
    initial weights with full-rank J; `leak`: Lambda, of shape (), that of x, or `x.shape + x.shape`, such as the
    `leak` of the report of `check`; `None` for a pair that commutes; `rtol`: tolerance of the integrations relative
    to the weights, by default 1e-12 in float64 and 1e-6 in float32.
    **Raises:** `ValueError` for weights g or h does not take, or that are not finite; for an h that is not
    differentiable; for a leak that is not finite or of another shape.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Theorem 3.6; with a leak none published, see `legendre`.
    """

    g: AbstractReparameterization
    h: AbstractRegularizer
    w0: Weights
    rates: Float[Array, "..."] | None
    rtol: Float[Array, ""]

    def __init__(
        self,
        g: AbstractReparameterization,
        h: AbstractRegularizer,
        w0: Weights,
        *,
        leak: Numbers | None = None,
        rtol: Any = None,
    ):
        require_pair(g, h)
        self.g, self.h, self.w0 = g, h, as_finite_weights(w0)
        g.check(self.w0)
        h.check(self.w0)
        if not h.smooth:
            raise ValueError(f"{type(h).__name__} is not differentiable, so it has no R_a; use a smooth regularizer")
        leaves = jax.tree.leaves(self.w0)
        if len({leaf.dtype for leaf in leaves}) > 1:
            raise ValueError(f"w0 must have one dtype, got {sorted({str(leaf.dtype) for leaf in leaves})}")
        default = 1e-12 if leaves[0].dtype == jnp.float64 else 1e-6
        tolerance = as_scalar(default if rtol is None else rtol, "rtol")
        require_positive(tolerance, "rtol")
        self.rtol = tolerance.astype(leaves[0].dtype)
        self.rates = None if leak is None else _as_leak(leak, jax.eval_shape(g, self.w0))

    leaks = property(lambda self: self.rates is not None)

    @property
    def leak(self) -> Float[Array, "..."]:
        return jnp.zeros_like(self.rtol) if self.rates is None else self.rates

    def evaluate(self, hook: str, a: Strength, *points: Float[Array, "..."]) -> Any:
        """`hook(*points, a)`, not as one program: the two integrations are programs that all methods share."""
        return at_strength(lambda a: getattr(self, hook)(*points, a), a)

    def weights_at(self, mu: Float[Array, "..."], a: Strength) -> Weights:
        return self._psi(mu, a)[0]

    def potential_at(self, mu: Float[Array, "..."], a: Strength) -> Float[Array, ""]:
        """`Q_a(mu)`, with `Q_0(0) = 0`; NaN outside the dual interval."""
        a = jnp.asarray(a, self.rtol.dtype)
        w, q, excess, _ = self._psi(mu, a)
        return _tie_potential(q, self, w, mu, a, excess)

    def primal_at(self, mu: Float[Array, "..."], a: Strength) -> Recovered:
        w, *_, result = self._psi(mu, a)
        ok = result == RESULTS.successful
        return Recovered(jnp.where(ok, self.g(where_tree(ok, w, self.w0)), jnp.nan), result)

    def dual_at(self, x: Float[Array, "..."], a: Strength) -> Recovered:
        a = jnp.asarray(a, self.rtol.dtype)
        mu, w, result = _recover(*freeze((self, x, a)))
        ok = result == RESULTS.successful
        return Recovered(_tie_dual(mu, self, w, ok, x, a), result)

    def metric_vector_at(self, mu: Float[Array, "..."], v: Float[Array, "..."], a: Strength) -> Float[Array, "..."]:
        w, *_, result = self._psi(mu, a)
        ok = result == RESULTS.successful
        return jnp.where(ok, self.g.push(where_tree(ok, w, self.w0), v), jnp.nan)

    def dual_interval_at(self, a: Strength) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Both ends of each mu_i, found by following the flow along that axis with the others at 0.

        The flow is followed for 88 e-folds of the weights (11 in float32). An end is finite where they blow up or leave
        the domain of g while mu_i has stopped moving, infinite where mu_i still moves in proportion to itself, NaN
        where neither shows, or psi(0, a) does not exist. For a g whose coordinates share weights, Q_a is finite on a
        convex set that need not be a box: these are its ends on the axes. Derivatives are refused.
        """
        arguments = (self, jnp.asarray(a, self.rtol.dtype))
        return _ends(*eqx.internal.nondifferentiable(arguments, name="NumericLegendre.dual_interval"))

    def point_like(self) -> jax.ShapeDtypeStruct:
        return jax.eval_shape(self.g, self.w0)

    def value_at(self, x: Float[Array, "..."], mu: Float[Array, "..."], a: Strength) -> Float[Array, ""]:
        a = jnp.asarray(a, self.rtol.dtype)
        w, q, excess, _ = self._psi(mu, a)
        return _tie_value(jnp.sum(freeze(mu) * freeze(x)) - q, self, w, mu, x, a, excess)

    def bregman_at(
        self,
        x: Float[Array, "..."],
        z: Float[Array, "..."],
        mu_x: Float[Array, "..."],
        mu_z: Float[Array, "..."],
        a: Strength,
    ) -> Float[Array, ""]:
        """`D_a(x, z)`, integrated along the line from z to x. Raises where that meets a singularity."""
        a = jnp.asarray(a, self.rtol.dtype)
        value, rise, result = _between(*freeze((self, x, z, mu_z, a)))
        value = require_success(value, result)
        return tie_divergence(value, rise, self, (x, z, mu_x, mu_z), a)

    def _start(self, a: Float[Array, ""]) -> tuple[Weights, Float[Array, ""], End]:
        """`psi(0, a)`, `Q_a(0)` and how it ended."""
        scale = size_of(self.w0)
        unit = jnp.abs(a) * (jnp.abs(self.h(self.w0)) + size_of(jax.grad(self.h)(self.w0)) * scale)
        unit = jnp.where(unit > 0, unit, 1) / scale

        def field(s: Array, state: tuple[Weights, Array]) -> tuple[Weights, Array]:
            value, slope = jax.value_and_grad(self.h)(state[0])
            return jax.tree.map(lambda leaf: a * leaf, slope), a * value / unit

        (w, q), end = integrate(self.g, field, (self.w0, jnp.zeros_like(a)), scale, self.rtol)
        return w, q * unit, end

    def _psi(self, mu: Float[Array, "..."], a: Strength) -> tuple[Weights, Float[Array, ""], Float[Array, ""], RESULTS]:
        """`psi(mu, a)`, `Q_a(mu)` and E, NaN where they do not exist, and a status a cell; only psi has derivatives."""
        a = jnp.asarray(a, self.rtol.dtype)
        w, q, excess, result = _advance(*freeze((self, mu, a)))
        return _tie_weights(w, self, result == RESULTS.successful, mu, a), q, excess, result

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
) -> tuple[Weights, Float[Array, ""], Float[Array, ""], RESULTS]:
    """`psi(mu, a)`, `Q_a(mu)` and E, NaN where they do not exist, and a status a cell."""
    w_a, q_a, start = legendre._start(a)
    cells = legendre._cells(mu)
    finite = jnp.all(jnp.isfinite(cells), axis=tuple(range(1, cells.ndim)))
    mus = [cells] if legendre.rates is None else [cells, legendre._cells(legendre.leak_product(mu))]
    flow = jax.vmap(lambda w, mu, *along: flow_cell(legendre.g, w, mu, legendre.rtol, *along))
    w, q, end = flow(legendre._split(w_a), *(jnp.where(_expand(finite, cells), each, 0) for each in mus))
    failure = select(end.singular | ~finite, RESULTS.outside_dual_interval, RESULTS.not_converged)
    result = legendre._shape(_with_start(start, select(end.arrived & finite, RESULTS.successful, failure)))
    ok = result == RESULTS.successful
    totals = jnp.where(jnp.all(ok), jnp.sum(q, axis=0), jnp.nan)
    excess = jnp.zeros_like(q_a) if legendre.rates is None else totals[1]
    return where_tree(ok, legendre._join(w), jnp.nan), q_a + totals[0], excess, result


@eqx.filter_jit
def _recover(
    legendre: NumericLegendre, x: Float[Array, "..."], a: Float[Array, ""]
) -> tuple[Float[Array, "..."], Weights, RESULTS]:
    """`mu` with `g(psi(mu, a)) = x`, the weights there, and a status a cell."""
    w_a, _, start = legendre._start(a)
    cells = legendre._cells(x)
    finite = jnp.all(jnp.isfinite(cells), axis=tuple(range(1, cells.ndim)))
    recover = jax.vmap(lambda w, x: recover_cell(legendre.g, w, x, legendre.rtol))
    mu, w, result = recover(
        legendre._split(w_a), jnp.where(_expand(finite, cells), cells, legendre._cells(legendre.g(legendre.w0)))
    )
    result = _with_start(start, select(finite, result, RESULTS.outside_range))
    mu = jnp.where(_expand(result == RESULTS.successful, mu), mu, jnp.nan)
    return mu.reshape(x.shape), legendre._join(w), legendre._shape(result)


@eqx.filter_jit
def _between(
    legendre: NumericLegendre, x: Float[Array, "..."], z: Float[Array, "..."], mu_z: Float[Array, "..."], a: Array
) -> tuple[Float[Array, ""], Float[Array, "..."], RESULTS]:
    """`D_a(x, z)`, `mu_x - mu_z` and a status, by moving in a straight line from z to x."""
    w_z, *_ = _advance(legendre, mu_z, a)
    rise = jax.vmap(lambda w, x, z: rise_cell(legendre.g, w, x, z, legendre.rtol))
    change, value, end = rise(legendre._split(w_z), legendre._cells(x), legendre._cells(z))
    result = select(jnp.all(end.arrived), RESULTS.successful, RESULTS.not_converged)
    return jnp.sum(value), change.reshape(x.shape), result


@eqx.filter_jit
def _ends(legendre: NumericLegendre, a: Float[Array, ""]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Both ends of each mu_i on its axis, NaN where psi(0, a) does not exist."""
    w, _, start = legendre._start(a)
    x = jax.eval_shape(legendre.g, legendre.w0)
    if legendre.g.elementwise:
        w, axes, over = legendre._split(w), jnp.ones(x.size, x.dtype), 0
    else:
        axes, over = jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape), None
    follow = jax.vmap(lambda w, axis: follow_cell(legendre.g, w, axis, legendre.rtol), in_axes=(over, 0))
    lower, upper = -follow(w, -axes).reshape(x.shape), follow(w, axes).reshape(x.shape)
    return where_tree(start.arrived, (lower, upper), jnp.nan)


def _expand(flags: Bool[Array, " cells"], like: Float[Array, "cells ..."]) -> Bool[Array, "cells ..."]:
    return flags.reshape(flags.shape + (1,) * (like.ndim - 1))


def _with_start(start: End, result: RESULTS) -> RESULTS:
    everywhere = jnp.broadcast_to(start.singular, (result == RESULTS.successful).shape)
    failure = select(everywhere, RESULTS.range_exhausted, RESULTS.not_converged)
    return select(jnp.broadcast_to(start.arrived, everywhere.shape), result, failure)


def _filled(tangents: tuple, *like: Array) -> tuple[Array, ...]:
    """The tangents of the last arguments, zeros where there is none; refused where the first argument has one."""
    if jax.tree.leaves(tangents[0]):
        raise ValueError(
            "NumericLegendre has derivatives in mu, x and a only, not in w0, leak, rtol, or numbers held by g and h: "
            "use a closed form (method='closed_form'), or integrate the flow itself"
        )
    given = tangents[len(tangents) - len(like) :]
    return tuple(jnp.zeros_like(zero) if t is None else t for t, zero in zip(given, like, strict=True))


def _as_leak(leak: Numbers, like: jax.ShapeDtypeStruct) -> Float[Array, "..."]:
    """Converts Lambda to an array like x. Raises `ValueError` where it is not finite or has no shape of a leak."""
    rates = as_float(leak, "leak")
    shapes = [(), like.shape, like.shape + like.shape]
    if rates.shape not in shapes:
        raise ValueError(f"leak must have one of the shapes {', '.join(map(str, shapes))}, got {rates.shape}")
    require_finite(rates, "leak")
    return rates.astype(like.dtype)


@tied
def _tie_weights(w: Weights, args: tuple, tangents: tuple) -> Weights:
    """`psi(mu, a)`, known to be w, with its derivatives: `dw = J^T (dmu - Lambda^T mu da) + grad h da`."""
    legendre, ok, mu, a = args
    t_mu, t_a = _filled(tangents, mu, a)
    change = _change_of_weights(legendre, where_tree(ok, w, legendre.w0), mu, t_mu, t_a)
    return where_tree(ok, change, jnp.nan)


# The two rules are compiled whole: outside jit, each of their hundred operations would be compiled by itself.
@eqx.filter_jit
def _change_of_weights(legendre: NumericLegendre, w: Weights, mu: Array, t_mu: Array, t_a: Array) -> Weights:
    """`dw = J^T (dmu - Lambda^T mu da) + grad h da`."""
    if legendre.leaks:
        t_mu = t_mu - legendre.leak_product(mu) * t_a
    along_g, along_h = legendre.g.pull(w, t_mu), jax.grad(legendre.h)(w)
    return jax.tree.map(lambda g, h: g + h * t_a, along_g, along_h)


@eqx.filter_jit
def _change_of_mu(legendre: NumericLegendre, w: Weights, mu: Array, t_x: Array, t_a: Array) -> Array:
    """`dmu = (J J^T)^{-1} (dx - J grad h da) + Lambda^T mu da`."""
    change = t_x - jax.jvp(legendre.g, (w,), (jax.grad(legendre.h)(w),))[1] * t_a
    solve = jax.vmap(lambda w, change: solve_metric(legendre.g.metric(w), change))
    solved = solve(legendre._split(w), legendre._cells(change)).reshape(t_x.shape)
    return solved + legendre.leak_product(mu) * t_a if legendre.leaks else solved


def _rate_of_potential(legendre: NumericLegendre, w: Weights, mu: Array, a: Array, excess: Array) -> Array:
    """`dQ_a(mu)/da = h - <Lambda^T mu, x> + E`."""
    if not legendre.leaks:
        return legendre.h(w)
    excess = _tie_excess(excess, legendre, w, mu, a)
    return legendre.h(w) - jnp.sum(legendre.leak_product(mu) * legendre.g(w)) + excess


@tied
def _tie_excess(excess: Array, args: tuple, tangents: tuple) -> Array:
    """E, known to be `excess`, with its derivative in mu: `dE = <Lambda x, dmu>`, as Lambda x is a gradient in mu."""
    legendre, w, mu, _ = args
    if tangents[-1] is not None:
        raise ValueError(
            "NumericLegendre with a leak has only one derivative of its value and potential in a: use a closed form "
            "(method='closed_form'), or differentiate mirror_map or inverse_mirror_map, which have all"
        )
    (t_mu,) = _filled(tangents[:-1], mu)
    return jnp.sum(legendre.leak_product(t_mu) * legendre.g(w))


@tied
def _tie_potential(q: Array, args: tuple, tangents: tuple) -> Array:
    """`Q_a(mu)`, known to be q, with its derivatives: `dQ = <x, dmu> + (h - <Lambda^T mu, x> + E) da`."""
    legendre, w, mu, a, excess = args
    t_mu, t_a = _filled(tangents[:-1], mu, a)
    ok = jnp.isfinite(q)
    point = where_tree(ok, w, legendre.w0)
    change = jnp.sum(legendre.g(point) * t_mu)
    if tangents[-2] is not None:
        change = change + _rate_of_potential(legendre, point, mu, a, excess) * t_a
    return jnp.where(ok, change, jnp.nan)


@tied
def _tie_value(value: Array, args: tuple, tangents: tuple) -> Array:
    """`R_a(x)`, known to be `value`, with its derivatives: `dR = <mu, dx> - (dQ)(mu)`, by the envelope theorem."""
    legendre, w, mu, x, a, excess = args
    t_x, t_a = _filled(tangents[:-1], x, a)
    ok = jnp.isfinite(value)
    change = jnp.sum(mu * t_x)
    if tangents[-2] is not None:
        change = change - _rate_of_potential(legendre, where_tree(ok, w, legendre.w0), mu, a, excess) * t_a
    return jnp.where(ok, change, jnp.nan)


@tied
def _tie_dual(mu: Array, args: tuple, tangents: tuple) -> Array:
    """`grad R_a(x)`, known to be mu, with its derivatives: `dmu = (J J^T)^{-1} (dx - J grad h da) + Lambda^T mu da`."""
    legendre, w, ok, x, a = args
    t_x, t_a = _filled(tangents, x, a)
    point = where_tree(ok, _tie_weights(w, legendre, ok, mu, a), legendre.w0)
    return jnp.where(ok, _change_of_mu(legendre, point, mu, t_x, t_a), jnp.nan)
