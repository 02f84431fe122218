"""R_a of blocks that share no weights: the sum of the blocks' R_a, with a leak for each block."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...checks import is_concrete
from ...problem import AbstractRegularizer, Blocks, Blockwise, Compatible, WeightDecay
from ...problem.reparam import Weights
from ...results import first_failure
from ..base import AbstractLegendre
from ..points import Point, Recovered, Strength
from ..registry import closed_form, register_legendre


class BlocksLegendre(AbstractLegendre):
    """`R_a(x) = R_a,1(x_1) + .. + R_a,k(x_k)` for x = (x_1, .., x_k), the blocks flattened after each other.

    The leak has one entry a coordinate, `-2 c_i (p_i - 2)` in a block of degree p_i under weight decay of scale c_i. It
    is a scalar where the blocks are known to agree.

    **Arguments:** `parts`: the Legendre functions of the blocks; `one_rate`: True if their leaks are the same scalar.

    Source: none published; each block is a pair of its own.
    """

    parts: tuple[AbstractLegendre, ...]
    # static: it decides the shape of the leak
    one_rate: bool = eqx.field(static=True)
    # static: shapes
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)

    def __init__(self, parts: Sequence[AbstractLegendre], one_rate: bool):
        self.parts, self.one_rate = tuple(parts), one_rate
        self.shapes = tuple(part.point_like().shape for part in self.parts)

    separable = property(lambda self: all(part.separable for part in self.parts))
    leaks = property(lambda self: any(part.leaks for part in self.parts))

    @property
    def leak(self) -> Float[Array, "..."]:
        if self.one_rate:
            return self.parts[0].leak
        rates = [part.leak for part in self.parts]
        if all(rate.ndim <= len(shape) for rate, shape in zip(rates, self.shapes, strict=True)):
            return self._joined([jnp.broadcast_to(rate, s) for rate, s in zip(rates, self.shapes, strict=True)])
        like = self.point_like()
        return jax.vmap(self.leak_product)(jnp.eye(*like.shape, dtype=like.dtype))

    def leak_product(self, mu: Point) -> Point:
        return self._joined([part.leak_product(own) for part, own in zip(self.parts, self._shares(mu), strict=True)])

    def point_like(self) -> jax.ShapeDtypeStruct:
        like = self.parts[0].point_like()
        return jax.ShapeDtypeStruct((sum(_size(shape) for shape in self.shapes),), like.dtype)

    def weights_at(self, mu: Point, a: Strength) -> Weights:
        return tuple(part.weights_at(own, s) for part, s, own in self._split(a, mu))

    def potential_at(self, mu: Point, a: Strength) -> Float[Array, ""]:
        return _total(part.potential_at(own, s) for part, s, own in self._split(a, mu))

    def primal_at(self, mu: Point, a: Strength) -> Recovered:
        return self._recovered_of([part.primal_at(own, s) for part, s, own in self._split(a, mu)])

    def primal_from_at(self, mu: Point, step: Point, a: Strength) -> Recovered:
        return self._recovered_of(
            [part.primal_from_at(own, move, s) for part, s, own, move in self._split(a, mu, step)]
        )

    def dual_at(self, x: Point, a: Strength) -> Recovered:
        return self._recovered_of([part.dual_at(own, s) for part, s, own in self._split(a, x)])

    def metric_vector_at(self, mu: Point, v: Point, a: Strength) -> Point:
        return self._joined([part.metric_vector_at(own, vector, s) for part, s, own, vector in self._split(a, mu, v)])

    def dual_interval_at(self, a: Strength) -> tuple[Point, Point]:
        lower, upper = zip(*(part.dual_interval_at(s) for part, s in self._split(a)), strict=True)
        return self._joined(lower), self._joined(upper)

    def value_at(self, x: Point, mu: Point, a: Strength) -> Float[Array, ""]:
        return _total(part.value_at(own, dual, s) for part, s, own, dual in self._split(a, x, mu))

    def hessian_at(self, x: Point, mu: Point, a: Strength) -> Float[Array, "d d"]:
        found = [part.hessian_at(own, dual, s) for part, s, own, dual in self._split(a, x, mu)]
        square = [block.reshape(size, size) for block, size in zip(found, map(_size, self.shapes), strict=True)]
        return jax.scipy.linalg.block_diag(*square)

    def bregman_at(self, x: Point, z: Point, mu_x: Point, mu_z: Point, a: Strength) -> Float[Array, ""]:
        return _total(part.bregman_at(*points, s) for part, s, *points in self._split(a, x, z, mu_x, mu_z))

    def check_measurements(self, rows: Float[Array, "k d"]) -> None:
        for column in range(len(self.parts)):
            own = jax.vmap(lambda row, column=column: self._shares(row)[column])(rows)
            self.parts[column].check_measurements(own)

    def _split(self, a: Strength, *points: Point) -> list[tuple[Any, ...]]:
        """For each part: the part, its a, and its shares of the points. An array a is shared out as they are."""
        strengths = self._shares(a) if isinstance(a, jax.Array) and a.ndim else [a] * len(self.parts)
        return list(zip(self.parts, strengths, *map(self._shares, points), strict=True))

    def _shares(self, point: Point) -> list[Point]:
        """Splits a point into one array for each part, in the part's shape."""
        ends = itertools.accumulate((_size(shape) for shape in self.shapes), initial=0)
        shares = [point[start:end] for start, end in itertools.pairwise(ends)]
        return [share.reshape(shape) for share, shape in zip(shares, self.shapes, strict=True)]

    def _joined(self, shares: Sequence[Array]) -> Array:
        return jnp.concatenate([share.reshape(-1) for share in shares])

    def _recovered_of(self, found: list[Recovered]) -> Recovered:
        """One status a coordinate where all blocks have that, else one for all."""
        value = self._joined([part.value for part in found])
        if self.separable:
            results = [part.result for part in found]
            return Recovered(value, jax.tree.map(lambda *codes: self._joined(codes), *results))
        firsts = [first_failure(part.result) for part in found]
        return Recovered(value, first_failure(jax.tree.map(lambda *codes: jnp.stack(codes), *firsts)))


def _size(shape: tuple[int, ...]) -> int:
    return jax.ShapeDtypeStruct(shape, float).size


def _total(terms: Iterable[Array]) -> Float[Array, ""]:
    return jnp.sum(jnp.stack(list(terms)))


def _blocks(g: Blocks, hs: Sequence[AbstractRegularizer], w0: Weights) -> BlocksLegendre | None:
    found = [closed_form(part, h, own) for part, h, own in zip(g.parts, hs, w0, strict=True)]
    parts = [part for part in found if part is not None]
    if len(parts) < len(found):
        return None
    return BlocksLegendre(parts, _agree(g, hs, parts))


def _agree(g: Blocks, hs: Sequence[AbstractRegularizer], parts: list[AbstractLegendre]) -> bool:
    """True if all blocks are known to leak at one rate; where rates are traced, if g and h say so."""
    if not any(part.leaks for part in parts):
        return True
    rates = [part.leak for part in parts]
    if any(rate.ndim for rate in rates):
        return False
    if is_concrete(rates):
        return all(float(rate) == float(rates[0]) for rate in rates)
    return g.degree is not None and all(h is hs[0] for h in hs)


def _one_regularizer(g: Blocks, h: WeightDecay, w0: Weights) -> BlocksLegendre | None:
    return _blocks(g, [h] * len(g.parts), w0)


def _compatible(g: Blocks, h: Compatible, w0: Weights) -> BlocksLegendre | None:
    scale = h.compatible_scale(g)
    return None if scale is None else _blocks(g, [Compatible(part, scale) for part in g.parts], w0)


def _blockwise(g: Blocks, h: Blockwise, w0: Weights) -> BlocksLegendre | None:
    return _blocks(g, h.parts, w0)


register_legendre(Blocks, WeightDecay, _one_regularizer)
register_legendre(Blocks, Compatible, _compatible)
register_legendre(Blocks, Blockwise, _blockwise)
