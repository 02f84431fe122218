"""R of products of any depth, x = w_1 ... w_k, for g alone: the potential of the flow without decay.

One factor parametrizes everything. Along the flow of g the differences of squares w_j^2 - w_m^2 stay as they are, so
the smallest factor, v = w_m up to signs, gives all the others, and x and mu are increasing functions of v. Depth 2 has
a formula (`hyperbolic.py`); from depth 3 on mu is an elliptic or hyperelliptic integral of v, which one Gauss
quadrature computes in a variable in which no singularity comes near the path.
"""

import operator
from functools import reduce

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ...problem.reparam import Weights
from ...results import RESULTS, select
from ..points import Recovered, Strength
from ..roots import monotone_root
from .separable import AbstractSeparableLegendre, Values

# In the variable y no singularity comes nearer to the path than pi/2, and a path is rarely longer than 24 (x of size
# e^70). Gauss's rule with 16 nodes on a panel of length 3 errs by (pi/3 + sqrt(1 + pi^2/9))^-32 = 2e-13, relatively.
_PANELS, _NODES = 8, 16
# From there on, in y beyond the largest difference of squares, the integrand is its leading power up to e^-40.
_FAR = 20.0


def _rule() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the composite rule on [0, 1]."""
    points, weights = np.polynomial.legendre.leggauss(_NODES)
    nodes = (np.arange(_PANELS)[:, None] + (points + 1) / 2) / _PANELS
    return nodes.ravel(), np.tile(weights / (2 * _PANELS), _PANELS)


_AT, _WEIGHT = _rule()


class ProductLegendre(AbstractSeparableLegendre):
    """`R(x)` of x = w_1 ... w_k for any depth k >= 2, without a regularizer: R is the same at every a.

    With v the smallest factor, times the signs of the others, the gaps `delta_j = w_j^2 - v^2 >= 0` are constant. Then
    `x = v P(v)` with `P(v) = prod sqrt(v^2 + delta_j)` over the other factors, `mu = int dv / P(v)` from the start,
    `Q(mu) = sum_j w_j^2 / (2k)`, `J J^T = sum_i prod_{j != i} w_j^2`. The dual interval ends where v becomes infinite,
    at a finite mu for k > 2. Where two factors share the smallest size, x keeps its sign, and mu has no end there.

    **Arguments:** `factors`: the k initial factors, of one shape. R exists where no two of them are 0.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Theorem 3.6, for what R is; arXiv 2607.12332 for the integral.
    """

    factors: tuple[Values, ...]

    def existence_status(self, a: Strength) -> RESULTS:
        return select(_Curve(self.factors).exists, RESULTS.successful, RESULTS.invalid_weights)

    def dual_interval_at(self, a: Strength) -> tuple[Values, Values]:
        return _Curve(self.factors).ends()

    def in_range(self, x: Values) -> Bool[Array, "..."]:
        curve = _Curve(self.factors)
        return curve.crosses | (jnp.sign(x) == curve.side)

    def flow(self, mu: Values, a: Strength) -> Weights:
        curve = _Curve(self.factors)
        return curve.weights(curve.value(self._place(mu)))

    def potential_terms(self, mu: Values, a: Strength) -> Values:
        w = self.flow(mu, a)
        return reduce(operator.add, [factor**2 for factor in w]) / (2 * len(w))

    def primal_terms(self, mu: Values, a: Strength) -> Values:
        curve = _Curve(self.factors)
        return curve.product(curve.value(self._place(mu)))

    def dual_terms(self, x: Values, a: Strength) -> Recovered:
        curve = _Curve(self.factors)
        # Of the right sign at points that x = 1 replaced although the flow cannot reach them.
        x = jnp.where(curve.crosses, x, curve.side * jnp.abs(x))
        found = monotone_root(_product_at, x, *_everywhere(x), self.factors)
        ok = found.result == RESULTS.successful
        mu = _dual_at(jnp.where(ok, found.value, curve.start), self.factors)
        return Recovered(jnp.where(ok, mu, jnp.nan), found.result)

    def metric(self, mu: Values, a: Strength) -> Values:
        squares = [factor**2 for factor in self.flow(mu, a)]
        return reduce(operator.add, [reduce(operator.mul, squares[:i] + squares[i + 1 :]) for i in range(len(squares))])

    def _place(self, mu: Values) -> Values:
        """y at mu, for mu inside the dual interval."""
        return monotone_root(_dual_at, mu, *_everywhere(mu), self.factors).value


class _Curve(eqx.Module):
    """The weights that the flow of g reaches from the start, by the smallest factor v or by y, which grow along it.

    `v = b sinh y`, with b^2 the smallest gap, where the flow crosses v = 0; `v = side e^(side y)` where it cannot,
    since another factor has the same size. In both `dv/dy = sqrt(v^2 + b^2)`.
    """

    smallest: Bool[Array, "k ..."]  # one True a coordinate
    signs: Float[Array, "k ..."]  # of the other factors; 1 at the smallest
    gaps: Float[Array, "k ..."]  # delta_j; 0 at the smallest
    exists: Bool[Array, "..."]
    crosses: Bool[Array, "..."]
    b: Values
    side: Values
    start: Values  # y of the start

    def __init__(self, factors: tuple[Values, ...]):
        w = jnp.stack(factors)
        index = jnp.expand_dims(jnp.argmin(jnp.abs(w), axis=0), 0)
        self.smallest = jnp.arange(w.shape[0]).reshape(-1, *[1] * (w.ndim - 1)) == index
        self.exists = (jnp.sum(w == 0, axis=0) < 2) & jnp.all(jnp.isfinite(w), axis=0)
        # Points without R are replaced by one that has it, so that they spoil no derivative of others.
        w = jnp.where(self.exists, w, 1.0)
        least = jnp.take_along_axis(w, index, axis=0)
        self.signs = jnp.where(~self.smallest & (w < 0), -1.0, 1.0)
        size = jnp.abs(w)
        self.gaps = jnp.where(self.smallest, 0.0, (size - jnp.abs(least)) * (size + jnp.abs(least)))
        square = jnp.min(jnp.where(self.smallest, jnp.inf, self.gaps), axis=0)
        self.crosses = square > 0
        self.b = jnp.where(self.crosses, jnp.sqrt(jnp.where(self.crosses, square, 1.0)), 0.0)
        v = jnp.prod(self.signs, axis=0) * least[0]
        self.side = jnp.where(v < 0, -1.0, 1.0)
        by_sinh = jnp.arcsinh(v / jnp.where(self.crosses, self.b, 1.0))
        self.start = jnp.where(self.crosses, by_sinh, self.side * jnp.log(jnp.where(self.crosses, 1.0, jnp.abs(v))))

    def value(self, y: Values) -> Values:
        """v at y."""
        by_sinh = self.b * jnp.sinh(jnp.where(self.crosses, y, 0.0))
        return jnp.where(self.crosses, by_sinh, self.side * jnp.exp(jnp.where(self.crosses, 0.0, self.side * y)))

    def sizes(self, v: Values) -> list[Values]:
        """The sizes of the other factors at v, and 1 in place of the smallest."""
        return [
            jnp.sqrt(jnp.where(smallest, 1.0, v**2 + gap))
            for smallest, gap in zip(self.smallest, self.gaps, strict=True)
        ]

    def product(self, v: Values) -> Values:
        """x at v."""
        return v * reduce(operator.mul, self.sizes(v))

    def weights(self, v: Values) -> Weights:
        """The factors at v."""
        own = jnp.prod(self.signs, axis=0) * v
        return tuple(
            jnp.where(smallest, own, sign * size)
            for smallest, sign, size in zip(self.smallest, self.signs, self.sizes(v), strict=True)
        )

    def slope(self, y: Values) -> Values:
        """`dmu/dy = (dv/dy) / P(v)`."""
        v = self.value(y)
        return jnp.sqrt(v**2 + self.b**2) / reduce(operator.mul, self.sizes(v))

    def dual(self, y: Values) -> Values:
        """mu at y, the integral of the slope from the start."""
        length = y - self.start
        slopes = jax.vmap(lambda share: self.slope(self.start + share * length))(jnp.asarray(_AT, y.dtype))
        return length * jnp.tensordot(jnp.asarray(_WEIGHT, y.dtype), slopes, 1)

    def ends(self) -> tuple[Values, Values]:
        """mu where v goes to minus and plus infinity; infinite at depth 2, and where x cannot cross 0."""
        depth = self.gaps.shape[0]
        if depth == 2:
            end = jnp.full_like(self.b, jnp.inf)
            return -end, end
        widest = jnp.sqrt(jnp.max(self.gaps, axis=0))
        far = _FAR + jnp.maximum(jnp.log(2 * jnp.maximum(widest, self.b) / jnp.where(self.crosses, self.b, 1.0)), 0.0)
        far = jnp.where(self.crosses, far, _FAR + jnp.log(jnp.maximum(widest, jnp.exp(jnp.abs(self.start)))))
        far = jnp.maximum(far, self.side * self.start + _FAR)
        tail = jnp.abs(self.value(far * self.side)) ** (2 - depth) / (depth - 2)
        upper, lower = self.dual(far) + tail, self.dual(-far) - tail
        one_sided = ~self.crosses
        lower = jnp.where(one_sided & (self.side > 0), -jnp.inf, lower)
        return lower, jnp.where(one_sided & (self.side < 0), jnp.inf, upper)


def _product_at(y: Values, factors: tuple[Values, ...]) -> Values:
    curve = _Curve(factors)
    return curve.product(curve.value(y))


def _dual_at(y: Values, factors: tuple[Values, ...]) -> Values:
    return _Curve(factors).dual(y)


def _everywhere(like: Values) -> tuple[Values, Values]:
    """The interval of y: e to the power of its ends overflows soon after."""
    end = jnp.full_like(like, 0.45 * np.log(float(jnp.finfo(like.dtype).max)).item())
    return -end, end
