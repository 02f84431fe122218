"""R of products of any depth, x = w_1 ... w_k, for g alone: the potential of the flow without decay.

One factor parametrizes everything. Along the flow of g the differences of squares w_j^2 - w_m^2 stay as they are, so
the smallest factor, v = w_m up to signs, gives all the others, and x and mu are increasing functions of v. Depth 2 has
a formula (`hyperbolic.py`); from depth 3 on mu is an elliptic or hyperelliptic integral of v, which one Gauss
quadrature computes in a variable y in which no singularity comes near the path.

For depth 3 and more mu has ends, which large x approach like a power: far out mu has few digits left for x, or none. So
whatever is asked of a point x is computed from the y of x, and never from its mu.
"""

import operator
from functools import reduce

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ...checks import freeze
from ...problem.reparam import Weights
from ...results import RESULTS, select
from ..divergence import rule
from ..points import Recovered, Strength, shape_of
from ..roots import monotone_root
from ..tied import tied
from .separable import AbstractSeparableLegendre, Values
from .stable import sign_of

# In the variable y no singularity comes nearer to the path than pi/2, and a path is rarely longer than 24. Gauss's rule
# with 20 nodes on a panel of length 3 errs by (pi/3 + sqrt(1 + pi^2/9))^-40 = 1e-16, relatively.
_PANELS, _NODES = 8, 20
# So far in y beyond the largest difference of squares the integrand is its leading power up to e^-40.
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
    known: "_Curve | None" = None  # the curve of the factors, where it has been computed

    @property
    def curve(self) -> "_Curve":
        return _curve(self.factors) if self.known is None else self.known

    def prepared(self, a: Strength) -> "ProductLegendre":
        # XLA works on each copy of the curve in a program before it finds that they are equal.
        return ProductLegendre(self.factors, self.curve)

    def existence_status(self, a: Strength) -> RESULTS:
        curve = self.curve
        exists = select(curve.exists, RESULTS.successful, RESULTS.range_exhausted)
        return select(curve.admissible, exists, RESULTS.invalid_weights)

    def point_like(self) -> jax.ShapeDtypeStruct:
        return shape_of(self.factors[0])

    def dual_interval_at(self, a: Strength) -> tuple[Values, Values]:
        curve = self.curve
        return curve.lower, curve.upper

    def in_range(self, x: Values) -> Bool[Array, "..."]:
        curve = self.curve
        return curve.crosses | (jnp.sign(x) == curve.side)

    def flow(self, mu: Values, a: Strength) -> Weights:
        curve = self.curve
        return curve.weights(curve.value(_place_of_dual(curve, mu)))

    def potential_terms(self, mu: Values, a: Strength) -> Values:
        curve = self.curve
        return curve.potential(_place_of_dual(curve, mu))

    def primal_terms(self, mu: Values, a: Strength) -> Values:
        return self.primal_terms_from(mu, jnp.zeros_like(mu), a)

    def primal_terms_from(self, mu: Values, step: Values, a: Strength) -> Values:
        curve = self.curve
        return curve.product(_place_of_dual(curve, mu, step))

    def dual_terms(self, x: Values, a: Strength) -> Recovered:
        curve = self.curve
        found = _place_of(curve, x)
        ok = found.result == RESULTS.successful
        mu = curve.dual(jnp.where(ok, found.value, curve.start))
        return Recovered(jnp.where(ok, mu, jnp.nan), found.result)

    def metric(self, mu: Values, a: Strength) -> Values:
        curve = self.curve
        return curve.metric(_place_of_dual(curve, mu))

    def curvature(self, x: Values, mu: Values, a: Strength) -> Values:
        curve = self.curve
        return 1 / curve.metric(_place_of(curve, x).value)

    def value_at(self, x: Values, mu: Values, a: Strength) -> Float[Array, ""]:
        curve = self.curve
        y = _place_of(curve, x).value
        return _tie_value(_value(*freeze((curve, x, y))), curve, x, y)

    def bregman_at(self, x: Values, z: Values, mu_x: Values, mu_z: Values, a: Strength) -> Float[Array, ""]:
        """`int (x - X(y)) dmu` from the y of z to that of x, differentiable as it stands.

        For points farther apart than 1 in y it is `x (mu_x - mu_z) - (Q_x - Q_z)`, in which little cancels. For closer
        ones it is an integral of positive numbers along a way whose length has the digits of x - z.
        """
        curve = self.curve
        y_x, y_z = _place_of(curve, x).value, _place_of(curve, z).value
        near = jnp.abs(y_x - y_z) < 1
        (end_x, mu_x), (end_z, mu_z) = curve.dual_parts(y_x), curve.dual_parts(y_z)
        far = x * ((end_x - end_z) + (mu_x - mu_z)) - (curve.potential(y_x) - curve.potential(y_z))
        step, length = jnp.where(near, x - z, 0.0), jnp.where(near, y_x - y_z, 0.0)
        length = length + (step - curve.change(y_z, length)) / curve.speed(y_x)
        s, weights = rule(x.dtype)
        terms = jax.vmap(lambda s: curve.slope(y_z + s * length) * curve.change(y_z + s * length, (1 - s) * length))(s)
        return jnp.sum(jnp.where(near, length * jnp.tensordot(weights, terms, 1), far))

    def from_scaled_start(self, factor: Values) -> "ProductLegendre":
        return ProductLegendre(tuple(factor * own for own in self.factors))


class _Curve(eqx.Module):
    """The weights that the flow of g reaches from the start, by the smallest factor v or by y, which grow along it.

    `v = b sinh y`, with b^2 the smallest gap, where the flow crosses v = 0; `v = side e^(side y)` where it cannot,
    since another factor has the same size. In both `dv/dy = sqrt(v^2 + b^2)`. Above `high` and below `low` the slope
    `dmu/dy` is the exponential `slope(high) e^(rate (y - high))`, up to rounding.
    """

    smallest: Bool[Array, "k ..."]  # one True a coordinate
    signs: Float[Array, "k ..."]  # of the other factors; 1 at the smallest
    gaps: Float[Array, "k ..."]  # delta_j; 0 at the smallest
    admissible: Bool[Array, "..."]
    exists: Bool[Array, "..."]  # admissible, and the gaps are floats: not after a decay of e^-350
    crosses: Bool[Array, "..."]
    b: Values
    side: Values
    start: Values  # y of the start
    low: Values
    high: Values
    falls: Values  # the rates outwards below `low` and above `high`: negative where mu has an end
    rises: Values
    lower: Values  # the ends of mu
    upper: Values

    def __init__(self, factors: tuple[Values, ...]):
        w = jnp.stack(factors)
        index = jnp.expand_dims(jnp.argmin(jnp.abs(w), axis=0), 0)
        self.smallest = jnp.arange(w.shape[0]).reshape(-1, *[1] * (w.ndim - 1)) == index
        vanished = jnp.all(w == 0, axis=0)  # no weights are given like this, and a decay of e^-750 leaves none
        self.admissible = ((jnp.sum(w == 0, axis=0) < 2) | vanished) & jnp.all(jnp.isfinite(w), axis=0)
        size = jnp.abs(w)
        lost = (size > jnp.min(size, axis=0, keepdims=True)) & (size**2 < jnp.finfo(w.dtype).tiny)
        self.exists = self.admissible & ~vanished & ~jnp.any(lost, axis=0)
        # Points without R are replaced by one that has it, so that they spoil no derivative of others.
        w = jnp.where(self.exists, w, 1.0)
        least = jnp.take_along_axis(w, index, axis=0)
        self.signs = jnp.where(self.smallest, 1.0, sign_of(w))
        size = jnp.abs(w)
        self.gaps = jnp.where(self.smallest, 0.0, (size - jnp.abs(least)) * (size + jnp.abs(least)))
        square = jnp.min(jnp.where(self.smallest, jnp.inf, self.gaps), axis=0)
        self.crosses = square > 0
        self.b = jnp.where(self.crosses, jnp.sqrt(jnp.where(self.crosses, square, 1.0)), 0.0)
        v = jnp.prod(self.signs, axis=0) * least[0]
        self.side = sign_of(v)
        by_sinh = jnp.arcsinh(v / jnp.where(self.crosses, self.b, 1.0))
        self.start = jnp.where(self.crosses, by_sinh, self.side * jnp.log(jnp.where(self.crosses, 1.0, jnp.abs(v))))
        self.low, self.high, self.falls, self.rises = self._regions()
        self.lower = jnp.where(self.falls < 0, self._integral(self.start, self.low) - self._rest(self.low), -jnp.inf)
        self.upper = jnp.where(self.rises < 0, self._integral(self.start, self.high) + self._rest(self.high), jnp.inf)

    def _regions(self) -> tuple[Values, Values, Values, Values]:
        """`(low, high, falls, rises)`."""
        outwards = jnp.full_like(self.b, 2.0 - len(self.gaps))
        widest = jnp.sqrt(jnp.max(self.gaps, axis=0))
        far = _FAR + jnp.log(2 * widest / jnp.where(self.crosses, self.b, 1.0))
        # Where the flow cannot cross, in side * y: far out beyond the widest gap, and far in below the narrowest one
        # that is not 0; there the other factors of the smallest size make the slope grow, or leave it constant.
        narrow = jnp.min(jnp.where(self.gaps > 0, self.gaps, jnp.inf), axis=0)
        narrow, gapless = jnp.where(jnp.isinf(narrow), 1.0, narrow), jnp.isinf(narrow)
        own = self.side * self.start
        out = jnp.where(gapless, own, jnp.maximum(own, _FAR + jnp.log(jnp.where(gapless, 1.0, widest))))
        into = jnp.where(gapless, own, jnp.minimum(own, jnp.log(narrow) / 2 - _FAR))
        inwards = jnp.sum(self.gaps == 0, axis=0).astype(self.b.dtype) - 2
        right = self.side > 0
        low = jnp.where(self.crosses, jnp.minimum(-far, self.start), jnp.where(right, into, -out))
        high = jnp.where(self.crosses, jnp.maximum(far, self.start), jnp.where(right, out, -into))
        falls = jnp.where(self.crosses | ~right, outwards, inwards)
        rises = jnp.where(self.crosses | right, outwards, inwards)
        return *jax.lax.stop_gradient((low, high)), falls, rises

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

    def weights(self, v: Values) -> Weights:
        """The factors at v."""
        own = jnp.prod(self.signs, axis=0) * v
        return tuple(
            jnp.where(smallest, own, sign * size)
            for smallest, sign, size in zip(self.smallest, self.signs, self.sizes(v), strict=True)
        )

    def product(self, y: Values) -> Values:
        """x at y."""
        v = self.value(y)
        return v * reduce(operator.mul, self.sizes(v))

    def potential(self, y: Values) -> Values:
        """Q at y."""
        w = self.weights(self.value(y))
        return reduce(operator.add, [factor**2 for factor in w]) / (2 * len(w))

    def metric(self, y: Values) -> Values:
        """`J J^T = dx/dmu` at y."""
        squares = [factor**2 for factor in self.weights(self.value(y))]
        return reduce(operator.add, [reduce(operator.mul, squares[:i] + squares[i + 1 :]) for i in range(len(squares))])

    def slope(self, y: Values) -> Values:
        """`dmu/dy = (dv/dy) / P(v)`."""
        v = self.value(y)
        return jnp.sqrt(v**2 + self.b**2) / reduce(operator.mul, self.sizes(v))

    def speed(self, y: Values) -> Values:
        """`dx/dy`."""
        return self.metric(y) * self.slope(y)

    def change(self, y: Values, length: Values) -> Values:
        """`X(y + length) - X(y)`, with all its digits, for a length of at most 1."""
        s, weights = rule(y.dtype)
        speeds = jax.vmap(lambda s: self.speed(y + s * length))(s)
        return length * jnp.tensordot(weights, speeds, 1)

    def dual(self, y: Values) -> Values:
        """mu at y."""
        end, distance = self.dual_parts(y)
        return end + distance

    def dual_parts(self, y: Values) -> tuple[Values, Values]:
        """mu at y as an end of mu and the distance from it, where that end is nearer than the start; else 0 and mu.

        The distance has all its digits: it decides about x where it is below the rounding of mu.
        """
        return _dual_parts(self, y)

    def nearest(self, y: Values) -> tuple[Values, Values]:
        """The body of `dual_parts`, which calls it through `jax.jit`."""
        to_high = (self.rises < 0) & (y > self.start) & (self.high - y < y - self.start)
        to_low = (self.falls < 0) & (y < self.start) & (y - self.low < self.start - y)
        origin = jnp.where(to_high, self.high, jnp.where(to_low, self.low, self.start))
        inside = self._integral(origin, jnp.clip(y, self.low, self.high))
        above, below = jnp.maximum(y - self.high, 0.0), jnp.maximum(self.low - y, 0.0)
        beyond = self.slope(self.high) * _growth(self.rises, above) - self.slope(self.low) * _growth(self.falls, below)
        to_start = inside + beyond
        to_upper = inside - self._rest(self.high) * jnp.exp(jnp.minimum(self.rises, 0.0) * above)
        to_lower = inside + self._rest(self.low) * jnp.exp(jnp.minimum(self.falls, 0.0) * below)
        end = jnp.where(to_high, self.upper, jnp.where(to_low, self.lower, 0.0))
        return end, jnp.where(to_high, to_upper, jnp.where(to_low, to_lower, to_start))

    def _integral(self, y: Values, end: Values) -> Values:
        """mu at the end minus mu at y, for both between `low` and `high`."""
        length = end - y
        slopes = jax.vmap(lambda share: self.slope(y + share * length))(jnp.asarray(_AT, y.dtype))
        return length * jnp.tensordot(jnp.asarray(_WEIGHT, y.dtype), slopes, 1)

    def _rest(self, end: Values) -> Values:
        """The length of mu beyond `low` or `high`, whichever is given, where mu has an end."""
        rate = 2.0 - len(self.gaps)
        return self.slope(end) / -rate if rate < 0 else jnp.zeros_like(end)


# Each method asks for the curve anew, and a program holds mu at many places: JAX traces, differentiates and batches the
# body of a jitted function once for all its calls.
@jax.jit
def _curve(factors: tuple[Values, ...]) -> _Curve:
    return _Curve(factors)


@jax.jit
def _dual_parts(curve: _Curve, y: Values) -> tuple[Values, Values]:
    return curve.nearest(y)


def _growth(rate: Values, length: Values) -> Values:
    """`int_0^length e^(rate t) dt`."""
    flat = rate == 0
    safe = jnp.where(flat, 1.0, rate)
    return jnp.where(flat, length, jnp.expm1(safe * length) / safe)


def _place_of(curve: _Curve, x: Values) -> Recovered:
    """y at x."""
    # Of the right sign at points that x = 1 replaced although the flow cannot reach them.
    x = jnp.where(curve.crosses, x, curve.side * jnp.abs(x))
    return monotone_root(_product_at, x, *_everywhere(x), curve)


def _place_of_dual(curve: _Curve, mu: Values, step: Values | None = None) -> Values:
    """y at mu, or at mu + step, inside the dual interval."""
    step = jnp.zeros_like(mu) if step is None else step
    return monotone_root(_step_to, step, *_everywhere(mu), (curve, mu)).value


def _product_at(y: Values, curve: _Curve) -> Values:
    return curve.product(y)


def _step_to(y: Values, args: tuple[_Curve, Values]) -> Values:
    """The step from mu to the mu of y. Near an end both are that far from it, and the difference loses no digit."""
    curve, mu = args
    end, distance = curve.dual_parts(y)
    return (end - mu) + distance


def _everywhere(like: Values) -> tuple[Values, Values]:
    """The interval of y: e to the power of its ends overflows soon after."""
    end = jnp.full_like(like, 0.45 * np.log(float(jnp.finfo(like.dtype).max)).item())
    return -end, end


def _value(curve: _Curve, x: Values, y: Values) -> Float[Array, ""]:
    """`R(x) = mu x - Q` at the y of x."""
    return jnp.sum(curve.dual(y) * x - curve.potential(y))


@tied
def _tie_value(value: Array, args: tuple, tangents: tuple) -> Array:
    """`R(x)`, known to be `value`: `dR = mu dx`, and along a change of the curve that of `mu x - Q` with y held."""
    curve, x, y = args
    t_curve, t_x, _ = tangents
    change = jnp.zeros_like(value) if t_x is None else jnp.sum(curve.dual(y) * t_x)
    if not jax.tree.leaves(t_curve):
        return change
    _, along = eqx.filter_jvp(lambda curve: _value(curve, x, y), (curve,), (t_curve,))
    return change if along is None else change + along
