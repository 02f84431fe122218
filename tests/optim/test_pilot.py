"""PILoT's schedule, pruned tensors that stay pruned, and HAM's bad arguments."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training import train

import mirrorjax as mj
from mirrorjax import optim
from mirrorjax.optim.pilot import SizeState, warn_of_collapse


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
    both, _ = train(optim.hyperbolic_step(optax.sgd(0.1), 1.0, 0.2, step_size=0.1, mask=None), loss, start, 1)
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


def test_the_step_of_ham_is_by_default_the_authors():
    start = {"kernel": jnp.array([[0.5, -1.0], [2.0, 1.0]]), "bias": jnp.array([2.0])}
    gradient = {"kernel": jnp.array([[0.01, 0.02], [-9.0, 9.0]]), "bias": jnp.array([0.1])}
    eta = 0.1
    optimizer = optim.hyperbolic_step(optax.sgd(eta), step_size=eta)
    updates, _ = optimizer.update(gradient, optimizer.init(start), start)
    found: Any = optax.apply_updates(start, updates)
    half = np.asarray(start["kernel"]) - eta * np.asarray(gradient["kernel"])
    exponent = np.clip(-eta * (200 * np.sign(half) * gradient["kernel"] + 1e-3), -5, 5)  # the last two reach 5 and -5
    np.testing.assert_allclose(found["kernel"], half * np.exp(exponent), rtol=1e-12)
    np.testing.assert_allclose(found["bias"], [1.99], rtol=1e-15)  # rank 1: the optimizer alone
    unbounded = optim.hyperbolic_step(optax.sgd(eta), step_size=eta, limit=jnp.inf)
    updates, _ = unbounded.update(gradient, unbounded.init(start), start)
    found = optax.apply_updates(start, updates)
    assert float(found["kernel"][1, 0]) > 1e70


ACCURACIES = [0.1, 0.3, 0.5, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0]  # before training, and after each of 8 epochs
NORMS = [9.0, 8.0, 7.0, 6.0, 2.0, 5.0, 4.0, 3.0, 3.0]


@pytest.fixture(scope="module")
def strengths() -> tuple[np.ndarray, optim.RuleState]:
    """The strengths that PILoT's rule chose in each step of 8 epochs of 3 steps, and its state in the end."""
    accuracies, norms = jnp.asarray(ACCURACIES), jnp.asarray(NORMS)
    rule = optim.pilot_decay(
        0.5, delta=2.0, least_norm=2.5, epochs=8, steps_per_epoch=3, accuracy=lambda pair: pair[1][0]
    )

    def step(state, count):  # m w = m where w = 1; the first entry of w carries the accuracy, and m makes up for it
        m = norms[count // 3] * jnp.array([0.5, 0.5])
        w = jnp.array([1.0, 1.0]).at[0].set(accuracies[count // 3])
        pair = m / jnp.array([w[0], 1.0]), w
        updates, state = rule.update((jnp.zeros(2), jnp.zeros(2)), state, pair)
        return state, (optim.current_strength(state), cast(Any, updates)[1][1])

    start = rule.init((jnp.ones(2), jnp.ones(2)))
    state, (alpha, moved) = jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(27)))(start)
    np.testing.assert_allclose(moved, 2 * alpha, rtol=1e-14)  # the gradient of alpha w^2 at w = 1
    return np.asarray(alpha), state


def test_the_rule_raises_the_strength_while_accuracy_and_norm_allow_and_then_lowers_it(strengths):
    alpha, state = strengths
    expected, last = [0.5], 0.5
    for k in range(1, 9):
        rises = ACCURACIES[k] > ACCURACIES[k - 1] and NORMS[k] > 2.5 and k <= 4
        last = last * 2 if rises else last / 2
        expected.append(last)
    assert expected[:5] == [0.5, 1.0, 2.0, 1.0, 0.5]  # epoch 3 was less accurate, epoch 4 too sparse
    np.testing.assert_allclose(alpha, np.repeat(expected, 3), rtol=1e-14)
    assert (float(state.first), float(state.last), float(state.norm)) == (0.1, 1.0, 3.0)
    assert not state.clock.pending
    assert not optim.has_collapsed(state)


def test_runs_at_chance_are_seen_and_others_are_not():
    start = (jnp.ones(4), jnp.zeros(4).at[0].set(0.5))
    loss = lambda pair: jnp.sum((pair[0] * pair[1] - 0.5) ** 2) * 1e-3  # noqa: E731  too weak against decay
    for width, collapsed in ((1e-9, True), (0.4, False)):
        optimizer = optim.pilot(optax.sgd(0.1), balance=1.0, width=width, t_off=20.0, step_size=0.1, mask=None)
        _, state = train(optimizer, loss, start, 200)
        assert bool(optim.has_collapsed(state)) is collapsed
    with pytest.warns(UserWarning, match="1 of 2 lanes of PILoT ended at chance"):
        warn_of_collapse(SizeState((), jnp.array([1.0, 1e-4, 0.0])), 2)


def test_a_switch_off_a_million_steps_away_is_warned_of():
    with pytest.warns(UserWarning, match=r"SwitchOff ends at t = 2000, which at step_size = 0.001 is step 2e\+06"):
        optim.scheduled_weight_decay(mj.SwitchOff(0.1, 2000.0), step_size=1e-3)
    with pytest.warns(UserWarning, match="CosineDecay ends at t = 5000"):
        optim.pilot(optax.sgd(1e-3), balance=1.0, width=0.1, t_off=5e3, step_size=1e-3, mask=None)
