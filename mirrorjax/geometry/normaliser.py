"""Lambda in `[grad h, grad g_i] = sum_j Lambda_ij grad g_j`, measured at a point by least squares.

Where one constant Lambda fits at every point, h normalises g: decay carries the flow of g into itself, R_a exists, and
its dual variable leaks. The fit has all entries of Lambda, its diagonal, or one multiple of I, as far as the brackets
that were computed determine them.
"""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..checks import is_concrete
from .commutators import ratio
from .fields import Fields, is_dense
from .newton import solve_spd

Pattern = Literal["entries", "diagonal", "multiple"]
Leak = Float[Array, "..."]


class Decayed(eqx.Module):
    """`[grad h, grad <b, g>]` at one point for each combination b, and the sizes that each is measured against."""

    combinations: Float[Array, "p d"]
    vectors: Float[Array, "p D"]
    scales: Float[Array, "p groups"]


def pattern_of(fields: Fields, combinations: Float[Array, "p d"], weights: int) -> Pattern:
    """The entries of Lambda that the brackets of these combinations determine."""
    if combinations.shape[0] == fields.size and not fields.separate:
        return "entries"
    return "diagonal" if fields.g.elementwise or is_dense(fields, weights) else "multiple"


def fit(fields: Fields, pattern: Pattern, found: Decayed, point: Float[Array, " D"]) -> Leak:
    """The Lambda of the pattern that fits the brackets at one point best; 0 in directions where J vanishes."""
    if pattern == "multiple":
        return jnp.mean(_projections(found, fields.pulled(found.combinations, point)))
    if fields.g.elementwise and pattern == "diagonal":
        return _by_coordinate(fields, found, fields.pulled(found.combinations, point))
    J = fields.pulled(jnp.eye(fields.size, dtype=point.dtype), point)
    if pattern == "diagonal":
        b = found.combinations
        # Schur's product of two positive matrices is positive; several b make it as good as J J^T itself.
        leak = solve_spd((b.T @ b) * (J @ J.T), jnp.sum(b * (found.vectors @ J.T), axis=0))
        return jnp.where(jnp.all(jnp.isfinite(leak)), leak, 0.0)
    size = jnp.linalg.norm(J, axis=1)
    return ratio(jnp.linalg.lstsq(ratio(J, size[:, None]).T, found.vectors.T)[0].T, size[None])


def misfit(fields: Fields, leak: Leak, found: Decayed, point: Float[Array, " D"]) -> Float[Array, ""]:
    """The largest `|[grad h, grad <b, g>] - grad <Lambda^T b, g>|`, in [0, 1] like the brackets themselves."""
    b = found.combinations
    expected = fields.pulled(b @ leak if leak.ndim == 2 else b * leak.reshape(1, -1), point)

    def one(vector: Float[Array, " D"], expected: Float[Array, " D"], scale: Array) -> Float[Array, ""]:
        scale = jnp.maximum(scale, fields.norm(vector) + fields.norm(expected))
        return jnp.max(ratio(fields.norm(vector - expected), scale))

    return jnp.max(jax.vmap(one)(found.vectors, expected, found.scales))


def spread(leak: Leak, other: Leak) -> Float[Array, ""]:
    """The largest difference of two Lambdas, relative to their largest entry."""
    size = jnp.maximum(jnp.max(jnp.abs(leak)), jnp.max(jnp.abs(other)))
    return ratio(jnp.max(jnp.abs(leak - other)), size)


def shaped(leak: Leak, shape: tuple[int, ...]) -> Leak:
    """Lambda as `AbstractLegendre.leak` gives it: of shape () where it is a multiple of I, `shape` where diagonal.

    Entries that agree in half of their digits count as equal: they are measured. A traced Lambda keeps its entries.
    """
    if leak.ndim and is_concrete(leak):
        rounding = float(jnp.finfo(leak.dtype).eps) ** 0.5 * float(jnp.max(jnp.abs(leak)))
        if leak.ndim == 2 and bool(jnp.all(jnp.abs(leak - jnp.diag(jnp.diagonal(leak))) <= rounding)):
            leak = jnp.diagonal(leak)
        if leak.ndim == 1 and bool(jnp.max(leak) - jnp.min(leak) <= rounding):
            leak = jnp.mean(leak)
    return leak.reshape(shape * leak.ndim)


def _projections(found: Decayed, fields: Float[Array, "p D"]) -> Float[Array, " p"]:
    """`<B, X> / |X|^2` for each bracket B and field X."""
    length = jnp.linalg.norm(fields, axis=1, keepdims=True)
    return jnp.sum(ratio(found.vectors, length) * ratio(fields, length), axis=1)


def _by_coordinate(fields: Fields, found: Decayed, pulled: Float[Array, "p D"]) -> Float[Array, " d"]:
    """The same in each coordinate, whose weights no other coordinate shares."""

    def one(vector: Float[Array, " D"], field: Float[Array, " D"]) -> Float[Array, " d"]:
        rates = ratio(vector.reshape(-1, fields.groups), fields.norm(field)[None])
        return jnp.sum(rates * fields.unit(field).reshape(-1, fields.groups), axis=0)

    return jnp.mean(jax.vmap(one)(found.vectors, pulled), axis=0)
