"""Spectra of products from their factors, against numpy's SVD of the product."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mirrorjax import nn

SHAPES = {  # (n, r), (r, m): the product's rank is below, at and above r, and factors are wide and tall
    "tall": ((40, 5), (5, 30)),
    "square": ((6, 6), (6, 6)),
    "wide": ((4, 9), (9, 3)),
    "lanes": ((2, 3, 20, 4), (2, 3, 4, 12)),
}


def factors(name: str, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return tuple(rng.normal(size=shape).astype(dtype) for shape in SHAPES[name])


@jax.jit
def measured(a: Any, b: Any) -> tuple[nn.Spectrum, dict]:
    spectrum = nn.product_spectrum(a, b)
    return spectrum, spectrum.summary()


def reference(s: np.ndarray) -> dict[str, np.ndarray]:
    p = s / s.sum(-1, keepdims=True)
    frobenius = np.sqrt((s**2).sum(-1))
    logs = np.log(np.where(p > 0, p, 1))
    return {
        "ratio": s.sum(-1) / frobenius,
        "effective_rank": np.exp(-(p * logs).sum(-1)),
        "stable_rank": frobenius**2 / s[..., 0] ** 2,
        "nuclear": s.sum(-1),
        "frobenius": frobenius,
    }


@pytest.mark.parametrize("name", SHAPES)
# Backward stability: a few eps |A| |B| a value, summed over at most 6 values.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-5)])
def test_spectra_are_those_of_the_formed_product(name, dtype, tolerance):
    a, b = factors(name, dtype)
    spectrum, summary = measured(a, b)
    exact = np.linalg.svd(a.astype(float) @ b.astype(float), compute_uv=False)[..., : spectrum.values.shape[-1]]
    assert spectrum.values.dtype == dtype
    np.testing.assert_allclose(spectrum.values, exact, rtol=0, atol=tolerance * exact.max())
    for what, expected in reference(exact).items():
        np.testing.assert_allclose(summary[what], expected, rtol=tolerance)


def test_deficient_rank_is_seen():
    rng = np.random.default_rng(2)
    a = np.outer(rng.normal(size=20), rng.normal(size=4))
    b = rng.normal(size=(4, 15))
    spectrum, _ = measured(a, b)
    # Three of the four values are rounding, which counts 1e-16 to the ranks, times log 1e16 to the entropy.
    for value in (spectrum.ratio, spectrum.effective_rank, spectrum.stable_rank):
        np.testing.assert_allclose(value, 1.0, rtol=1e-13)


def test_small_values_keep_digits_that_gram_matrices_lose():
    rng = np.random.default_rng(3)
    left, right = (np.linalg.qr(rng.normal(size=(30, 3)))[0] for _ in range(2))
    s = np.array([1.0, 1e-5, 1e-10])
    spectrum = nn.product_spectrum(jnp.asarray(left * s), jnp.asarray(right.T))
    np.testing.assert_allclose(spectrum.values, s, rtol=0, atol=1e-15)  # a few roundings of the largest
    np.testing.assert_allclose(spectrum.values[2], 1e-10, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_ranks_do_not_depend_on_the_scale(scale):
    a, b = (jnp.asarray(factor) for factor in factors("tall", "float32"))
    plain, _ = measured(a, b)
    scaled = nn.Spectrum(plain.values * jnp.float32(scale))  # whose squares leave float32's range
    for what in ("ratio", "effective_rank", "stable_rank"):
        np.testing.assert_allclose(getattr(scaled, what), getattr(plain, what), rtol=1e-5)
    assert np.isfinite(scaled.frobenius)
    assert scaled.frobenius > 0


def test_the_zero_product_has_rank_zero_and_nan_stays_nan():
    a = jnp.stack([jnp.ones((5, 2)), jnp.ones((5, 2)), jnp.full((5, 2), jnp.nan)])
    b = jnp.stack([jnp.zeros((2, 4)), jnp.ones((2, 4)), jnp.ones((2, 4))])
    _, summary = measured(a, b)
    for value in summary.values():
        assert value[0] == 0
        assert value[1] > 0
        assert np.isnan(value[2])


def test_heads_of_attention():
    rng = np.random.default_rng(4)
    layers, d, heads, r = 2, 12, 3, 4
    key, query = rng.normal(size=(2, layers, d, heads * r))
    spectrum = nn.product_spectrum(*nn.attention_factors(jnp.asarray(key), jnp.asarray(query), heads))
    assert spectrum.ratio.shape == (layers, heads)
    for layer in range(layers):
        for head in range(heads):
            columns = slice(head * r, (head + 1) * r)
            formed = key[layer][:, columns] @ query[layer][:, columns].T
            exact = np.linalg.svd(formed, compute_uv=False)[:r]
            np.testing.assert_allclose(spectrum.values[layer, head], exact, rtol=1e-11)


def test_low_precision_factors_are_taken_in_float32():
    a, b = (jnp.asarray(factor, jnp.bfloat16) for factor in factors("tall", "float32"))
    values = nn.product_spectrum(a, b).values
    assert values.dtype == jnp.float32
    exact = np.linalg.svd(np.asarray(a, float) @ np.asarray(b, float), compute_uv=False)[:5]
    np.testing.assert_allclose(values, exact, rtol=1e-5)


def test_the_tracker_looks_every_so_many_steps():
    split, start = nn.reparameterize({"head": jnp.ones((6, 5))}, {"head": nn.LowRank(2)}, key=jax.random.key(0))
    params = jax.tree.map(lambda factor: jnp.ones_like(factor), start)
    tracker = nn.SpectralTracker({"adapter": lambda weights: split.factors(weights)["head"]}, every=3)
    assert tracker(start)["adapter"].effective_rank == 0  # B starts at 0
    assert [step for step in range(8) if tracker.due(step)] == [0, 3, 6]
    now = tracker(params)["adapter"]
    np.testing.assert_allclose(now.ratio, 1.0, rtol=1e-14)
    looked = jax.jit(lambda steps: jax.lax.map(lambda step: tracker.at(step, params)["adapter"].ratio, steps))
    np.testing.assert_array_equal(np.isnan(looked(jnp.arange(5))), [False, True, True, False, True])


def test_gradients_are_refused_not_wrong():
    with pytest.raises(ValueError, match="the spectrum of a product is not differentiable here"):
        jax.grad(lambda a: nn.product_spectrum(a, jnp.ones((2, 4))).nuclear)(jnp.ones((5, 2)))


def test_bad_shapes_and_trackers_are_refused():
    with pytest.raises(ValueError, match=r"got \(5, 2\) and \(3, 4\)"):
        nn.product_spectrum(jnp.ones((5, 2)), jnp.ones((3, 4)))
    with pytest.raises(ValueError, match="heads=3"):
        nn.attention_factors(jnp.ones((5, 4)), jnp.ones((5, 4)), 3)
    with pytest.raises(ValueError, match="at least one product"):
        nn.SpectralTracker({})
    with pytest.raises(ValueError, match="every must be a whole number of at least 1, got 0"):
        nn.SpectralTracker({"x": lambda p: p}, every=0)
