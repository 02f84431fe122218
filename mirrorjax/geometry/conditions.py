"""check(): is a pair (g, h) regular, commuting and contracting? Measured at sampled weights, reported with numbers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ..checks import Number, as_count, as_scalar, is_concrete, refuted
from ..problem import AbstractRegularizer, AbstractReparameterization
from ..problem.reparam import Weights
from .cells import integrate
from .commutators import spectral_commutator
from .fields import Fields, brackets, covectors, hessian_error, rank, rank_is_exact, wronskian
from .normaliser import Decayed, fit, misfit, pattern_of, spread
from .points import as_finite_weights, as_strength, require_pair
from .report import VERDICT, Brackets, Leak, Report


def check(
    g: AbstractReparameterization,
    h: AbstractRegularizer,
    w: Weights,
    *,
    a: Number = 0.0,
    radius: Number = 0.2,
    points: int = 8,
    tolerance: Number | None = None,
    key: PRNGKeyArray | None = None,
) -> Report:
    """Measures the theory's conditions around w: `[grad g_i, grad g_j] = 0 = [grad g_i, grad h]`, J of full rank.

    `[X, Y] = DX.Y - DY.X`. The points are w and `points - 1` others, whose entries are those of w times
    exp(radius normal) and so keep their sign; entries that are 0 are moved by radius times the root mean square of w.

    Where the pair does not commute it also fits Lambda in `[grad h, grad g_i] = sum_j Lambda_ij grad g_j`: if one
    constant Lambda fits at all points, h normalises g.

    **Arguments:** `g`, `h`: the pair; `w`: weights of g; `a`: the accumulated regularization down to which h >= 0 is
    asked for, along the flow of h from the points (by default at the points alone); `radius`: relative spread of the
    points; `points`: their number; `tolerance`: below which a normalised bracket counts as 0, by default
    `100 eps sqrt(D)`: the brackets are formed without an inverse, from sums over the D weights whose rounding adds up
    like sqrt(D), and 100 leaves room for the few dozen roundings of each term (raise it for matrices known to fewer
    digits than eps); `key`: seed of the points.
    **Returns:** `Report`. **Raises:** `ValueError` for a g or h that is not an object of its kind, weights that g or h
    refuses, an a that is not finite and <= 0, a radius or tolerance that is not between 0 and 1, points that are no
    positive count, a key that is none, or a point at which g or h is not finite.

    Source: the paper's Theorems 3.6 and 3.10; that a normalising pair has an R_a is not in it.
    """
    require_pair(g, h)
    w = as_finite_weights(w, "w")
    g.check(w)
    h.check(w)
    a = as_strength(a)
    points = as_count(points, "points")
    flat = ravel_pytree(w)[0]
    radius = as_scalar(radius, "radius")
    if refuted(lambda: (radius > 0) & (radius < 1), radius):
        raise ValueError(f"radius must lie between 0 and 1, it is relative to the weights; got {radius}")
    tolerance = as_scalar(
        100 * float(jnp.finfo(flat.dtype).eps) * flat.size**0.5 if tolerance is None else tolerance, "tolerance"
    )
    # A normalised bracket is at most 1: a larger tolerance would pass any pair, and NaN none.
    sane = (tolerance > 0) & (tolerance < 1)
    if refuted(lambda: (tolerance > 0) & (tolerance < 1), tolerance):
        raise ValueError(
            f"tolerance must be positive and finite, and below 1, the largest bracket that there is; got {tolerance}"
        )
    key = _as_key(key)
    strength = None if is_concrete(a) and float(a) == 0 else jnp.asarray(a, flat.dtype)
    report = _check(g, h, w, strength, radius.astype(flat.dtype), points, tolerance.astype(flat.dtype), key)
    numbers = (report.brackets, report.hessian_error)
    finite = jnp.all(jnp.stack([jnp.isfinite(number) for number in jax.tree.leaves(numbers)]))
    message = (
        "g or h, or a derivative of them, is not finite at w or at a point sampled around it; use weights "
        "inside the domain, or a smaller radius"
    )
    if is_concrete(finite) and not bool(finite):
        raise ValueError(f"{message} than {radius}")
    report = eqx.error_if(report, ~sane, "tolerance must be positive, finite and below 1")
    return eqx.error_if(report, ~finite, message)


def _as_key(key: PRNGKeyArray | None) -> PRNGKeyArray:
    """The key, by default that of seed 0. Raises `ValueError` for anything not one random key."""
    if key is None:
        return jax.random.key(0)
    if isinstance(key, jax.Array):
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0
        if typed or (key.dtype == jnp.uint32 and key.shape == (2,)):
            return key
    raise ValueError(f"key must be one random key, such as jax.random.key(0), got {key!r}")


@eqx.filter_jit
def _check(g, h, w, a, radius, points, tolerance, key) -> Report:
    flat, unravel = ravel_pytree(w)
    fields = Fields(g, h, unravel, jax.eval_shape(g, w).shape)
    sample_key, combination_key, probe_key = jax.random.split(key, 3)
    sampled = _sample(flat, h.smooth, radius, points, sample_key)
    combinations, complete = covectors(fields, flat.dtype, combination_key)

    pattern = pattern_of(fields, combinations, flat.size)

    def measure(first: tuple, point: Float[Array, " D"]) -> tuple[tuple, dict[str, Array]]:
        g_g, g_h, *vectors = brackets(fields, combinations, point, probe_key)
        found = Decayed(combinations, *vectors)
        leak = fit(fields, pattern, found, point)
        reference = jnp.where(first[1], leak, first[0])
        full, condition = rank(fields, point, probe_key)
        error = hessian_error(fields, point, radius, probe_key)
        general = {"g_g": g_g, "g_h": g_h, "rank": full, "condition": condition, "hessian": error}
        general |= {
            "residual": misfit(fields, leak, found, point),
            "misfit": misfit(fields, reference, found, point),
            "spread": spread(leak, reference),
        }
        general |= wronskian(fields, point, tolerance, probe_key) if g.is_difference else {}
        return (reference, jnp.array(False)), general

    # From the last point on: entries of w that are 0 are not 0 there, and Lambda shows in every direction.
    blank = jnp.zeros({"entries": (fields.size,) * 2, "diagonal": (fields.size,), "multiple": ()}[pattern], flat.dtype)
    (fitted, _), measured = jax.lax.scan(measure, (blank, jnp.array(True)), sampled, reverse=True)
    worst = jax.tree.map(jnp.max, measured)
    pairs = combinations.shape[0] * (combinations.shape[0] - 1) // 2
    at_points = Brackets(worst["g_g"], worst["g_h"], pairs, complete)
    matrices = _commutators(g, h, combinations, complete)
    lowest, contracting = _contracting(fields, sampled, a)
    leak = Leak(fitted, worst["residual"], worst["misfit"], worst["spread"])
    return Report(
        verdict=_verdict(at_points, matrices, leak, tolerance, h.smooth),
        brackets=at_points,
        commutators=matrices,
        wronskian=worst["wronskian"] if g.is_difference else None,
        separable=jnp.all(measured["separable"]) if g.is_difference else None,
        rank=jnp.min(measured["rank"]),
        condition_number=worst["condition"],
        hessian_error=worst["hessian"],
        contracting=contracting,
        lowest_h=lowest,
        a=jnp.zeros((), flat.dtype) if a is None else a,
        measured_leak=leak,
        points=jax.vmap(unravel)(sampled),
        tolerance=tolerance,
        shape=fields.shape,
        bregman=g.bounded_sublevels,
        flows_end_at_infinity=g.smooth_everywhere,
        rank_exact=rank_is_exact(fields, flat.size),
        notes=(*h.notes(g), *g.notes()),
    )


def _sample(
    flat: Float[Array, " D"], smooth: bool, radius: Float[Array, ""], points: int, key: PRNGKeyArray
) -> Float[Array, "points D"]:
    noise = radius * jax.random.normal(key, (points, flat.size), flat.dtype)
    size = jnp.sqrt(jnp.mean(flat**2))
    # The first point is w itself; but a regularizer without derivative at 0 is sampled away from 0.
    still = jnp.zeros_like(noise).at[1:].set(1.0)
    from_zero = jnp.where(size > 0, size, 1.0) * noise * (still if smooth else jnp.ones_like(still))
    return jnp.where(jnp.broadcast_to(flat == 0, noise.shape), from_zero, flat[None] * jnp.exp(noise * still))


def _commutators(
    g: AbstractReparameterization, h: AbstractRegularizer, combinations: Float[Array, "p d"], complete: bool
) -> Brackets | None:
    """Commutators of the matrices themselves, which need no point; `None` unless g and h are quadratic forms."""
    if g.quadratic_forms is None:
        return None
    G0 = h.quadratic_form(g.quadratic_forms.shape[-1], g.quadratic_forms.dtype)
    if G0 is None:
        return None
    matrices = jnp.einsum("pd,dij->pij", combinations, g.quadratic_forms)
    first, second = np.triu_indices(combinations.shape[0], 1)
    with_h = jnp.max(jax.lax.map(lambda G: spectral_commutator(G, G0), matrices))
    among = jnp.zeros_like(with_h)
    if first.size:
        among = jnp.max(jax.lax.map(lambda pair: spectral_commutator(*pair), (matrices[first], matrices[second])))
    return Brackets(among, with_h, first.size, complete)


def _contracting(
    fields: Fields, sampled: Float[Array, "points D"], a: Float[Array, ""] | None
) -> tuple[Float[Array, ""], Bool[Array, ""]]:
    """The smallest h met, and True if h >= 0: everywhere where h knows, otherwise on the flow of h down to a."""
    reached = jnp.array(True)
    if a is not None:
        sampled, reached = jax.lax.map(lambda w: _decayed(fields, w, a), sampled)
    # On its own flow h falls all the way, so that it is smallest at the end.
    lowest = jnp.min(jnp.where(reached, jax.lax.map(fields.penalty, sampled), -jnp.inf))
    known = fields.h.is_nonnegative()
    return lowest, lowest >= 0 if known is None else known & jnp.all(reached)


def _decayed(fields: Fields, w: Float[Array, " D"], a: Float[Array, ""]) -> tuple[Float[Array, " D"], Bool[Array, ""]]:
    """`psi(0, a)` from w, and True if the flow of h reached it."""
    rtol = jnp.sqrt(jnp.finfo(w.dtype).eps).astype(w.dtype)

    def field(s: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        return a * fields.grad_h(state[0]), jnp.zeros_like(a)

    (w, _), end = integrate(fields.g, field, (w, jnp.zeros_like(a)), jnp.linalg.norm(w), rtol)
    return w, end.arrived


def _verdict(brackets: Brackets, commutators: Brackets | None, leak: Leak, tolerance, smooth: bool) -> VERDICT:
    kinds = [brackets] if commutators is None else [brackets, commutators]
    g_commutes = jnp.all(jnp.stack([kind.g_g <= tolerance for kind in kinds]))
    h_commutes = jnp.all(jnp.stack([kind.g_h <= tolerance for kind in kinds])) & smooth
    normalises = (leak.residual <= tolerance) & (leak.misfit <= tolerance) & smooth
    without = VERDICT.where(normalises, VERDICT.normalising, VERDICT.g_only)
    with_g = VERDICT.where(h_commutes, VERDICT.commuting, without)
    return VERDICT.where(g_commutes, with_g, VERDICT.neither)
