"""PILoT's schedule, pruned tensors that stay pruned, and HAM's bad arguments."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training import train

import mirrorjax as mj
from mirrorjax import optim


@pytest.mark.parametrize("width", [0.5, 0.1, 1e-6])
def test_the_schedule_spends_what_the_width_takes(width):
    schedule = optim.pilot_schedule(1.0, width, 7.0)
    R = mj.legendre(mj.Hadamard(), mj.WeightDecay(), (jnp.ones(1), jnp.zeros(1)))  # m^2 - w^2 = 1
    # Where the mirror map of the closed form is steepest, at x = 0, its slope is 1 / (2 A).
    slope = R.hessian(jnp.zeros(1), -schedule.integral(7.0))
    np.testing.assert_allclose(np.ravel(slope), 1 / (2 * width), rtol=1e-9)
    assert schedule(7.0) == 0.0


def test_pruned_tensors_stay_pruned_and_others_move():
    start = {"kernel": jnp.array([0.0, 1.0, 0.0]), "bias": jnp.zeros(2)}
    loss = lambda p: jnp.sum((p["kernel"] - 3) ** 2) + jnp.sum((p["bias"] - 1) ** 2)  # noqa: E731
    optimizer = optax.chain(optax.sgd(0.1, 0.9), optim.keep_zeros("kernel"))
    found, _ = train(optimizer, loss, start, 10)
    np.testing.assert_array_equal(found["kernel"] == 0, [True, False, True])
    assert np.all(found["bias"] != 0)


def test_the_hyperbolic_step_takes_the_tensors_of_its_mask():
    start = {"kernel": jnp.array([0.5, -1.0]), "bias": jnp.array([2.0])}
    loss = lambda p: jnp.sum(p["kernel"] ** 2) + jnp.sum(p["bias"] ** 2)  # noqa: E731
    both, _ = train(optim.hyperbolic_step(optax.sgd(0.1), 1.0, 0.2, step_size=0.1), loss, start, 1)
    some, _ = train(optim.hyperbolic_step(optax.sgd(0.1), 1.0, 0.2, step_size=0.1, mask="kernel"), loss, start, 1)
    half = {name: 0.8 * value for name, value in start.items()}
    for name, theta in start.items():
        scaled = half[name] * np.exp(-0.1 * (np.sign(theta) * 2 * theta + 0.2))
        np.testing.assert_allclose(both[name], scaled, rtol=1e-14)
    np.testing.assert_array_equal(some["kernel"], both["kernel"])
    np.testing.assert_allclose(some["bias"], half["bias"], rtol=1e-15)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: optim.pilot_schedule(1.0, 0.6, 1.0), "width = 0.6 is above balance / 2 = 0.5"),
        (lambda: optim.pilot_schedule(-1.0, 0.1, 1.0), "balance must be positive and finite, got -1"),
        (lambda: optim.pilot_schedule(1.0, 0.0, 1.0), "width must be positive and finite, got 0"),
        (lambda: optim.pilot_schedule(1.0, 0.1, jnp.inf), "t_off must be positive and finite, got inf"),
        (lambda: optim.hyperbolic_gradient(-1.0), "alpha must be finite and non-negative, got -1"),
        (lambda: optim.hyperbolic_step(optax.sgd(0.1), 1.0, -0.1, step_size=0.1), "beta must be finite and non-neg"),
        (lambda: optim.hyperbolic_step(optax.sgd(0.1), 1.0, step_size=0.0), "step_size must be positive"),
    ],
)
def test_bad_numbers_are_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()


@pytest.mark.parametrize(
    "optimizer", [optim.hyperbolic_gradient(1.0), optim.hyperbolic_step(optax.sgd(0.1), 1.0, step_size=0.1)]
)
def test_ham_without_parameters_is_refused(optimizer):
    with pytest.raises(ValueError, match="acts on the parameters"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))
