"""Hand-made and learned schedules: what they spend, that gradients are right, and that test data choose nothing."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from mirrorjax.experiments.theory.schedule_tasks import (
    SHAPES,
    Learned,
    Sensing,
    SparseRegression,
    hand_made,
    limit,
    on_pieces,
)
from mirrorjax.experiments.theory.schedules import (
    Size,
    best_hand_made,
    candidates,
    confidence,
    differentiated,
    draw,
    gradient_gap,
    improve,
    learn,
    try_hand_made,
)

TASK = SparseRegression(n=8, d=10, t1=8.0, totals=(1.0, 3.0))
SEEDS = jnp.arange(3)


# One program each, for schedules of every shape.
made = jax.jit(hand_made, static_argnums=3)  # t1 is a plain number
strength_at = jax.jit(lambda schedule, t: schedule(t))
spent_at = jax.jit(lambda schedule, t: schedule.integral(t))


@pytest.mark.parametrize("shape", range(len(SHAPES)), ids=SHAPES)
def test_every_shape_spends_the_total_and_is_what_its_name_says(shape):
    t1, t_off, total = 12.0, 8.0, 3.0
    schedule = made(shape, total, t_off, t1)
    strength = functools.partial(strength_at, schedule)
    # scipy's adaptive quadrature, told of the kinks, as the oracle of the exact integral.
    spent, _ = integrate.quad(lambda t: float(strength(t)), 0.0, t1, points=[0.25 * t_off, t_off], epsabs=1e-10)
    np.testing.assert_allclose(spent, total, rtol=1e-8)
    np.testing.assert_allclose(spent_at(schedule, t1), total, rtol=1e-12)
    start, middle, late, end = (float(strength(t)) for t in (0.0, 0.5 * t_off, 0.99 * t_off, 1.01 * t_off))
    name = SHAPES[shape]
    assert (end == 0) == (name not in ("constant, never off", "exponential"))
    if name.startswith("constant"):
        assert start == middle == late
    elif name.startswith("warm-up"):
        assert start == 0 < middle == late
    else:
        assert start > middle > late
    # Half-way down: linear and cosine at a half, the exponential at e^-1.5.
    halves = {"linear": 0.5, "cosine": 0.5, "exponential": np.exp(-1.5)}
    np.testing.assert_allclose(middle, halves.get(name, 1.0) * max(start, middle), rtol=1e-12)


def test_pieces_spend_what_the_schedule_does():
    schedule = made(SHAPES.index("cosine"), 3.0, 8.0, 12.0)
    pieces = jax.jit(lambda schedule: on_pieces(schedule, 8.0, 5).schedule)(schedule)
    for t in (1.6, 3.2, 8.0, 12.0):
        # The last piece of a cosine is small, but above the floor of 1e-3 of the mean.
        np.testing.assert_allclose(spent_at(pieces, t), spent_at(schedule, t), rtol=1e-12)
    np.testing.assert_array_equal(strength_at(pieces, 8.5), 0.0)


def test_every_shape_is_tried_at_every_total():
    tried = candidates(TASK)
    pairs = set(zip(tried["shape"].tolist(), tried["total"].tolist(), strict=True))
    assert pairs == {(shape, total) for shape in range(len(SHAPES)) for total in TASK.totals}
    assert all(len(values) == 2 * (1 + 2 * 5) for values in tried.values())


@pytest.mark.parametrize("task", [TASK, Sensing(n=4, m=10)], ids=["regression", "sensing"])
def test_training_validation_and_test_data_are_different_draws_of_one_task(task):
    sample = draw(task, SEEDS)
    rows = sample.train.y.shape[1]
    assert (sample.validation.y.shape[1], sample.test.y.shape[1]) == (5 * rows, 25 * rows)
    together = np.concatenate([part.y for part in (sample.train, sample.validation, sample.test)], axis=1)
    assert np.unique(together).size == together.size


def test_confidence_is_that_of_student():
    values = np.random.default_rng(0).normal(2.0, 1.0, 10)
    mean, width = confidence(values)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    np.testing.assert_allclose((mean - width, mean + width), (expected.low, expected.high), rtol=1e-12)


@pytest.fixture(scope="module")
def evaluated():
    """Errors and gradients of the predicted limit: one compiled program for the tests that improve through it."""
    return differentiated(lambda log_total, sample: limit(TASK, log_total, sample))


@pytest.mark.slow
def test_gradients_through_the_predicted_limit_agree_with_finite_differences(evaluated):
    # Nothing is integrated: fourth order in 1e-3, and rounding over 1e-3.
    assert gradient_gap(evaluated, jnp.log(jnp.array([0.5, 1.0, 2.0])), draw(TASK, SEEDS)) < 1e-8


def test_improving_keeps_the_best_for_each_seed_and_never_looks_at_test_data(evaluated):
    samples = draw(TASK, SEEDS)
    start = jnp.log(jnp.array([0.5, 2.0, 4.0]))
    first, _ = evaluated(start, samples)
    best, kept = improve(evaluated, start, samples, 5)
    assert np.all(kept.validation <= first.validation)
    assert np.any(kept.validation < first.validation)
    again, _ = evaluated(best, samples)
    np.testing.assert_allclose(again.validation, kept.validation, rtol=1e-12)
    spoiled = eqx.tree_at(lambda s: s.test.y, samples, samples.test.y + 100.0)
    elsewhere, worse = improve(evaluated, start, spoiled, 5)
    np.testing.assert_array_equal(elsewhere, best)
    assert np.all(worse.test > kept.test + 1000)


@pytest.mark.slow
def test_learning_starts_at_the_best_hand_made_schedule_and_improves_on_it():
    samples = draw(TASK, SEEDS)
    tried = try_hand_made(TASK, samples, SEEDS)
    assert np.all(tried.status.values == "successful")
    chosen = best_hand_made(tried)
    np.testing.assert_array_equal(tried.validation.values[chosen, range(3)], tried.validation.min("candidate"))
    _, rows = learn(TASK, samples, tried, Size({}, 3, 8))
    table = {row["schedule"]: row for row in rows}
    assert set(table) == {*SHAPES, "best hand-made", "learned"}
    assert table["learned"]["validation"] < table["best hand-made"]["validation"]
    # The difference in the table is the mean of the differences, so the difference of the means.
    difference = table["learned"]["test"] - table["best hand-made"]["test"]
    np.testing.assert_allclose(table["learned"]["difference"], difference, rtol=1e-9)
    # Of all strengths and the switch-off time together, against differences of 1e-3: the solver's 1e-8 a step over
    # 1e-3, on derivatives of order 0.1 and more.
    assert table["learned"]["gradient_gap"] < 1e-4


def test_a_failed_flow_has_no_error_but_missing_numbers():
    """A strength that overflows is a status, not a number: the errors are NaN and marked."""
    sample = jax.tree.map(lambda leaf: leaf[0], draw(TASK, SEEDS))
    overflows = Learned(jnp.array([1000.0, 0.0]), jnp.array(1.0))
    measured = eqx.filter_jit(lambda learned: TASK.end(learned.schedule, sample))(overflows)
    assert not measured.ok
    assert jnp.isnan(measured.validation)
    assert jnp.isnan(measured.test)
