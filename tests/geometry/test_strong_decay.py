"""R_a after strong decay, where x lies far out on the scale of the weights and mu has no digits left to tell it.

Everything that is asked of a point is compared with scipy integrals over the weights at that point.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq

import mirrorjax as mj
from mirrorjax.results import RESULTS

# A zero factor, equal factors, mixed signs; points on one side, close together, and on both sides where x crosses 0.
STARTS = [(0.0, 1.0, 1.0), (1.0, 1.0, 1.0), (0.5, 0.7, -1.2)]
PAIRS = [(2.0, 1.0), (2.0, 2.0 - 1e-6), (0.5, -1.0), (-1.5, -0.2)]
STRENGTHS = [-0.2, -3.0, -12.0]
C = 0.9
PRODUCT = (0.3, 0.2, 0.9, 1.4, -1.0)


NODES, WEIGHTS = np.polynomial.legendre.leggauss(30)


def lanes():
    """`(w0, x, z, a)` of one coordinate each; x > 0 alone where the factors are equal."""
    return [
        (w0, x, z, a) for w0 in STARTS for x, z in PAIRS for a in STRENGTHS if min(x, z) > 0 or len(set(np.abs(w0))) > 1
    ]


class Curve:
    """Weights along the flow of one product from e^s w0, by the smallest factor v, in scipy."""

    def __init__(self, w0, a):
        w = np.exp(2 * C * a) * np.array(w0)
        i = np.argmin(np.abs(w))
        self.start, self.depth = w[i] * np.prod(np.sign(np.delete(w, i))), w.size
        self.gaps = (np.delete(w, i) - w[i]) * (np.delete(w, i) + w[i])
        self.others, self.scale = len(self.gaps), np.sqrt(np.max(self.gaps)) or abs(self.start)

    def rest(self, v):
        return np.prod(np.sqrt(v**2 + self.gaps))

    def at(self, x):
        size = 1.001 * abs(x) ** (1 / self.depth) + 1e-300  # P(v) >= v^(p-1)
        return np.sign(x) * brentq(lambda v: v * self.rest(v) - abs(x), 0.0, size, xtol=1e-300, rtol=np.float64(1e-15))

    def hessian(self, v):
        squares = np.append(v**2, v**2 + self.gaps)
        return 1 / sum(np.prod(np.delete(squares, i)) for i in range(self.depth))

    def integral(self, fn, v, end):
        """`int fn(v) dv / P(v)`, over pieces each of one scale: from the scale of the gaps outwards."""
        edges = self.scale * np.concatenate([-np.geomspace(1e25, 1e-3, 57), [0.0], np.geomspace(1e-3, 1e25, 57)])
        low, high = min(v, end), max(v, end)
        edges = np.concatenate([[low], edges[(edges > low) & (edges < high)], [high]])
        points = (edges[1:, None] + edges[:-1, None] + np.diff(edges)[:, None] * NODES) / 2
        values = [fn(point) / self.rest(point) for point in points.ravel()]
        total = np.sum(np.diff(edges)[:, None] * WEIGHTS / 2 * np.reshape(values, points.shape))
        return total * (1 if end >= v else -1)

    def everything(self, x, z):
        """R_a(x), grad R_a(x), its second derivative, D_a(x, z) and its derivative in x."""
        v_x, v_z = self.at(x), self.at(z)
        mu = self.integral(lambda v: 1.0, self.start, v_x)
        value = mu * x - (self.depth * v_x**2 + np.sum(self.gaps)) / (2 * self.depth)
        divergence = self.integral(lambda v: x - v * self.rest(v), v_z, v_x)
        return value, mu, self.hessian(v_x), divergence, self.integral(lambda v: 1.0, v_z, v_x)


def asked(R, x, z, a):
    """The same numbers of ours, of one coordinate, and the derivatives of R_a(x) in x and in a."""

    def both(point):
        x, a = point
        found = R.value(x[None], a), R.bregman(x[None], z[None], a)
        return found, found

    # One derivative in two lanes, with the values beside it: compiling is what this costs.
    slopes, (value, divergence) = jax.jacfwd(both, has_aux=True)(jnp.stack([x, a]))
    (along_x, along_a), (rise, _) = slopes
    mu = R.dual(x[None], a)
    return value, mu.value[0], R.hessian(x[None], a)[0, 0], divergence, rise, along_x, along_a


@pytest.fixture(scope="module")
def case():
    @jax.jit
    @jax.vmap
    def of(w0, x, z, a):
        R = mj.legendre(mj.Hadamard(3), mj.WeightDecay(C), tuple(w0[:, None]))
        return asked(R, x, z, a)

    chosen = lanes()
    found = of(*(jnp.asarray(np.array(column)) for column in zip(*chosen, strict=True)))
    return chosen, [np.asarray(each) for each in found]


def test_products_are_what_scipy_integrates(case):
    chosen, found = case
    expected = np.array([Curve(w0, a).everything(x, z) for w0, x, z, a in chosen]).T
    # For points that are 5e-7 apart scipy's roots differ by 9 of 16 digits less: 2e-9 here, against 50 digits.
    for ours, other, rtol in zip(found[:5], expected, (1e-12, 1e-12, 1e-12, 5e-9, 3e-9), strict=True):
        np.testing.assert_allclose(ours, other, rtol=rtol)


def test_derivatives_are_the_mirror_map_and_the_law_of_the_dilation(case):
    chosen, (value, mu, *_, along_x, along_a) = case
    x = np.array([lane[1] for lane in chosen])
    np.testing.assert_allclose(along_x, mu, rtol=1e-12)
    # R_a(x) = e^(2s) R(e^(-ps) x).
    np.testing.assert_allclose(along_a, 2 * C * (2 * value - 3 * mu * x), rtol=1e-10)


def levels(u0, v0, k, a, x):
    """`(R_a(x), grad R_a(x), its second derivative)` of x = u^2k - v^2k > 0 with ordinary decay, by its conserved sum
    of levels `u^(2-2k) + v^(2-2k)`, the smaller of which is found by iteration."""
    U, V = ((np.exp(2 * C * a) * start) ** (2 - 2 * k) for start in (u0, v0))
    q, P = k / (k - 1), 0.0
    for _ in range(60):
        minus = (U + V - P) ** -q
        P = (x + minus) ** (-1 / q)
    plus, mu = x + minus, (U - P) / (2 * k * (2 * k - 2))
    exponent = (2 * k - 1) / k
    value = mu * x - (plus ** (1 / k) + minus ** (1 / k)) / (4 * k)
    return value, mu, 1 / (4 * k**2 * (plus**exponent + minus**exponent))


def test_blocks_of_different_depth_are_the_sums_of_their_parts():
    """x = w, m w, u^4 - v^4 and w_1 .. w_5 side by side, each with its own rate of the leak."""
    parts = mj.Linear(), mj.Hadamard(), mj.PowerDifference(2), mj.Hadamard(5)
    w0 = ((1.0,), (1.0, 0.3), (0.9, 0.8), PRODUCT)
    w0 = tuple(tuple(jnp.full(1, value) for value in own) for own in w0)
    R = mj.legendre(mj.Blocks(*parts), mj.WeightDecay(C), (w0[0][0], *w0[1:]))
    x, z, a = np.array([0.7, 2.0, 1.5, 2.0]), np.array([0.2, 1.0, 0.5, 1.0]), -8.0

    @jax.jit
    def of(x, z, a):
        return R.value(x, a), R.mirror_map(x, a), jnp.diag(R.hessian(x, a)), R.bregman(x, z, a)

    value, mu, hessian, divergence = of(jnp.asarray(x), jnp.asarray(z), a)
    A, tilt = (1 - 0.09) / 2 * np.exp(4 * C * a), np.log(1.3 / 0.7)
    s = 2 * C * a
    expected = [
        (x[0] ** 2 / 2 - np.exp(s) * x[0], x[0] - np.exp(s), 1.0),
        ((x[1] * np.arcsinh(x[1] / A) - x[1] - tilt * x[1]) / 2, (np.arcsinh(x[1] / A) - tilt) / 2, 0.5 / x[1]),
        levels(0.9, 0.8, 2, a, x[2]),
        Curve(PRODUCT, a).everything(x[3], z[3])[:3],
    ]
    values, mus, hessians = np.array(expected).T
    np.testing.assert_allclose(value, values.sum(), rtol=1e-10)
    np.testing.assert_allclose(mu, mus, rtol=1e-10)
    np.testing.assert_allclose(hessian, hessians, rtol=1e-10)
    apart = [
        (x[0] - z[0]) ** 2 / 2,
        (x[1] * np.log(x[1] / z[1]) - x[1] + z[1]) / 2,
        quad(lambda t: (x[2] - t) * levels(0.9, 0.8, 2, a, t)[2], z[2], x[2], epsrel=1e-12)[0],
        Curve(PRODUCT, a).everything(x[3], z[3])[3],
    ]
    np.testing.assert_allclose(divergence, sum(apart), rtol=1e-9)


def test_the_type_of_bias_is_that_of_the_integral():
    R = mj.legendre(mj.Hadamard(3), mj.WeightDecay(C), (jnp.zeros(1), jnp.ones(1), jnp.ones(1)))
    found = mj.local_exponent(R, -12.0, 1.0)
    _, mu, _, rise, _ = Curve((0.0, 1.0, 1.0), -12.0).everything(1.0, 0.0)
    np.testing.assert_allclose(found.value, mu / rise, rtol=1e-9)


def test_a_mu_is_taken_as_it_is_up_to_the_end_of_its_interval():
    """Within 1e-13 of the end the rounding of mu moves x by 1e-3 of it; at the end itself there is no x."""
    R = mj.legendre(mj.Hadamard(3), mj.WeightDecay(C), (jnp.zeros(3), jnp.ones(3), jnp.ones(3)))
    _, upper = R.dual_interval(-12.0)
    found = R.primal(upper * jnp.array([1 - 1e-9, 1 - 1e-13, 1.0]), -12.0)
    assert mj.status_name(found.result).tolist() == ["successful", "successful", "outside_dual_interval"]
    assert np.isfinite(found.value).tolist() == [True, True, False]
    assert bool(jnp.all(R.dual(jnp.ones(3), -400.0).result == RESULTS.range_exhausted))  # e^-720: squares underflow


def product_at(place, left, s):
    """x of w1 w2 w3 from e^s (0, 1, 1): mu is `place` of the way to its end, with `left = 1 - place`."""
    b = np.exp(s)
    v = b * np.tan(np.pi / 2 * place) if place < 0.5 else b / np.tan(np.pi / 2 * left)
    return v * (v**2 + b**2)


def sixth_powers_at(place, left, s):
    """The same of u^6 - v^6 from e^s (1, 1), whose levels are linear in mu."""
    return np.exp(6 * s) * (left**-1.5 - (1 + place) ** -1.5)


LIMITS = {
    "product": (mj.Hadamard(3), (0.0, 1.0, 1.0), product_at),
    "powers": (mj.PowerDifference(3), (1.0, 1.0), sixth_powers_at),
}


@pytest.mark.parametrize("case", LIMITS)
def test_limits_keep_their_digits_where_mu_has_lost_them(case):
    """At s = -8 an interval of mu is up to 1e13 long, and the limit lies within 1e-3 of its end.

    The oracle looks for the distance from that end, as a share of the interval. Limits miss Z x = y by eps^(3/4) |x|,
    2e-12, or a little more where rounding of the Hessian ends the search.
    """
    g, w0, at = LIMITS[case]
    R = mj.legendre(g, mj.WeightDecay(C), tuple(jnp.full(3, value) for value in w0))
    z, strengths = np.array([1.0, 0.5, -0.25]), np.array([-1.0, -4.0, -6.0, -8.0])

    @jax.jit
    @jax.vmap
    def of(s):
        def limit(y):
            found = mj.predict_limit(R, mj.LeastSquares(jnp.asarray(z[None]), y[None]), s / (2 * C))
            return found.x, found.result == RESULTS.successful

        return jax.jvp(limit, (jnp.array(1.5),), (jnp.ones(()),), has_aux=True)

    x, slope, successful = of(strengths)
    assert np.all(successful)

    def expected(y, s):
        def points(log_left):
            left = np.exp(log_left)
            return np.array([at(share * (1 - left), 1 - share * (1 - left) if share < 1 else left, s) for share in z])

        return points(
            brentq(lambda log_left: z @ points(log_left) - y, -60.0, -1e-9, xtol=1e-14, rtol=np.float64(1e-15))
        )

    for s, found, along in zip(strengths, x, slope, strict=True):
        np.testing.assert_allclose(found, expected(1.5, s), rtol=3e-11)
        rise = (expected(1.501, s) - expected(1.499, s)) / 2e-3  # wrong by 1e-6 of the third derivative
        np.testing.assert_allclose(along, rise, rtol=1e-5, atol=1e-12)  # at s = -8 others than the first stay
