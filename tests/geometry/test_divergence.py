"""Values and Bregman divergences against the definitions, in 90 decimal digits.

The oracle is Python's `decimal`: each formula is that of the theory, evaluated as it is written, at the very floats
that the library is given. Relative errors are asserted, so a divergence of 1e-28 must have as many digits as one of 1.
"""

import functools
from decimal import Decimal, localcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mirrorjax.problem as mj
from mirrorjax.geometry import SpectralGram, SpectralProduct, legendre
from mirrorjax.geometry.families.separable import AbstractSeparableLegendre, scaled_strength
from mirrorjax.geometry.numeric import NumericLegendre

DIGITS = 90


def asinh(t: Decimal) -> Decimal:
    return ((abs(t) + (t * t + 1).sqrt()).ln()).copy_sign(t) if t else t


def power(base: Decimal, exponent: Decimal) -> Decimal:
    return (exponent * base.ln()).exp()


class Legendre(NamedTuple):
    """R_a of one coordinate: weights, scale c, half the power."""

    family: str
    w: tuple[Decimal, ...]
    c: Decimal
    k: int = 0

    def mu_and_potential(self, x: Decimal, a: Decimal) -> tuple[Decimal, Decimal]:
        """`grad R_a(x)` and Q_a there, up to terms that are the same for all x; computed once."""
        return mu_and_potential(self, x, a)

    def root(self, x: Decimal, T: Decimal, q: Decimal) -> Decimal:
        """s with `(1 + e^s)^q - (1 + e^-s)^q = x T^q`, by Newton's method on asinh of both sides."""
        s = asinh(x * power(T, q)) / q
        for digits in (20, DIGITS // 2, DIGITS):  # most of the way with few digits, where a step costs a tenth
            with localcontext(prec=digits):
                s = self.improved(s, x, T, q, digits)
        return s

    def improved(self, s: Decimal, x: Decimal, T: Decimal, q: Decimal, digits: int) -> Decimal:
        """The root from this start, up to rounding. `1 + e^-s` is `(1 + e^s) e^-s`, so that two logarithms suffice."""
        target = asinh(x * power(T, q))
        for _ in range(60):
            e = s.exp()
            log = (1 + e).ln()
            plus, minus = (q * log).exp(), (q * (log - s)).exp()
            y = plus - minus
            slope = q * (plus * e + minus) / (1 + e) / (1 + y * y).sqrt()
            step = (asinh(y) - target) / slope
            s -= step
            if abs(step) < Decimal(10) ** (2 - digits // 2):  # its square is what is left
                return s
        raise AssertionError("the oracle did not converge")

    def value(self, x: Decimal, a: Decimal) -> Decimal:
        mu, potential = self.mu_and_potential(x, a)
        return mu * x - potential

    def bregman(self, x: Decimal, z: Decimal, a: Decimal) -> Decimal:
        return self.value(x, a) - self.value(z, a) - self.mu_and_potential(z, a)[0] * (x - z)


@functools.cache
def mu_and_potential(R: Legendre, x: Decimal, a: Decimal) -> tuple[Decimal, Decimal]:
    """`grad R_a(x)` and Q_a there, up to terms that are the same for all x."""
    ca = R.c * a
    if R.family == "square":
        return (x / R.w[0] ** 2).ln() / 4 - ca, x / 4
    if R.family in ("hadamard", "power1"):
        p, A = (2, abs(R.w[0] ** 2 - R.w[1] ** 2) / 2) if R.family == "hadamard" else (4, 2 * R.w[0] * R.w[1])
        u, v = R.w if R.family == "power1" else (abs(R.w[0] + R.w[1]), abs(R.w[0] - R.w[1]))
        A *= (4 * ca).exp()
        return (asinh(x / A) - (u / v).ln()) / p, (x * x + A * A).sqrt() / p
    u, v = R.w
    if R.family == "log":
        U, V = u * u + 2 * ca, v * v + 2 * ca
        T = U + V
        P, S = (T / (1 + (sign * 2 * x).exp()) for sign in (-1, 1))
        initial = u * u + v * v
        entropy = [level * level.ln() - level for level in (P, S, initial)]
        return (P - U) / 2, (entropy[0] + entropy[1] - entropy[2]) / 4
    if R.family == "exp":
        U, V = (-u).exp() - ca, (-v).exp() - ca
        s = asinh(x * (U + V) / 2)
        P, S = (U + V) / (1 + s.exp()), (U + V) / (1 + (-s).exp())
        return U - P, -P.ln() - S.ln()
    k, K = R.k, 2 * R.k * (2 * R.k - 2)
    U, V = u ** (2 - 2 * k) - K * ca, v ** (2 - 2 * k) - K * ca
    q, T = Decimal(k) / (k - 1), U + V
    s = R.root(x, T, q)
    P, S = T / (1 + s.exp()), T / (1 + (-s).exp())
    b = Decimal(-1) / (k - 1)
    return (U - P) / K, (power(P, b) + power(S, b)) / (4 * k)


class Case(NamedTuple):
    g: mj.AbstractReparameterization
    w: tuple[float, ...]
    c: float
    strengths: tuple[float, ...]
    positive: bool = False


CASES = {
    "hadamard": Case(mj.Hadamard(), (1.3, 0.4), 0.7, (0.0, -0.3, -10.0)),
    "square": Case(mj.Square(), (1.3,), 0.7, (0.0, -10.0), positive=True),
    "power1": Case(mj.PowerDifference(1), (1.3, 0.4), 0.7, (-0.3,)),
    "power2": Case(mj.PowerDifference(2), (1.3, 0.4), 0.7, (0.0, -0.3, -300.0)),
    "power5": Case(mj.PowerDifference(5), (1.3, 0.8), 0.7, (0.0, -10.0)),
    "log": Case(mj.LogDifference(), (2.3, 3.4), 0.7, (0.0, -1.0)),
    "exp": Case(mj.ExpDifference(), (1.3, -0.4), 0.7, (0.0, -0.3, -300.0)),
}


def decimal(value: Any) -> Decimal:
    return Decimal(float(value))


@functools.cache
def program(name: str, dtype: type) -> tuple[Any, Legendre, Any]:
    """R, its oracle, and D with its slopes in x, z and a at many points; compiled once."""
    case = CASES[name]
    weights, c = [jnp.asarray([w], dtype) for w in case.w], dtype(case.c)
    R = legendre(case.g, mj.Compatible(case.g, c), tuple(weights) if len(weights) > 1 else weights[0])
    oracle = Legendre(name.rstrip("25"), tuple(decimal(w[0]) for w in weights), decimal(c), getattr(case.g, "k", 0))

    @jax.jit
    def everything(x, z, a):
        def one(x, z):
            return jax.value_and_grad(lambda x, z, a: R.bregman(x[None], z[None], a), (0, 1, 2))(x, z, a)

        return jax.vmap(one)(x, z)

    return R, oracle, everything


def points(case: Case, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Pairs that are close, down to 1e-12 apart (to 8 roundings in float32), far, on either side of 0, and at 0."""
    rng, n = np.random.default_rng(5), 12
    largest = 6.0 if isinstance(case.g, mj.LogDifference) else 1e5
    closest = max(1e-12, 8 * float(np.finfo(dtype).eps))
    x = np.exp(rng.uniform(np.log(1e-5), np.log(largest), n))
    near = x * (1 + rng.choice([-0.9, 1.0], n) * np.exp(rng.uniform(np.log(closest), 0, n)))
    far = np.exp(rng.uniform(np.log(1e-5), np.log(largest), n))
    x, z = np.concatenate([x, x, x]), np.concatenate([near, far, far[::-1]])
    if not case.positive:
        sign = np.where(rng.random(3 * n) < 0.5, 1.0, -1.0)
        x, z = sign * x, sign * z
        z[2 * n :] *= -1
        z[-2:] = 0.0
    return x.astype(dtype), z.astype(dtype)


class Truth(NamedTuple):
    """The divergence of each pair and its slopes in x, z and a, as floats."""

    value: np.ndarray
    slope_x: np.ndarray
    slope_z: np.ndarray
    slope_a: np.ndarray


def truth(oracle: Legendre, x: np.ndarray, z: np.ndarray, a: float) -> Truth:
    """Slopes by central differences over 1e-20, right to 1e-20 of the divergence at least."""
    h, strength, rows = Decimal(10) ** -20, decimal(a), []
    with localcontext() as context:
        context.prec = DIGITS
        for p, q in zip(map(decimal, x), map(decimal, z), strict=True):
            rise = oracle.mu_and_potential(p, strength)[0] - oracle.mu_and_potential(q, strength)[0]
            curvature = oracle.mu_and_potential(q + h, strength)[0] - oracle.mu_and_potential(q - h, strength)[0]
            rate = oracle.bregman(p, q, strength + h) - oracle.bregman(p, q, strength - h)
            rows.append((oracle.bregman(p, q, strength), rise, curvature * (q - p) / (2 * h), rate / (2 * h)))
    return Truth(*np.array(rows, float).T)


# The two powers are one formula: each in one precision.
DIGITS_OF = [
    (name, dtype)
    for name in CASES
    for dtype in (np.float64, np.float32)
    if (name, dtype) not in (("power2", np.float64), ("power5", np.float32))
]


@pytest.mark.parametrize(("name", "dtype"), DIGITS_OF)
def test_bregman_divergences_keep_their_digits(name, dtype):
    _, oracle, everything = program(name, dtype)
    x, z = points(CASES[name], dtype)
    for a in map(dtype, CASES[name].strengths):
        D, slopes = everything(x, z, a)
        right = truth(oracle, x, z, a)
        assert jnp.all(D >= 0)
        # Sums of positive terms, each a few roundings of x - z, of exponentials of gaps up to 30 in size, and of log A,
        # which holds 4 c a to its own rounding.
        in_exponent = 4 * CASES[name].c * abs(float(a)) if name in ("hadamard", "power1") else 0
        rtol = float(np.finfo(dtype).eps) * (40 + in_exponent)
        np.testing.assert_allclose(D, right.value, rtol=rtol, atol=0)
        np.testing.assert_allclose(slopes[0], right.slope_x, rtol=rtol, atol=0)
        np.testing.assert_allclose(slopes[1], right.slope_z, rtol=rtol, atol=0)
        # That of the entropy is 0: its divergence does not depend on a. The others are products of three such sums.
        expected = np.zeros_like(right.slope_a) if name == "square" else right.slope_a
        np.testing.assert_allclose(slopes[2], expected, rtol=4 * rtol, atol=float(np.finfo(dtype).tiny))


def entropy_divergence(x: np.ndarray, z: np.ndarray) -> float:
    """`sum x log(x/z) - x + z` of floats, in many digits."""
    with localcontext() as context:
        context.prec = DIGITS
        pairs = zip(map(decimal, x.ravel()), map(decimal, z.ravel()), strict=True)
        return float(sum((p * (p / q).ln() - p + q for p, q in pairs), Decimal(0)))


STEPS = (1e-12, 1e-7, 1e-3, 0.5, 30.0)


def away(x: jax.Array, step: float) -> jax.Array:
    """A point whose coordinates differ from those of x by the factor 1 + step, in turn up and down."""
    return x * jnp.where(jnp.arange(x.size) % 2 == 0, 1 + step, 1 / (1 + step))


class HalvedLegendre(AbstractSeparableLegendre):
    """`x = w^2/2` with three methods alone: R_a is that of Square at 2x."""

    w0: Any

    def flow(self, mu, a):
        return self.w0 * jnp.exp(mu + 2 * scaled_strength(1.0, a, mu))

    def potential_terms(self, mu, a):
        return self.flow(mu, a) ** 2 / 4

    def dual_interval_at(self, a):
        return jnp.full_like(self.w0, -jnp.inf), jnp.full_like(self.w0, jnp.inf)


def test_the_defaults_of_a_separable_closed_form():
    R, x = HalvedLegendre(jnp.array([0.7, 1.2, 1.0])), jnp.array([0.3, 1.0, 20.0])
    both = jax.jit(lambda x, z: (R.bregman(x, z, -0.3), jax.grad(R.bregman, (0, 1))(x, z, -0.3)))
    second = jax.jit(lambda x, z: (jax.hessian(R.bregman)(x, z, -0.3), R.hessian(x, -0.3)))
    for step in STEPS:
        z = away(x, step)
        D, (slope_x, slope_z) = both(x, z)
        # A rule of 10 nodes where it is believed, which holds 1e-8; differences of values elsewhere.
        np.testing.assert_allclose(D, entropy_divergence(np.asarray(2 * x), np.asarray(2 * z)) / 4, rtol=1e-7)
        np.testing.assert_allclose(slope_x, np.log1p(np.asarray((x - z) / z)) / 2, rtol=1e-7)
        np.testing.assert_allclose(slope_z, (z - x) / z / 2, rtol=1e-7)
    np.testing.assert_allclose(*second(x, away(x, 1e-3)), rtol=1e-9)


def test_quadratic_forms():
    """With as many forms as weights, `y = Lambda^-1 x` are halves of squares, and R_a is Square's at 2y."""
    rates = np.array([[1.0, 0.5, 0.0], [0.25, 1.0, -0.5], [0.0, 0.5, 2.0]])
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    G = np.einsum("ij,kj,lj->kil", basis, rates, basis)
    G = jnp.asarray((G + np.swapaxes(G, 1, 2)) / 2)
    R = legendre(mj.Quadratic(G), mj.WeightDecay(0.7), jnp.asarray(basis @ np.array([0.7, 1.2, 1.0])))
    D = jax.jit(lambda x, z, a: R.bregman(x, z, a))
    y = jnp.array([0.3, 1.0, 4.0])
    for step in STEPS:
        x, z = rates @ y, rates @ away(y, step)
        for a in (-0.3, -60.0):
            y_x, y_z = (np.linalg.solve(rates, np.asarray(point)) for point in (x, z))
            # y_x - y_z carries the rounding of x beside x - z: that is what x and z are.
            y_z = y_x - np.linalg.solve(rates, np.asarray(x - z))
            expected = entropy_divergence(2 * y_x, 2 * y_z) / 4
            np.testing.assert_allclose(D(x, z, a), expected, rtol=1e-8 + 2e-15 / step)


def test_matrices():
    basis, eye = jnp.asarray(np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]), jnp.eye(3)
    gram, product = SpectralGram(eye, 0.7), SpectralProduct(2 * eye, eye, eye, eye, 0.7)
    D = jax.jit(lambda x, z: (gram.bregman(x, z, -0.3), jax.grad(gram.bregman)(x, z, -0.3)))

    @jax.jit
    def of_product(x, z):
        return product.bregman(jnp.diag(x), jnp.diag(z), -0.3), product.diagonal.bregman(x, z, -0.3)

    sizes = jnp.array([0.3, 1.0, 4.0])
    for step in STEPS:
        other = away(sizes, step)
        np.testing.assert_allclose(*of_product(sizes, other), rtol=1e-14)
        x, z = ((basis * point[None, :]) @ basis.T for point in (sizes, other))
        value, slope = D(x, z)
        # The matrices are rounded: their difference has an error of 1e-16 beside its size.
        rtol = 1e-7 + 1e-14 / step
        np.testing.assert_allclose(value, entropy_divergence(np.asarray(sizes), np.asarray(other)) / 4, rtol=rtol)
        rise = (basis * (jnp.log1p((sizes - other) / other) / 4)[None, :]) @ basis.T
        np.testing.assert_allclose(slope, rise, rtol=0, atol=rtol * float(jnp.max(jnp.abs(rise))))


def test_the_numeric_path():
    """Along its integration, at its own tolerance: the closed form keeps the digits that it is compared by."""
    w0, x = (jnp.array([1.0, 0.8, 1.3]), jnp.array([0.9, 1.2, 0.7])), jnp.array([0.3, -0.2, 2.0])
    g, h = mj.PowerDifference(2), mj.Compatible(mj.PowerDifference(2), 0.7)
    # Not compiled: the integrations are programs of the library, which one around them would hold several times.
    ours, theirs = (
        jax.value_and_grad(lambda x, z, a, R=R: R.bregman(x, z, a), (0, 1, 2))
        for R in (NumericLegendre(g, h, w0), legendre(g, h, w0))
    )
    theirs = jax.jit(theirs)
    for step in STEPS[::2]:
        z = away(x, step)
        (value, slopes), (right, right_slopes) = ours(x, z, -0.1), theirs(x, z, -0.1)
        np.testing.assert_allclose(value, right, rtol=1e-8)
        for slope, other in zip(slopes[:2], right_slopes[:2], strict=True):
            np.testing.assert_allclose(slope, other, rtol=1e-8)
        # That in a is a difference of terms of order 1.
        np.testing.assert_allclose(slopes[2], right_slopes[2], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["hadamard", "power2", "log", "exp", "square"])
def test_slopes_of_values_are_mirror_maps(name):
    """Also in float32, where |mu| is far below |ca|; and the Hessian is that of the mirror map."""
    case = CASES[name]
    R, _, _ = program(name, np.float32)
    everything = jax.jit(
        lambda x, a: (jax.grad(R.value)(x, a), R.mirror_map(x, a), jax.hessian(R.value)(x, a), R.hessian(x, a))
    )
    for x in (1e-12, 1e-3, 2.0):
        for a in case.strengths:
            slope, mu, hessian, expected = everything(jnp.array([x], jnp.float32), np.float32(a))
            np.testing.assert_array_equal(slope, mu)
            np.testing.assert_allclose(hessian, expected, rtol=1e-5)
