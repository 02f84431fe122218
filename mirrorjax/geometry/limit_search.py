"""The search behind predict_limit(): damped Newton on the dual of `min R_a(x)` s.t. `Z x = y`.

The dual, `min_nu Q_a(offset + Z^T nu) - <nu, y>`, is smooth, convex and has no constraint, and its gradient is the
residual `Z x - y` of `x = grad Q_a(offset + Z^T nu)`. The offset is 0 for the minimum of R_a itself, and
grad R_a(start) for the Bregman projection of a point.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..problem.objective import AbstractMeasured
from .base import AbstractLegendre
from .newton import first_good

Parameters = Float[Array, "..."]
Measurements = Float[Array, " n"]

_NEAR = 0.1  # a residual below this fraction of |x| is near enough to the path to go on in a
_FAR = 0.25  # how far from the path a step in a may land


class Whitened(eqx.Module):
    """`Z x = y` in the form `W x = z` with orthonormal rows: `W = B Z`, `z = B y`, and zero rows beyond the rank.

    Its residual `|W x - z|` is the distance of x from the solutions, and the Hessian W M W^T as good as M allows.
    """

    W: Float[Array, "r ..."]
    z: Float[Array, " r"]
    B: Float[Array, "r n"]
    kept: Bool[Array, " r"]
    consistent: Bool[Array, ""]

    def measure(self, x: Parameters) -> Float[Array, " r"]:
        return self.W.reshape(len(self.W), -1) @ x.reshape(-1)

    def adjoint(self, r: Float[Array, " r"]) -> Parameters:
        return (r @ self.W.reshape(len(self.W), -1)).reshape(self.W.shape[1:])

    def distance_from_rows(self, mu: Parameters) -> Float[Array, ""]:
        """`|mu - W^T W mu| / |mu|`, and 0 where mu = 0."""
        size = jnp.max(jnp.abs(mu))
        unit = mu / jnp.where(size > 0, size, 1.0)  # its squares neither overflow nor vanish
        length = jnp.linalg.norm(unit.reshape(-1))
        distance = jnp.linalg.norm((unit - self.adjoint(self.measure(unit))).reshape(-1))
        return distance / jnp.where(length > 0, length, 1.0)


def rows_of(objective: AbstractMeasured) -> Float[Array, "n ..."]:
    """The rows of Z, each shaped like x."""
    n = objective.y.size
    return jax.vmap(objective.adjoint)(jnp.eye(n, dtype=objective.y.dtype))


def whiten(objective: AbstractMeasured) -> Whitened:
    """The whitened system of an objective; no derivative passes through it."""
    rows = rows_of(jax.lax.stop_gradient(objective))
    y = jax.lax.stop_gradient(objective.y)
    flat = rows.reshape(len(rows), -1)
    V, sizes, W = jnp.linalg.svd(flat, full_matrices=False)
    rounding = jnp.finfo(y.dtype).eps * max(flat.shape)
    kept = sizes > rounding * sizes[0]
    V = jnp.where(kept, V, 0.0)
    B = V.T / jnp.where(kept, sizes, 1.0)[:, None]
    missed = jnp.linalg.norm(y - V @ (V.T @ y))
    W = jnp.where(kept[:, None], W, 0.0).reshape(-1, *rows.shape[1:])
    return Whitened(W, B @ y, B, kept, missed <= 10 * rounding * jnp.linalg.norm(y))


class Dual(eqx.Module):
    """The function that the search minimises, `theta -> Q_a(offset + W^T theta) - <theta, z>`.

    a is a scalar, or an array of one number a coordinate.
    """

    R: AbstractLegendre
    system: Whitened
    a: Float[Array, "..."]
    offset: Parameters

    def place(self, coarse: Float[Array, " r"], fine: Float[Array, " r"]) -> tuple[Parameters, Parameters]:
        """mu of the coarse multipliers, and the step from it that the fine ones add."""
        return self.offset + self.system.adjoint(coarse), self.system.adjoint(fine)

    def metric(self, mu: Parameters, a: Float[Array, "..."]) -> tuple[Float[Array, "r r"], Parameters]:
        """`W J J^T W^T` and `J J^T mu`."""
        W = self.system.W
        if self.R.separable:  # J J^T is diagonal: evaluated once
            diagonal = self.R.metric_vector_at(mu, jnp.ones_like(mu), a)
            images, pull = diagonal[None] * W, diagonal * mu
        else:
            images = jax.vmap(lambda row: self.R.metric_vector_at(mu, row, a))(W)
            pull = self.R.metric_vector_at(mu, mu, a)
        return images.reshape(len(W), -1) @ W.reshape(len(W), -1).T, pull


class Path(eqx.Module):
    """A point of the search: multipliers theta of the whitened rows, at the strength `fraction * a`.

    `theta = coarse + fine`. Where decay has pushed the ends of the dual interval far out, mu is large, and x, which
    depends on its distance from an end, changes by steps that are below the rounding of mu. Near the solution theta
    therefore moves in `fine` alone, and mu stays.
    """

    coarse: Float[Array, " r"]
    fine: Float[Array, " r"]
    fraction: Float[Array, ""]
    steps: Int[Array, ""]
    converged: Bool[Array, ""]
    stuck: Bool[Array, ""]


def follow(dual: Dual, tolerances: Array, max_steps: Int[Array, ""], possible: Bool[Array, ""], *, warm: bool) -> Path:
    """Damped Newton from theta = 0, at a; with `warm`, along a path of strengths that leads to a.

    For strong decay J J^T is as small as e^{4ca} around theta = 0. Where fields commute theta grows with the strength,
    and the path from 0, where theta = 0 is w0 itself, takes a few steps. Where the dual variable leaks theta does not,
    and the path would take hundreds. Without it a Newton step is too long by the inverse of J J^T, and is halved until
    it fits; the path then only starts where J J^T does not vanish in the floats.

    The step search is shared with `newton.py`; the loop is not. A step here also moves the strength, so no one merit
    falls along the path: it counts as good where the residual is small against x, and the solve keeps going where the
    Hessian is singular to rounding, on which `newton.py` gives up.
    """
    fraction = _first_fraction(dual) if warm else jnp.ones((), dual.a.dtype)
    blank = jnp.zeros_like(dual.system.z)
    path = Path(blank, blank, fraction, jnp.zeros((), int), jnp.zeros((), bool), ~possible)

    def unfinished(path: Path) -> Bool[Array, ""]:
        return (path.steps < max_steps) & ~path.converged & ~path.stuck

    return jax.lax.while_loop(unfinished, lambda path: _advance(dual, tolerances, path), path)


def _first_fraction(dual: Dual) -> Float[Array, ""]:
    """0 where fields commute; else the largest of 1, 1/2, 1/4, .. of a at which J J^T is well above the smallest float.

    J J^T is taken at theta = 0; the fraction is 0 where it vanishes at all of them.
    """
    none = jnp.zeros((), dual.a.dtype)
    if not dual.R.leaks:
        return none
    origin = jnp.zeros_like(dual.offset)
    enough = float(jnp.finfo(origin.dtype).tiny) ** 0.5

    def trial(fraction: Array) -> tuple[Array, Bool[Array, ""]]:
        metric = dual.R.metric_vector_at(origin, jnp.ones_like(origin), fraction * dual.a)
        return fraction, jnp.max(jnp.abs(metric)) > enough

    fraction, found = first_good(trial, none, 2.0**-60, none.dtype)
    return jnp.where(found, fraction, none)


def _advance(dual: Dual, tolerances: Array, path: Path) -> Path:
    """One linear solve: a Newton step at this strength, and where that is near the path a step of it as well."""
    R, system, a, fraction = dual.R, dual.system, dual.a, path.fraction
    mu, step = dual.place(path.coarse, path.fine)
    x, drift = jax.jvp(
        lambda fraction: R.primal_from_at(mu, step, fraction * a).value, (fraction,), (jnp.ones_like(fraction),)
    )
    hessian, pull = dual.metric(mu + step, fraction * a)
    residual, size = system.measure(x) - system.z, jnp.linalg.norm(x.reshape(-1))
    before = distance = jnp.linalg.norm(residual)
    eps = jnp.finfo(x.dtype).eps
    spent = fraction.astype(x.dtype) * drift
    noise = 4 * eps * (jnp.linalg.norm(pull.reshape(-1)) + jnp.linalg.norm(spent.reshape(-1)))
    noise = jnp.minimum(noise, jnp.sqrt(eps) * size)
    arrived = fraction == 1
    converged = arrived & (distance <= tolerances[0] * size + tolerances[1]) & jnp.isfinite(distance)
    # Within the rounding of mu and a, one more step that is not twice as near says that no step will be.
    rounded = arrived & (distance <= noise)
    near = distance <= _NEAR * size + noise
    outward, close = ~arrived & near, arrived & near

    solve, _ = factor(hessian)
    newton = -solve(residual)
    # To first order theta scales with the strength, as all that decay leaves flat does, and `bend` corrects where it is
    # not flat.
    scaled = fraction > 0
    rate = jnp.where(scaled, 1 / jnp.where(scaled, fraction, 1.0), 0.0).astype(x.dtype)
    bend = -solve(system.measure(drift + rate * pull))

    def trial(t: Array) -> tuple[tuple[Array, Array, Array], Bool[Array, ""]]:
        change = jnp.where(outward, t.astype(a.dtype) * (1 - fraction), 0.0)
        there_fraction = jnp.where(outward & (t == 1), 1.0, fraction + change)
        move = change.astype(x.dtype)
        coarse = path.coarse * (1 + rate * move) + bend * move + jnp.where(close, 0.0, t * newton)
        fine = path.fine + jnp.where(close, t * newton, 0.0)
        there = R.primal_from_at(*dual.place(coarse, fine), there_fraction * a)
        miss = system.measure(there.value) - system.z
        distance = jnp.linalg.norm(miss)
        # The dual is convex: its slope along the step rises, and has passed its minimum not far where it is below half.
        descends = newton @ miss <= -0.5 * (newton @ residual)
        # Against both sizes of x: a step into the flat region, where x vanishes, is not near.
        fits = distance <= _FAR * jnp.minimum(size, jnp.linalg.norm(there.value.reshape(-1)))
        good = jnp.where(outward, fits, jnp.where(rounded, distance <= 0.5 * before, descends))
        return (coarse, fine, there_fraction), good & jnp.isfinite(distance) & jnp.all(there.ok)

    # Where every x is tiny, and with it the Hessian, a Newton step is too long by the inverse of x: so the halvings go
    # on to the smallest float.
    shortest = jnp.where(rounded, 1.0, float(jnp.finfo(x.dtype).tiny))
    old = path.coarse, path.fine, fraction
    there, moved = first_good(trial, old, shortest, path.fine.dtype)
    converged |= rounded & ~moved
    move = moved & ~converged
    coarse, fine, fraction = (jnp.where(move, new, kept) for new, kept in zip(there, old, strict=True))
    steps = path.steps + jnp.where(converged, 0, 1)
    return Path(coarse, fine, fraction, steps, converged, ~moved & ~converged)


def factor(H: Float[Array, "r r"]) -> tuple[Callable[[Array], Array], Bool[Array, ""]]:
    """`r -> (H + lambda I)^{-1} r` with lambda at the rounding of H, and True if H is regular beyond that.

    Directions in which H is below its rounding, entries of x that decay has made negligible, are left where they are.
    """
    scale = jnp.max(jnp.diag(H))
    scale = jnp.where(scale > 0, scale, 1.0)
    shift = len(H) * jnp.finfo(H.dtype).eps
    factor = jnp.linalg.cholesky(H / scale + shift * jnp.eye(len(H), dtype=H.dtype), symmetrize_input=False)
    regular = jnp.min(jnp.diag(factor)) ** 2 > 100 * shift
    return lambda r: jax.scipy.linalg.cho_solve((factor, True), r / scale), regular


def implicit_multipliers(
    R: AbstractLegendre,
    objective: AbstractMeasured,
    system: Whitened,
    a: Array,
    place: Callable[[Measurements], tuple[Parameters, Parameters]],
    nu: Measurements,
    ok: Bool[Array, ""],
) -> Measurements:
    """nu again, as a function of R, Z, y, a and offset, by the derivative of `0 = Z grad Q_a(offset + Z^T nu) - y`.

    **Arguments:** `place`: nu -> mu and a step from it, whose sum is offset + Z^T nu.
    """

    def residual(nu: Measurements) -> Measurements:
        return objective.measure(R.primal_from_at(*place(nu), a).value) - objective.y

    def tangent(linear: Callable, rhs: Measurements) -> Measurements:
        # nu = B^T theta keeps to the span of the rows, and B times the derivative in theta is W M W^T.
        H = jax.vmap(lambda row: system.B @ linear(row), out_axes=1)(system.B)
        unused = jnp.where(system.kept, 0.0, jnp.max(jnp.diag(H)))
        H = jnp.where(ok, H + jnp.diag(unused), jnp.eye(len(H), dtype=H.dtype))
        solve, regular = factor(H)
        return solve(system.B @ rhs * jnp.where(regular, 1.0, jnp.nan)) @ system.B

    return jax.lax.custom_root(residual, nu, lambda _, start: start, tangent)
