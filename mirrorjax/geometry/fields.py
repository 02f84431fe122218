"""The gradient fields of g and h around a point: brackets, rank of the Jacobian, the potential's Hessian.

The numbers behind `check`. All of them are Jacobian- and Hessian-vector products, so a million weights cost a few dozen
gradients; only the rank of a Jacobian of at most a million entries is taken densely.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..problem import AbstractRegularizer, AbstractReparameterization
from .commutators import ratio

_ALL_PAIRS = 16  # up to so many coordinates every pair is tested (120 pairs), above random combinations of all
_COMBINATIONS = 8  # the combinations then, 28 pairs
_DENSE_ENTRIES = 2**20  # the SVD of a 1024 x 1024 Jacobian takes about half a second


class Fields(eqx.Module):
    """The fields `grad (<p, g> + p_last h)` on flat weights (D,), p in R^{d+1}, and lengths of vectors there.

    Coordinates of elementwise families do not mix: each is measured against its own scale, in its own group.
    """

    g: AbstractReparameterization
    h: AbstractRegularizer
    unravel: Callable
    shape: tuple[int, ...] = eqx.field(static=True)  # static: the shape of x

    @property
    def size(self) -> int:
        """The number d of coordinates of x."""
        return math.prod(self.shape)

    @property
    def groups(self) -> int:
        """The number of groups in which lengths are taken: one a coordinate where coordinates do not mix."""
        return self.size if self.g.elementwise else 1

    @property
    def separate(self) -> bool:
        """True if neither g nor h mixes coordinates, so that each is a pair of its own."""
        return self.g.elementwise and self.h.elementwise

    def x(self, flat: Float[Array, " D"]) -> Float[Array, " d"]:
        return self.g(self.unravel(flat)).reshape(-1)

    def penalty(self, flat: Float[Array, " D"]) -> Float[Array, ""]:
        return self.h(self.unravel(flat))

    def both(self, flat: Float[Array, " D"]) -> Float[Array, " n"]:
        """`(g, h)` as one map into R^{d+1}."""
        return jnp.concatenate([self.x(flat), self.penalty(flat)[None]])

    def grad_g(self, a: Float[Array, " d"], flat: Float[Array, " D"]) -> Float[Array, " D"]:
        """`grad <a, g>(w) = J^T a`."""
        return ravel_pytree(self.g.pull(self.unravel(flat), a.reshape(self.shape)))[0]

    def pulled(self, a: Float[Array, "p d"], flat: Float[Array, " D"]) -> Float[Array, "p D"]:
        """`J^T a` for each row a."""
        return jax.vmap(lambda row: self.grad_g(row, flat))(a)

    def grad(self, p: Float[Array, " n"], flat: Float[Array, " D"]) -> Float[Array, " D"]:
        """`grad (<p, g> + p_last h)(w)`."""
        return jax.vjp(self.both, flat)[1](p)[0]

    def grad_h(self, flat: Float[Array, " D"]) -> Float[Array, " D"]:
        return jax.grad(self.penalty)(flat)

    def norm(self, v: Float[Array, " D"]) -> Float[Array, " groups"]:
        """Euclidean length in each group, without underflow of the squares."""
        grouped = v.reshape(-1, self.groups)
        largest = jnp.max(jnp.abs(grouped), axis=0)
        return largest * jnp.linalg.norm(ratio(grouped, largest[None]), axis=0)

    def unit(self, v: Float[Array, " D"]) -> Float[Array, " D"]:
        return ratio(v.reshape(-1, self.groups), self.norm(v)[None]).reshape(-1)


def covectors(fields: Fields, dtype: Any, key: PRNGKeyArray) -> tuple[Float[Array, "p d"], bool]:
    """Combinations a of which grad <a, g> is tested, and True if they settle all pairs."""
    if not fields.separate and fields.size <= _ALL_PAIRS:
        return jnp.eye(fields.size, dtype=dtype), True
    if fields.g.elementwise:
        # Coordinates share no weights, so one combination of all of them shows each one's own bracket.
        return jax.random.normal(key, (2, fields.size), dtype), True
    return jax.random.normal(key, (_COMBINATIONS, fields.size), dtype), False


def brackets(
    fields: Fields, combinations: Float[Array, "p d"], point: Float[Array, " D"], key: PRNGKeyArray
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, "p D"], Float[Array, "p groups"]]:
    """The brackets at one point: the largest of two combinations of g and of one with h, in [0, 1], and those with h.

    The last two results are `[grad h, grad <a, g>]` for each combination a, and its scale in each group.
    """
    count = combinations.shape[0]
    last = jnp.zeros((count + 1, 1), point.dtype).at[-1].set(1.0)
    duals = jnp.concatenate([jnp.pad(combinations, ((0, 1), (0, 0))), last], axis=1)
    sizes = jax.lax.map(lambda p: _operator_size(fields, lambda w: fields.grad(p, w), point, key), duals)

    # The vectors are kept for the pairs with h only: those of all pairs would not fit for millions of weights.
    def one(kept: tuple[Array, Array], pair: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
        first, second = pair
        Y, X = ((lambda w, i=i: fields.grad(duals[i], w), sizes[i]) for i in pair)
        bracket, scale = _bracket(fields, X, Y, point)
        with_h = second == count
        kept = tuple(
            jax.lax.dynamic_update_index_in_dim(rows, jnp.where(with_h, new, rows[first]), first, 0)
            for rows, new in zip(kept, (bracket, scale), strict=True)
        )
        return kept, jnp.max(ratio(fields.norm(bracket), scale))

    first, second = jnp.triu_indices(count + 1, 1)
    empty = jnp.zeros((count, point.size), point.dtype), jnp.zeros((count, fields.groups), point.dtype)
    (vectors, scales), ratios = jax.lax.scan(one, empty, (first, second))
    with_h = second == count
    return (
        jnp.max(jnp.where(with_h, 0.0, ratios)),
        jnp.max(jnp.where(with_h, ratios, 0.0)),
        vectors,
        scales,
    )


# A vector field, and the size of its derivative in each group.
_Sized = tuple[Callable, Float[Array, " groups"]]


def _bracket(
    fields: Fields, first: _Sized, second: _Sized, point: Float[Array, " D"]
) -> tuple[Float[Array, " D"], Float[Array, " groups"]]:
    """`[X, Y] = DX.Y - DY.X`, and `|DX| |Y| + |DY| |X|` in each group, which its length cannot exceed."""
    (X, size_X), (Y, size_Y) = first, second
    x, y = X(point), Y(point)
    DX_y, DY_x = jax.jvp(X, (point,), (y,))[1], jax.jvp(Y, (point,), (x,))[1]
    scale = size_X * fields.norm(y) + size_Y * fields.norm(x)
    # The operator sizes are estimates from below, and a coupled h may carry other groups in: never above 1.
    return DX_y - DY_x, jnp.maximum(scale, fields.norm(DX_y) + fields.norm(DY_x))


def _operator_size(
    fields: Fields, field: Callable, point: Float[Array, " D"], key: PRNGKeyArray
) -> Float[Array, " groups"]:
    """The spectral norm of the symmetric D field, estimated by power iteration; it only sets a scale."""

    def step(v: Float[Array, " D"], _: None) -> tuple[Float[Array, " D"], Float[Array, " groups"]]:
        image = jax.jvp(field, (point,), (fields.unit(v),))[1]
        return image, fields.norm(image)

    _, sizes = jax.lax.scan(step, jax.random.normal(key, point.shape, point.dtype), length=5)
    return jnp.max(sizes, axis=0)


def rank_is_exact(fields: Fields, weights: int) -> bool:
    """True if the rank of J is taken from all its singular values."""
    small = min(fields.size, weights) <= 25  # the iteration for the extreme ones needs more
    return fields.g.elementwise or small or is_dense(fields, weights)


def is_dense(fields: Fields, weights: int) -> bool:
    """True if J is small enough to be held and decomposed."""
    return fields.size * weights <= _DENSE_ENTRIES


def rank(fields: Fields, point: Float[Array, " D"], key: PRNGKeyArray) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """Rank and condition number of J at one point; bounds, from above and below, unless `rank_is_exact`."""
    eps, side = jnp.finfo(point.dtype).eps, min(fields.size, point.size)
    if fields.g.elementwise:
        # J J^T is diagonal: any entry that is not 0 counts, however small beside the others.
        values = fields.norm(fields.grad_g(jnp.ones(fields.size, point.dtype), point))
        full = jnp.sum(values > 0)
    elif rank_is_exact(fields, point.size):
        jacobian = jax.jacrev if fields.size <= point.size else jax.jacfwd
        values = jnp.linalg.svd(jacobian(fields.x)(point), compute_uv=False)
        full = jnp.sum(values > max(fields.size, point.size) * eps * values[0])
    else:
        values = _extreme_singular_values(fields, point, side, key)
        # They are roots of eigenvalues of J J^T, which carry an error of about side eps times the largest.
        full = side - jnp.sum(values <= jnp.sqrt(side * eps) * values[0])
    regular = full == fields.size
    condition = jnp.max(values) / jnp.where(regular, jnp.min(values), 1.0)
    return full, jnp.where(regular, condition, jnp.inf)


def _extreme_singular_values(
    fields: Fields, point: Float[Array, " D"], side: int, key: PRNGKeyArray
) -> Float[Array, "6"]:
    """The largest singular value of a large J, and estimates from above of its five smallest."""

    def along_x(v: Float[Array, " d"]) -> Float[Array, " d"]:
        return fields.g.push(fields.unravel(point), v.reshape(fields.shape)).reshape(-1)

    def along_w(v: Float[Array, " D"]) -> Float[Array, " D"]:
        return fields.grad_g(jax.jvp(fields.x, (point,), (v,))[1], point)

    gram = jax.vmap(along_x if side == fields.size else along_w, in_axes=1, out_axes=1)
    start = jax.random.normal(key, (side, 5), point.dtype)
    from jax.experimental.sparse.linalg import lobpcg_standard  # imports a part of SciPy, for 0.3 s

    top = jnp.max(lobpcg_standard(gram, start, m=50)[0])
    bottom = top - lobpcg_standard(lambda v: top * v - gram(v), start, m=100)[0]
    return jnp.sqrt(jnp.maximum(jnp.concatenate([top[None], bottom]), 0.0))


def wronskian(
    fields: Fields, point: Float[Array, " D"], tolerance: Float[Array, ""], key: PRNGKeyArray
) -> dict[str, Array]:
    """`g' h'' - g'' h'` in each variable of a difference, relative to its terms, and True if Hess h is diagonal."""
    total = jnp.ones(fields.size, point.dtype)
    ones = jnp.ones_like(point)
    first, second = jax.jvp(lambda flat: fields.grad_g(total, flat), (point,), (ones,))
    first_h, second_h = jax.jvp(fields.grad_h, (point,), (ones,))
    terms = first * second_h, second * first_h
    # Diagonal matrices are those that commute with changes of sign.
    signs, probe = (
        jax.random.rademacher(key, point.shape, point.dtype),
        jax.random.normal(key, point.shape, point.dtype),
    )
    image, flipped = (jax.jvp(fields.grad_h, (point,), (v,))[1] for v in (probe, signs * probe))
    mixing = ratio(jnp.linalg.norm(flipped - signs * image), jnp.linalg.norm(flipped) + jnp.linalg.norm(image))
    relative = ratio(jnp.abs(terms[0] - terms[1]), jnp.abs(terms[0]) + jnp.abs(terms[1]))
    return {"wronskian": jnp.max(relative), "separable": mixing <= tolerance}


def hessian_error(
    fields: Fields, point: Float[Array, " D"], radius: Float[Array, ""], key: PRNGKeyArray
) -> Float[Array, ""]:
    """`|S b - G G^T b| / |G G^T b|`, G the Jacobian of (g, h) where the joint flow `dw/ds = grad(p)` ends at s = 1.

    S = d(x, h)/dp by differentiating through the flow, b random. S = G G^T is the Hessian of the potential in p =
    (mu, a), symmetric and positive, exactly where all fields commute. Each coordinate moves by at most `radius` of the
    smallest of its weights that are not 0, and by a quarter at most: classical Runge-Kutta is then right to about 1e-8.
    """

    def reach(velocity: Float[Array, " D"]) -> Float[Array, " groups"]:
        moving = (point != 0) & (velocity != 0)
        times = jnp.where(moving, jnp.abs(point) / jnp.where(moving, jnp.abs(velocity), 1.0), jnp.inf)
        nearest = jnp.min(times.reshape(-1, fields.groups), axis=0)
        return jnp.minimum(radius, 0.25) * jnp.where(jnp.isfinite(nearest), nearest, 1.0)

    mu, b = jax.random.normal(key, (2, fields.size + 1), point.dtype)
    mu = mu[:-1] * reach(fields.grad_g(mu[:-1], point)) / 2
    a = -jnp.min(reach(fields.grad_h(point))) / 2

    def end(p: Float[Array, " n"]) -> Float[Array, " D"]:
        return _runge_kutta(lambda w: fields.grad(p, w), point, steps=16)

    flat, along = jax.jvp(end, (jnp.concatenate([mu, a[None]]),), (b,))

    def push(v: Float[Array, " D"]) -> Float[Array, " n"]:
        return jax.jvp(fields.both, (flat,), (v,))[1]

    expected = push(fields.grad(b, flat))
    return ratio(jnp.linalg.norm(push(along) - expected), jnp.linalg.norm(expected))


def _runge_kutta(velocity: Callable, start: Float[Array, " D"], steps: int) -> Float[Array, " D"]:
    """The end of `dw/ds = velocity(w)` over s in [0, 1] by the classical fourth-order method."""

    fractions = jnp.array([0.0, 0.5, 0.5, 1.0], start.dtype) / steps
    weights = jnp.array([1.0, 2.0, 2.0, 1.0], start.dtype) / (6 * steps)

    # The stages are a loop as well: four copies of the field would make compiling dominate the whole check.
    def step(w: Float[Array, " D"], _: None) -> tuple[Float[Array, " D"], None]:
        def stage(carry: tuple[Array, Array], coefficients: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
            previous, total = carry
            slope = velocity(w + coefficients[0] * previous)
            return (slope, total + coefficients[1] * slope), None

        zeros = jnp.zeros_like(w)
        change = jax.lax.scan(stage, (zeros, zeros), (fractions, weights))[0][1]
        return w + change, None

    return jax.lax.scan(step, start, length=steps)[0]
