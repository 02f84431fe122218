"""The stable functions against 80-digit decimal arithmetic, and their derivative rules against each other."""

from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mirrorjax.geometry.families import stable

XS = (0.0, 1e-30, -1e-3, 0.3, -1.0, 1e6)
LOGS = (5.0, 0.0, -3.0, -90.0, -800.0, -4e4)  # 4ca - log|u0 v0| at a from 0 down to -1e4


def arcsinh(q: Decimal) -> Decimal:
    if abs(q) < Decimal("1e-25"):
        return q  # the next term, q^3/6, is below 1e-50 of it
    return (abs(q) + (q * q + 1).sqrt()).ln().copy_sign(q)


EXACT = {
    stable.arcsinh_ratio: lambda x, A: arcsinh(x / A),
    stable.hypotenuse: lambda x, A: (x * x + A * A).sqrt(),
    stable.reciprocal_hypotenuse: lambda x, A: 1 / (x * x + A * A).sqrt(),
    stable.sine: lambda x, A: x / (x * x + A * A).sqrt(),
    stable.cosine: lambda x, A: A / (x * x + A * A).sqrt(),
    stable.hyperbolic_entropy: lambda x, A: x * arcsinh(x / A) - (x * x + A * A).sqrt(),
    stable.scaled_sinh: lambda z, A: A * (z.exp() - (-z).exp()) / 2,
    stable.scaled_cosh: lambda z, A: A * (z.exp() + (-z).exp()) / 2,
}
ids = [fn.__name__ for fn in EXACT]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("fn", EXACT, ids=ids)
def test_values(fn, dtype):
    eps, tiny = float(jnp.finfo(dtype).eps), Decimal(float(jnp.finfo(dtype).tiny))
    largest = Decimal(float(jnp.finfo(dtype).max))
    hyperbolic = fn in (stable.scaled_sinh, stable.scaled_cosh)
    firsts = (0.0, 1e-5, -0.7, 3.0, -85.0, 4e4) if hyperbolic else XS
    points = [(x, L) for x in firsts for L in LOGS]
    values = jax.jit(fn)(*(jnp.asarray(column, dtype) for column in np.array(points).T))
    with localcontext() as context:
        context.prec = 80
        for (x, L), value in zip(points, values, strict=True):
            x, L = float(np.asarray(x, dtype)), float(np.asarray(L, dtype))
            exact = EXACT[fn](Decimal(x), Decimal(L).exp())
            if abs(exact) > largest:
                assert jnp.isinf(value)
            elif abs(exact) < tiny:
                assert abs(float(value)) <= float(tiny)
            else:
                # log_A enters an exponent: half an ulp of its rounded sums is that relative change of the answer.
                tolerance = 8 * eps * (1 + (abs(L) + abs(x)) * hyperbolic + min(abs(L), 90.0 if eps > 1e-10 else 710.0))
                assert abs(Decimal(float(value)) / exact - 1 if exact else value) <= tolerance


@pytest.mark.parametrize("fn", EXACT, ids=ids)
def test_derivatives_against_differences(fn):
    x, L = (part.ravel() for part in np.meshgrid([-2.0, -0.5, 0.0, 0.1, 3.0], [-2.0, 0.0, 1.0]))
    step = 1e-5  # truncation and rounding of central differences: both near 1e-10

    def sloped(x, L):
        return jax.jvp(fn, (x, L), (jnp.ones_like(x), 0.3 * jnp.ones_like(L)))[1]

    @jax.jit
    def everything(x, L, dx, dL):
        """Of fn and its derivative along (1, 0.3): the slope along (dx, dL), and the values on both sides."""
        return [
            (
                jax.jvp(order, (x, L), (jnp.full_like(x, dx), jnp.full_like(L, dL)))[1],
                order(x + step * dx, L + step * dL),
                order(x - step * dx, L - step * dL),
            )
            for order in (fn, sloped)
        ]

    for dx, dL in ((1.0, 0.0), (0.0, 1.0)):
        for found in everything(x, L, dx, dL):
            slope, ahead, behind = map(np.asarray, found)
            np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("fn", list(EXACT)[:6], ids=ids[:6])
def test_gradients_are_finite_at_extremes(fn, dtype):
    x, L = (part.ravel() for part in np.meshgrid(np.asarray(XS, dtype), np.asarray(LOGS, dtype)))
    for gradient in jax.jit(jax.vmap(jax.grad(fn, (0, 1))))(x, L):
        assert gradient.dtype == dtype
        assert np.all(np.isfinite(gradient))


def test_tanh_half():
    s = jnp.array([-600.0, -40.0, -1.0, 0.0, 1e-8, 40.0])
    np.testing.assert_allclose(stable.tanh_half(s), np.tanh(np.asarray(s) / 2), rtol=1e-15)
    slope = jax.vmap(jax.grad(stable.tanh_half))(s)
    exact = 0.5 / np.cosh(np.asarray(s) / 2) ** 2
    np.testing.assert_allclose(slope, exact, rtol=1e-14, atol=1e-300)
