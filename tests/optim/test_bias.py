"""track_bias: the parts of decay, steps and noise against their formulas, and their sum against read_bias."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training import train

import mirrorjax as mj
from mirrorjax import optim

ETA, STEPS, D = 0.05, 60, 9
RNG = np.random.default_rng(3)
Z = jnp.asarray(RNG.normal(size=(6, D)))
Y = Z @ (jnp.arange(D) < 2).astype(float)
START = jnp.asarray(RNG.uniform(0.8, 1.2, D)), jnp.asarray(RNG.uniform(-0.3, 0.3, D))
ALPHA = mj.SwitchOff(0.7, 40.5 * ETA)
STRENGTHS = np.where(np.arange(STEPS) < 41, 0.7, 0.0)


def slope(x, rows):
    """grad f at x on some rows of the data."""
    return Z[rows].T @ (Z[rows] @ x - Y[rows]) / rows.size


def run(optimizer, noise=False, rows=3, dtype="float64"):
    """The weights at the end, the state of the optimizer, and the gradients in x that it was given, step by step."""
    start = jax.tree.map(lambda leaf: leaf.astype(dtype), START)

    @jax.jit
    def trained():
        def step(carry, n):
            (m, w), state = carry
            x = (m * w).astype(float)
            some = slope(x, jax.random.permutation(jax.random.key(n), 6)[:rows])
            pull = lambda g: (g.astype(dtype) * w, g.astype(dtype) * m)  # noqa: E731
            extra = {"mean_gradient": pull(slope(x, jnp.arange(6)))} if noise else {}
            updates, state = optimizer.update(pull(some), state, (m, w), **extra)
            return (optax.apply_updates((m, w), updates), state), (some, slope(x, jnp.arange(6)))

        return jax.lax.scan(step, (start, optimizer.init(start)), jnp.arange(STEPS))

    (w, state), gradients = trained()
    return w, state, tuple(map(np.asarray, gradients))


def read(w, start=START):
    bias = mj.read_bias(mj.Hadamard(), mj.WeightDecay(), start, w)
    assert bool(jnp.all(bias.ok))
    return bias


@pytest.fixture(autouse=True)
def loose_dtypes():
    """optax's own Adam divides a float by the count of steps."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def noisy_descent():
    optimizer = optim.track_bias(optax.sgd(ETA), ALPHA, step_size=ETA, coupled=True, noise=True)
    with jax.numpy_dtype_promotion("standard"):
        return run(optimizer, noise=True)


def test_noisy_gradient_descent_has_the_product_formula(noisy_descent):
    w, state, (g, mean) = noisy_descent
    parts = optim.accumulated_bias(state)
    left = (1 - 2 * ETA * STRENGTHS)[:, None]
    decay, shrink = 2 * np.log(np.abs(left)), lambda g: np.log(np.abs(1 - (ETA * g / left) ** 2))
    np.testing.assert_allclose(4 * read(w).a, np.sum(decay + shrink(g), axis=0), rtol=1e-12)
    np.testing.assert_allclose(4 * parts.decay, np.full(D, np.sum(decay)), rtol=1e-12)
    np.testing.assert_allclose(4 * parts.step, np.sum(shrink(mean), axis=0), rtol=1e-11)
    np.testing.assert_allclose(
        4 * np.asarray(parts.noise), np.sum(shrink(g) - shrink(mean), axis=0), rtol=1e-11, atol=1e-13
    )
    assert np.all(np.asarray(parts.noise) < 0)
    # With c != 1 the strengths are c alpha: a is 1/c of that, mu the same.
    scaled = mj.read_bias(mj.Hadamard(), mj.WeightDecay(0.7), START, w)
    np.testing.assert_allclose(4 * 0.7 * scaled.a, np.sum(decay + shrink(g), axis=0), rtol=1e-12)
    np.testing.assert_allclose(-2 * scaled.mu, np.sum(2 * np.arctanh(ETA * g / left), axis=0), rtol=1e-11, atol=1e-12)


OPTIMIZERS = {
    "momentum": (optax.sgd(ETA / 10, momentum=0.9), ETA / 10, True),
    "momentum, decoupled": (optax.sgd(ETA / 10, momentum=0.9, nesterov=True), ETA / 10, False),
    "adamw": (optax.adam(ETA), ETA, False),
    "adam, coupled": (optax.chain(optax.clip(1.0), optax.adam(ETA)), ETA, True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_parts_add_up_to_the_bias_that_is_read(name):
    optimizer, eta, coupled = OPTIMIZERS[name]
    decay = {"alpha": mj.SwitchOff(0.7, 40.5 * eta), "step_size": eta}
    w, state, _ = run(optim.track_bias(optimizer, **decay, coupled=coupled, noise=True), noise=True)
    parts = optim.accumulated_bias(state)
    # In numpy, of sizes: some of these runs are so long that weights change orthant, where read_bias has no a.
    (m0, w0), (m, w_) = np.asarray(START), np.asarray(w)
    exact = np.log(np.abs((m - w_) / (m0 - w0) * (m + w_) / (m0 + w0))) / 4
    np.testing.assert_allclose(parts.total, exact, rtol=0, atol=1e-12)
    bias = mj.read_bias(mj.Hadamard(), mj.WeightDecay(), START, w)
    np.testing.assert_allclose(bias.a[bias.ok], exact[bias.ok], atol=1e-12)
    if not coupled:
        decay_alone = np.sum(np.log(1 - 2 * eta * STRENGTHS)) / 2
        np.testing.assert_allclose(parts.decay, np.full(D, decay_alone), rtol=1e-12)
    plain = (optim.coupled_weight_decay if coupled else optim.decoupled_weight_decay)(optimizer, **decay)
    # Two programs of the same numbers: rounding of 1e-16 a step, over 60 steps that Adam divides by small numbers.
    np.testing.assert_allclose(np.stack(run(plain)[0]), np.stack(w), rtol=0, atol=1e-13)


def test_only_pairs_of_a_tree_are_followed():
    from mirrorjax import nn

    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3), "fixed": jnp.ones(2)}
    split, start = nn.reparameterize(params, {"kernel": mj.Hadamard(), "fixed": nn.Frozen()})
    optimizer = optax.chain(
        optax.clip(10.0), optim.track_bias(optax.sgd(0.1), 0.25, coupled=True, pairs=split.factored, mask="kernel/*")
    )
    loss = lambda w: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(split.merge(w)))  # noqa: E731
    weights, state = train(optimizer, loss, start, 2)
    parts, biases = optim.accumulated_bias(state), nn.read_bias(split, start, weights)
    assert list(biases) == ["kernel"]
    assert parts.noise is None
    assert parts.total["bias"] is None
    np.testing.assert_allclose(parts.total["kernel"], biases["kernel"].a, rtol=1e-12)
    np.testing.assert_allclose(parts.decay["kernel"], np.full((2, 3), np.log(0.95)), rtol=1e-12)


def test_single_precision_accumulates_small_parts():
    w, state, (g, _) = run(optim.track_bias(optax.sgd(1e-3), 0.0, coupled=False, step_size=1.0), dtype="float32")
    parts = optim.accumulated_bias(state)
    exact = np.sum(np.log1p(-((1e-3 * g) ** 2)), axis=0) / 4
    # Each step rounds m and w by half an eps of numbers of order one, which is part of the update that is measured.
    np.testing.assert_allclose(parts.total, exact, atol=float(np.finfo(np.float32).eps) * STEPS**0.5)
    start = jax.tree.map(lambda leaf: leaf.astype("float32"), START)
    np.testing.assert_allclose(parts.total, read(w, start).a, atol=4 * float(np.finfo(np.float32).eps))
