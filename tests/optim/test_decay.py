"""Scheduled weight decay: what is added, when, to which tensors, in whose convention; and what is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array
from training import train, update

import mirrorjax as mj
from mirrorjax import optim

ETA = 0.25  # exact in binary, so that times are exact sums


def tree(key: Array) -> dict:
    first, second = jax.random.split(key)
    return {
        "layer": {"kernel": jax.random.normal(first, (3, 4)), "bias": jax.random.normal(second, (4,))},
        "head": {"kernel": jax.random.normal(second, (4, 2))},
    }


def zeros(params: dict) -> dict:
    return jax.tree.map(jnp.zeros_like, params)


def added(transformation: optax.GradientTransformation, params: dict, steps: int) -> list[dict]:
    """What the transformation adds to a gradient of 0 at fixed parameters, step by step."""
    state, out = transformation.init(params), []
    for _ in range(steps):
        u, state = update(transformation, zeros(params), state, params)
        out.append(u)
    return out


def assert_same(one: dict, other: dict) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one, other)


def loss(params: dict) -> Array:
    return sum((jnp.sum(jnp.cos(leaf) + leaf**2 / 3) for leaf in jax.tree.leaves(params)), jnp.zeros(()))


@pytest.fixture(autouse=True)
def loose_dtypes():
    """optax's own Adam divides a float by the count of steps."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_alpha_is_the_theorys_and_weight_decay_is_optaxs(key):
    params = tree(key)
    (u,) = added(optim.scheduled_weight_decay(0.3), params, 1)
    assert_same(u, jax.grad(lambda p: 0.3 * mj.WeightDecay()(p))(params))  # 2 alpha theta
    (ours,) = added(optim.switch_off_sgd(1.0, weight_decay=0.6, off_at=1), params, 1)
    assert_same(jax.tree.map(jnp.negative, ours), u)  # weight_decay = 2 alpha
    (theirs,) = added(optax.add_decayed_weights(0.6), params, 1)
    assert_same(theirs, u)


@pytest.mark.parametrize(
    "schedule",
    [mj.Constant(0.3), mj.SwitchOff(0.3, 3 * ETA), mj.CosineDecay(0.3, 4 * ETA), mj.Piecewise([ETA], [0.1, 0.5])],
    ids=lambda schedule: type(schedule).__name__,
)
def test_schedules_are_read_at_the_sum_of_learning_rates(key, schedule):
    params = tree(key)
    for n, u in enumerate(added(optim.scheduled_weight_decay(schedule, step_size=ETA), params, 6)):
        alpha = schedule(n * ETA)
        # The time is read 4 roundings late, and a cosine's slope there is of order one.
        np.testing.assert_allclose(u["head"]["kernel"], 2 * alpha * params["head"]["kernel"], rtol=1e-14, atol=1e-15)


def test_time_under_a_learning_rate_schedule_is_its_sum(key):
    params, rates = tree(key), np.array([0.0, 0.1, 0.2, 0.4, 0.4, 0.1])
    step_size = lambda count: jnp.asarray(rates)[count]  # noqa: E731
    decay = optim.scheduled_weight_decay(mj.Constant(0.1), step_size=step_size)
    state: Any = decay.init(params)
    for n in range(len(rates)):
        np.testing.assert_allclose(state.time, rates[:n].sum(), rtol=1e-15)
        _, state = update(decay, zeros(params), state, params)
    assert state.count == len(rates)


def test_optax_schedules_are_read_at_the_count(key):
    params, schedule = tree(key), optax.linear_schedule(0.4, 0.0, 4)
    for n, u in enumerate(added(optim.scheduled_weight_decay(schedule), params, 6)):
        alpha = np.asarray(schedule(jnp.asarray(n, jnp.int32)), float)
        np.testing.assert_allclose(u["head"]["kernel"], 2 * alpha * params["head"]["kernel"], rtol=1e-15)


def test_a_million_float32_learning_rates_do_not_miss_a_switch_off():
    n, rate = 1_000_000, jnp.float32(1e-3)
    zero, never = jnp.zeros((), jnp.float32), optim.clock.never_pending
    state = optim.clock.ClockState(jnp.zeros((), jnp.int32), zero, zero, jnp.array(False), zero)
    state = jax.lax.fori_loop(0, n, lambda _, s: optim.clock.advance(s, rate, never, zero), state)
    exact = n * float(rate)
    # Compensated summation is off by a few roundings of the sum; plain summation is off by 0.9 here.
    assert abs(float(state.time) - exact) < 4 * np.finfo(np.float32).eps * exact


@pytest.mark.parametrize("nesterov", [False, True])
def test_switch_off_adamw_is_adamw_and_then_adam_bit_for_bit(key, nesterov):
    params, arguments = tree(key), {"weight_decay": 0.1, "mask": {"layer": True, "head": False}, "nesterov": nesterov}
    rate = optax.cosine_decay_schedule(1e-2, 10)
    switching = optim.switch_off_adamw(rate, **arguments, off_at=5)
    before, state = train(switching, loss, params, 5)
    assert_same(before, train(optax.adamw(rate, **arguments), loss, params, 5)[0])
    after, _ = train(switching, loss, before, 4, state)
    assert_same(after, train(optax.adam(rate, nesterov=nesterov), loss, before, 4, (state[0], state[2]))[0])
    still, _ = train(optax.adamw(rate, **arguments), loss, before, 4, (state[0], optax.MaskedState(()), state[2]))
    assert np.any(still["layer"]["kernel"] != after["layer"]["kernel"])


def test_switch_off_sgd_is_decayed_sgd_and_then_sgd_bit_for_bit(key):
    params = tree(key)
    switching = optim.switch_off_sgd(0.1, 0.9, weight_decay=0.1, off_at=5)
    before, state = train(switching, loss, params, 5)
    decayed = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, 0.9))
    assert_same(before, train(decayed, loss, params, 5)[0])
    after, _ = train(switching, loss, before, 4, state)
    assert_same(after, train(optax.sgd(0.1, 0.9), loss, before, 4, state[1])[0])


def test_never_off_and_off_at_once(key):
    params = tree(key)
    never = train(optim.switch_off_adamw(1e-2, off_at=jnp.inf), loss, params, 3)[0]
    assert_same(never, train(optax.adamw(1e-2), loss, params, 3)[0])
    at_once = train(optim.switch_off_adamw(1e-2, off_at=0), loss, params, 3)[0]
    assert_same(at_once, train(optax.adam(1e-2), loss, params, 3)[0])


def test_decoupled_is_adamw_in_the_theorys_convention(key):
    params = tree(key)
    ours = optim.decoupled_weight_decay(optax.adam(1e-2), 0.05, step_size=1e-2)
    # The same sum in another order: roundings only.
    theirs = train(optax.adamw(1e-2, weight_decay=0.1), loss, params, 5)[0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-15), train(ours, loss, params, 5)[0], theirs
    )


def test_coupled_decay_passes_through_the_optimizer(key):
    params = tree(key)
    ours = optim.coupled_weight_decay(optax.adam(1e-2), 0.05)
    regularized = lambda p: loss(p) + 0.05 * mj.WeightDecay()(p)  # noqa: E731
    theirs = train(optax.adam(1e-2), regularized, params, 5)[0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), train(ours, loss, params, 5)[0], theirs
    )


@pytest.mark.parametrize(
    "mask",
    ["*/kernel", ["layer/kernel", "head"], lambda p: jax.tree.map(lambda x: x.ndim > 1, p)],
    ids=["pattern", "patterns", "function"],
)
def test_masks_by_path_and_by_function(key, mask):
    params = tree(key)
    (u,) = added(optim.scheduled_weight_decay(0.5, mask=mask), params, 1)
    assert_same(u, params | {"layer": params["layer"] | {"bias": jnp.zeros(4)}})


def test_tensors_keep_their_dtypes_and_missing_gradients_stay_missing():
    params = {"low": jnp.ones(3, jnp.bfloat16), "single": jnp.ones(3, jnp.float32), "frozen": jnp.ones(3)}
    gradients = {"low": jnp.zeros(3, jnp.bfloat16), "single": jnp.zeros(3, jnp.float32), "frozen": None}
    decay = optim.scheduled_weight_decay(0.25)
    u, _ = update(decay, gradients, decay.init(params), params)
    assert (u["low"].dtype, u["single"].dtype, u["frozen"]) == (jnp.bfloat16, jnp.float32, None)
    assert float(u["low"][0]) == 0.5


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: optim.scheduled_weight_decay(-0.1), "alpha must be finite and non-negative, got -0.1"),
        (lambda: optim.scheduled_weight_decay(jnp.nan), "alpha must be finite and non-negative, got nan"),
        (lambda: optim.scheduled_weight_decay(mj.Constant(0.1)), "Constant is a function of the flow's time"),
        (lambda: optim.scheduled_weight_decay(0.1, step_size=0.1), "leave step_size out"),
        (lambda: optim.scheduled_weight_decay(mj.Constant(0.1), step_size=0.0), "step_size must be positive .* got 0"),
        (lambda: optim.decoupled_weight_decay(optax.sgd(1.0), 0.1, step_size=-1), "step_size must be positive"),
        (lambda: optim.switch_off_adamw(0.1, off_at=-1), "off_at must be non-negative, got -1"),
        (lambda: optim.switch_off_adamw(0.1, off_at=jnp.nan), "off_at must be non-negative, got nan"),
        (lambda: optim.switch_off_adamw(0.1, off_at=jnp.arange(3)), r"off_at must be a scalar, got shape \(3,\)"),
        (lambda: optim.switch_off_adamw(0.1, weight_decay=-1.0, off_at=3), "weight_decay must be finite and non-neg"),
        (
            lambda: optim.switch_off_sgd(0.1, weight_decay=mj.Constant(0.1), off_at=3),
            "weight_decay counts steps here, Constant is a function of the flow's time",
        ),
    ],
)
def test_bad_numbers_are_refused_when_the_optimizer_is_built(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_update_without_parameters_is_refused(key):
    params = tree(key)
    for decay in (optim.scheduled_weight_decay(0.1), optim.scheduled_weight_decay(0.1, mask="head")):
        with pytest.raises(ValueError, match=r"call optimizer.update\(gradients, state, params\)"):
            decay.update(zeros(params), decay.init(params))


def test_a_misspelt_pattern_is_refused_with_the_nearest_names(key):
    with pytest.raises(ValueError, match=r"'\*/kernal': the nearest of 3 are head/kernel, layer/kernel"):
        optim.scheduled_weight_decay(0.1, mask=["*/bias", "*/kernal"]).init(tree(key))


def test_what_only_the_compiled_step_knows_turns_the_update_into_nan(key):
    params = {"w": jnp.ones(2)}

    def first(strength: Array, off_at: Array) -> Array:
        optimizer = optim.switch_off_sgd(0.1, weight_decay=strength, off_at=off_at)
        return update(optimizer, zeros(params), optimizer.init(params), params)[0]["w"][0]

    values = jax.jit(jax.vmap(first))(jnp.array([0.1, -0.1, 0.1, 0.1]), jnp.array([1.0, 1.0, -1.0, jnp.nan]))
    np.testing.assert_array_equal(np.isnan(values), [False, True, True, True])
    (_, last) = added(optim.scheduled_weight_decay(optax.linear_schedule(0.1, -0.1, 1)), params, 2)
    assert np.all(np.isnan(last["w"]))
