"""check(): is a pair (g, h) regular, commuting and contracting? Measured at sampled weights, reported with numbers."""

from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..checks import Number, as_count, as_scalar, is_concrete, refuted
from ..problem import AbstractRegularizer, AbstractReparameterization
from ..problem.reparam import Weights
from .commutators import spectral_commutator
from .fields import Fields, brackets, covectors, hessian_error, rank, rank_is_exact, wronskian
from .points import as_finite_weights, require_pair

if TYPE_CHECKING:
    from rich.table import Table


class VERDICT(eqx.Enumeration):
    """The conclusion of `check` from the brackets; printing one shows what follows from it.

    - `commuting`: all fields commute, so R_a exists where g is regular.
    - `g_only`: the fields of g commute, but not with h, so there is an R for alpha = 0 only.
    - `neither`: the fields of g do not commute, so there is no R.
    """

    commuting = "commuting: Theorem 3.6 applies where g is regular, R_a exists"
    g_only = "g commutes but h does not: an R without time dependence only, for alpha = 0"
    neither = "neither: the coordinates of g do not commute, there is no R, only the primal flow"


class Brackets(eqx.Module):
    """Largest `|[X, Y]| / (|DX| |Y| + |DY| |X|)`, in [0, 1], among the fields grad g_i (`g_g`) and with grad h (`g_h`).

    `pairs` counts the pairs among the grad g_i; `complete` says that they are all of them, or settle all of them,
    rather than random combinations, whose brackets also vanish only if all do, but dilute a single small offender.
    """

    g_g: Float[Array, ""]
    g_h: Float[Array, ""]
    pairs: int = eqx.field(static=True)  # static: a count fixed by shapes
    complete: bool = eqx.field(static=True)  # static: fixed by shapes


class Report(eqx.Module):
    """The measurements of `check`; `str(report)` is plain text, `report.table()` a rich table.

    `rank` is the smallest and `condition_number` the largest met; for a Jacobian too large for a dense decomposition
    (`rank_exact` False) they are bounds, from above and from below. `hessian_error` compares the Jacobian of
    (mu, a) -> (x, h), taken through the flow, with J J^T (J of (g, h)): equal, so symmetric and positive, exactly where
    the potential exists, and then to about 1e-8, the error of the integration. `separable` and
    `wronskian` (largest `|g' h'' - g'' h'| / (|g' h''| + |g'' h'|)`, which has a meaning where h is separable) are
    given for differences, `commutators` for quadratic forms. `points` are the sampled weights, on a leading axis.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Theorems 3.6, 3.10, 3.15, Corollary 3.12.
    """

    verdict: VERDICT
    brackets: Brackets
    commutators: Brackets | None
    wronskian: Float[Array, ""] | None
    separable: Bool[Array, ""] | None
    rank: Int[Array, ""]
    condition_number: Float[Array, ""]
    hessian_error: Float[Array, ""]
    contracting: Bool[Array, ""]
    lowest_h: Float[Array, ""]
    points: Weights
    tolerance: Float[Array, ""]
    size: int = eqx.field(static=True)  # static: the number of coordinates of x
    rank_exact: bool = eqx.field(static=True)  # static: fixed by shapes
    notes: tuple[str, ...] = eqx.field(static=True)  # static: text, fixed by the classes of g and h

    @property
    def regular(self) -> Bool[Array, ""]:
        """True if J has full rank d at every sampled point."""
        return self.rank == self.size

    @property
    def theorem_3_6(self) -> Bool[Array, ""]:
        """Regular and commuting: R_a exists."""
        return self.regular & (self.verdict == VERDICT.commuting)

    @property
    def theorem_3_10(self) -> Bool[Array, ""]:
        """Theorem 3.6 and contracting: the flow converges, provided that alpha is switched off at a finite time."""
        return self.theorem_3_6 & self.contracting

    def rows(self) -> list[tuple[str, str]]:
        """The measurements as (name, text) pairs in reading order."""
        at_most, at_least = ("", "") if self.rank_exact else ("at most ", "at least ")
        regular = "regular" if self.regular else "NOT regular: Theorem 3.6 needs full rank"
        count = jax.tree.leaves(self.points)[0].shape[0]
        rows = [
            ("verdict", str(self.verdict).split("<", 1)[1][:-1]),
            ("rank of J", f"{at_most}{int(self.rank)} of {self.size}, {regular}"),
            ("condition number of J", f"{at_least}{float(self.condition_number):.3g}"),
            *_bracket_rows("bracket", self.brackets),
        ]
        if self.commutators is not None:
            rows += _bracket_rows("commutator", self.commutators)
        if self.wronskian is not None:
            value = f"{float(self.wronskian):.2e}" if self.separable else "not defined, h is not separable"
            rows.append(("Wronskian of g', h'", value))
        return [
            *rows,
            ("Hess Q against J J^T", f"{float(self.hessian_error):.2e}"),
            ("contracting", f"{_yes(self.contracting)}, smallest h met {float(self.lowest_h):.3g}"),
            ("Theorem 3.10", f"{_yes(self.theorem_3_10)}; it asks for alpha = 0 after a finite time as well"),
            ("sampled", f"{count} points, tolerance {float(self.tolerance):.2e}"),
            *(("note", note) for note in self.notes),
        ]

    def table(self) -> "Table":
        """The report as a `rich.table.Table`."""
        from rich.table import Table  # here, so that importing mirrorjax does not load rich

        table = Table("condition", "measured")
        for name, text in self.rows():
            table.add_row(name, text)
        return table

    def __str__(self) -> str:
        return "\n".join(f"{name:<22} {text}" for name, text in self.rows())


def check(
    g: AbstractReparameterization,
    h: AbstractRegularizer,
    w: Weights,
    *,
    radius: Number = 0.2,
    points: int = 8,
    tolerance: Number | None = None,
    key: PRNGKeyArray | None = None,
) -> Report:
    """Measures the theory's conditions around w: `[grad g_i, grad g_j] = 0 = [grad g_i, grad h]`, J of full rank.

    `[X, Y] = DX.Y - DY.X`. The points are w and `points - 1` others, whose entries are those of w times
    exp(radius normal) and so keep their sign; entries that are 0 are moved by radius times the root mean square of w.

    **Arguments:** `g`, `h`: the pair; `w`: weights of g; `radius`: relative spread of the points; `points`: their
    number; `tolerance`: below which a normalised bracket counts as 0, by default `100 eps sqrt(D)`: the brackets are
    formed without an inverse, from sums over the D weights whose rounding adds up like sqrt(D), and 100 leaves room for
    the few dozen roundings of each term (raise it for matrices known to fewer digits than eps); `key`: seed of the
    points.
    **Returns:** `Report`. **Raises:** `ValueError` for a g or h that is not an object of its kind, weights that g or h
    refuses, a radius or tolerance that is not between 0 and 1, points that are no positive count, a key that is none,
    or a point at which g or h is not finite.

    Source: the paper's Theorems 3.6 and 3.10.
    """
    require_pair(g, h)
    w = as_finite_weights(w, "w")
    g.check(w)
    h.check(w)
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
    report = _check(g, h, w, radius.astype(flat.dtype), points, tolerance.astype(flat.dtype), key)
    numbers = (report.brackets, report.hessian_error, report.lowest_h)
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
def _check(g, h, w, radius, points, tolerance, key) -> Report:
    flat, unravel = ravel_pytree(w)
    fields = Fields(g, h, unravel, jax.eval_shape(g, w).shape)
    sample_key, combination_key, probe_key = jax.random.split(key, 3)
    sampled = _sample(flat, h.smooth, radius, points, sample_key)
    combinations, complete = covectors(fields, flat.dtype, combination_key)

    def measure(point: Float[Array, " D"]) -> dict[str, Array]:
        g_g, g_h = brackets(fields, combinations, point, probe_key)
        full, condition = rank(fields, point, probe_key)
        error = hessian_error(fields, point, radius, probe_key)
        general = {"g_g": g_g, "g_h": g_h, "rank": full, "condition": condition, "hessian": error}
        return general | (wronskian(fields, point, tolerance, probe_key) if g.is_difference else {})

    measured = jax.lax.map(measure, sampled)
    worst = jax.tree.map(jnp.max, measured)
    pairs = combinations.shape[0] * (combinations.shape[0] - 1) // 2
    at_points = Brackets(worst["g_g"], worst["g_h"], pairs, complete)
    matrices = _commutators(g, h, combinations, complete)
    lowest, contracting = _contracting(fields, sampled)
    return Report(
        verdict=_verdict(at_points, matrices, tolerance, h.smooth),
        brackets=at_points,
        commutators=matrices,
        wronskian=worst["wronskian"] if g.is_difference else None,
        separable=jnp.all(measured["separable"]) if g.is_difference else None,
        rank=jnp.min(measured["rank"]),
        condition_number=worst["condition"],
        hessian_error=worst["hessian"],
        contracting=contracting,
        lowest_h=lowest,
        points=jax.vmap(unravel)(sampled),
        tolerance=tolerance,
        size=fields.size,
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


def _contracting(fields: Fields, sampled: Float[Array, "points D"]) -> tuple[Float[Array, ""], Bool[Array, ""]]:
    """The smallest h met, and True if h >= 0: everywhere where h knows, otherwise at the sampled points."""
    lowest = jnp.min(jax.lax.map(fields.penalty, sampled))
    known = fields.h.is_nonnegative()
    return lowest, lowest >= 0 if known is None else known


def _verdict(brackets: Brackets, commutators: Brackets | None, tolerance, smooth: bool) -> VERDICT:
    kinds = [brackets] if commutators is None else [brackets, commutators]
    g_commutes = jnp.all(jnp.stack([kind.g_g <= tolerance for kind in kinds]))
    h_commutes = jnp.all(jnp.stack([kind.g_h <= tolerance for kind in kinds])) & smooth
    with_g = VERDICT.where(h_commutes, VERDICT.commuting, VERDICT.g_only)
    return VERDICT.where(g_commutes, with_g, VERDICT.neither)


def _bracket_rows(name: str, brackets: Brackets) -> list[tuple[str, str]]:
    kind = "settling all" if brackets.complete else "random combinations, not all pairs"
    among = f"{float(brackets.g_g):.2e} ({brackets.pairs} {'pair' if brackets.pairs == 1 else 'pairs'}, {kind})"
    return [(f"{name} g with g", among), (f"{name} g with h", f"{float(brackets.g_h):.2e}")]


def _yes(value: Bool[Array, ""]) -> str:
    return "yes" if value else "no"
