"""Schedules: strength, exact integral, breakpoints, derivatives, batching, what is refused."""

from functools import cache, partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from registry import SCHEDULES
from scipy.integrate import quad

from mirrorjax.problem import (
    Constant,
    CosineDecay,
    CustomSchedule,
    FromOptax,
    LinearDecay,
    Piecewise,
    Sum,
    SwitchOff,
)
from mirrorjax.problem.problem import _as_schedule

names = pytest.mark.parametrize("name", SCHEDULES)
TIMES = (0.0, 0.1, 0.4, 0.5, 0.999, 1.0, 1.2, 1.699, 1.7, 1.9, 3.0, 40.0)


SLOPES_AT = (0.0, 0.2, 1.1, 1.7, 2.5)


@cache
def everything(name):
    """The schedule at TIMES: strengths, integrals, validity; its breakpoints; slopes in it and in t; by one program."""
    schedule = SCHEDULES[name].build(0.3)

    @eqx.filter_jit
    def program(traced, times, ts):
        functions = (type(schedule).__call__, type(schedule).integral)
        slopes = [eqx.filter_grad(lambda st, function=function: function(*st)) for function in functions]
        return {
            "strength": jax.vmap(schedule)(times),
            "integral": jax.vmap(schedule.integral)(times),
            "valid": traced.valid(times[-2]),
            "breakpoints": schedule.breakpoints,
            "slopes": jax.vmap(lambda t: [slope((traced, t)) for slope in slopes])(ts),
        }

    return schedule, program(schedule, np.array(TIMES), np.array(SLOPES_AT))


# Functions of any schedule, compiled once for all tests that hand them one of the same structure.
strengths = eqx.filter_jit(lambda schedule, ts: jax.vmap(schedule)(ts))
integrals = eqx.filter_jit(lambda schedule, ts: jax.vmap(schedule.integral)(ts))
is_valid = eqx.filter_jit(lambda schedule, t: schedule.valid(t))


@names
def test_strength(name):
    entry, (schedule, found) = SCHEDULES[name], everything(name)
    # One rounding of t / step_size, times slopes of order one.
    np.testing.assert_allclose(found["strength"], [0.3 * entry.strength(t) for t in TIMES], rtol=1e-13, atol=1e-15)
    assert bool(found["valid"])
    schedule.check(3.0)


@names
def test_integral_against_quadrature(name):
    entry = SCHEDULES[name]
    for t, value in zip(TIMES, np.asarray(everything(name)[1]["integral"]), strict=True):
        kinks = [k for k in entry.t_kinks if k < t]
        expected, error = quad(entry.strength, 0.0, t, points=kinks or None, epsabs=1e-13, epsrel=1e-13, limit=200)
        # At t = 40 the decaying exponential spans 40 half-lives, which 8 panels of 16 nodes resolve to 1e-12.
        np.testing.assert_allclose(value, 0.3 * expected, rtol=1e-12, atol=1e-14 + 0.3 * error)


@names
def test_breakpoints_are_the_kinks(name):
    breakpoints = np.asarray(everything(name)[1]["breakpoints"])
    reachable = [float(b) for b in breakpoints if 0 < b < np.inf]
    np.testing.assert_allclose(reachable, SCHEDULES[name].t_kinks, rtol=1e-15)
    assert np.all(np.diff(breakpoints) >= 0)


@names
def test_integral_is_differentiable_in_every_leaf(name):
    """Against central differences, at a time before, between and after the kinks."""
    if name.startswith("optax") or name.endswith(("at_once", "never", "never_off")):
        pytest.skip(
            "numbers inside the optax schedule are not leaves; at t_off = 0 and inf only finiteness is asked for"
        )
    schedule = SCHEDULES[name].build(0.3)
    leaves, treedef = jax.tree.flatten(schedule)

    @jax.jit  # traced, where a breakpoint that is moved off its kink is no error
    def integral(leaves, t):
        return jax.tree.unflatten(treedef, leaves).integral(t)

    for t in np.array([0.2, 1.3, 2.5]):
        # The integrals are smooth away from the kinks; central differences at 1e-6 are good to 1e-9.
        check_grads(partial(integral, t=t), (leaves,), order=1, atol=1e-7, rtol=1e-7, eps=1e-6)


@names
def test_derivatives_are_finite_everywhere_and_in_t_of_the_integral_the_strength(name):
    found = everything(name)[1]["slopes"]
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))
    inside = [1, 2, 4]  # away from 0 and the kinks
    expected = [0.3 * SCHEDULES[name].strength(SLOPES_AT[i]) for i in inside]
    np.testing.assert_allclose(np.asarray(found[1][1])[inside], expected, rtol=1e-10, atol=1e-12)


def test_piecewise_by_hand():
    schedule = Piecewise([1.0, 3.0, jnp.inf], [2.0, 0.5, 0.0, 7.0])
    ts = np.array([0.0, 0.5, 1.0, 2.0, 3.0, 100.0])
    np.testing.assert_array_equal(strengths(schedule, ts), [2.0, 2.0, 0.5, 0.5, 0.0, 0.0])
    np.testing.assert_allclose(integrals(schedule, ts), [0.0, 1.0, 2.0, 2.5, 3.0, 3.0], rtol=1e-15)


def test_piecewise_without_breakpoints_is_constant():
    schedule = Piecewise([], [0.4])
    assert strengths(schedule, np.array([2.0])) == 0.4
    assert integrals(schedule, np.array([2.0])) == 0.8


def test_whole_integrals():
    for build, share in ((SwitchOff, 1.0), (LinearDecay, 0.5), (CosineDecay, 0.5)):
        np.testing.assert_allclose(integrals(build(20.0, 0.625), np.array([1e4])), share * 12.5, rtol=1e-15)


@pytest.mark.parametrize("alpha", [-0.1, jnp.nan, jnp.inf])
@pytest.mark.parametrize(
    "build", [Constant, *(lambda a, b=b: b(a, 1.0) for b in (SwitchOff, LinearDecay, CosineDecay))]
)
def test_bad_strengths_are_refused(build, alpha):
    with pytest.raises(ValueError, match=f"alpha must be finite and non-negative, got {alpha}"):
        build(alpha)


@pytest.mark.parametrize("t_off", [-1.0, jnp.nan])
@pytest.mark.parametrize("build", [SwitchOff, LinearDecay, CosineDecay])
def test_bad_times_are_refused(build, t_off):
    with pytest.raises(ValueError, match=f"t_off must be non-negative, got {t_off}"):
        build(1.0, t_off)


def test_arrays_of_strengths_are_refused_with_advice():
    with pytest.raises(ValueError, match=r"alpha must be a scalar, got shape \(2,\).*vmap"):
        Constant(jnp.ones(2))


@pytest.mark.parametrize(
    ("times", "values", "words"),
    [
        ([1.0], [1.0], r"k times and k \+ 1 values, got shapes \(1,\) and \(1,\)"),
        ([2.0, 1.0], [1.0, 0.5, 0.0], r"times must increase, got \[2. 1.\]"),
        ([-1.0], [1.0, 0.0], r"times must be non-negative, got \[-1.\]"),
        ([jnp.nan], [1.0, 0.0], r"times must be non-negative, got \[nan\]"),
        ([1.0], [1.0, -2.0], r"values must be finite and non-negative, got \[ 1. -2.\]"),
        ([1.0], [1.0, jnp.inf], "values must be finite and non-negative"),
    ],
)
def test_bad_pieces_are_refused(times, values, words):
    with pytest.raises(ValueError, match=words):
        Piecewise(times, values)


@pytest.mark.parametrize("build", [SwitchOff, LinearDecay, CosineDecay])
def test_batched_by_vmap(build):
    """A whole grid, with values that only a status can refuse: those lanes say so, the others are right."""
    alphas, t_offs = np.array([0.5, -1.0, 0.5, np.nan, 2.0]), np.array([1.0, 1.0, np.nan, 1.0, 0.0])

    @jax.jit
    def program(alphas, t_offs):
        batch = jax.vmap(build)(alphas, t_offs)
        return jax.vmap(lambda s: (s.valid(3.0), s.integral(0.7)))(batch)

    valid, batched = program(alphas, t_offs)
    np.testing.assert_array_equal(valid, [True, False, False, False, True])
    for i in (0, 4):
        np.testing.assert_array_equal(batched[i], integrals(build(alphas[i], t_offs[i]), np.array([0.7]))[0])


def test_new_values_do_not_retrace():
    @eqx.filter_jit
    @eqx.debug.assert_max_traces(max_traces=1)
    def spent(schedule, t):
        return schedule.integral(t)

    later = jnp.array(2.0)
    for alpha, t_off in ((0.3, 1.0), (2, 5), (np.float32(0.1), jnp.inf), (jnp.array(0.0), 0.0)):
        spent(SwitchOff(alpha, t_off), later)


def test_from_optax_counts_steps():
    schedule = FromOptax(optax.linear_schedule(1.0, 0.0, 100), step_size=0.25, boundaries=[100])
    np.testing.assert_allclose(strengths(schedule, np.array([10.0])), 0.6, rtol=1e-15)  # 40 steps
    np.testing.assert_array_equal(schedule.breakpoints, [25.0])
    np.testing.assert_allclose(integrals(schedule, np.array([1000.0])), 12.5, rtol=1e-14)


def joined():
    return optax.join_schedules([optax.constant_schedule(1.0), optax.constant_schedule(0.1)], [10])


@pytest.mark.parametrize(
    "schedule",
    [
        joined(),
        optax.piecewise_constant_schedule(1.0, {10: 0.1}),
        optax.exponential_decay(1.0, 5, 0.5, staircase=True),
        optax.linear_schedule(1.0, 0.0, 10),
        optax.cosine_decay_schedule(1.0, 10),
    ],
)
def test_undeclared_boundaries_are_refused(schedule):
    with pytest.raises(ValueError, match=r"not resolved.*boundaries="):
        FromOptax(schedule, 0.1).check(3.1)


def test_declared_boundaries_are_taken():
    schedule = FromOptax(joined(), 0.1, boundaries=[10])
    schedule.check(3.1)
    np.testing.assert_allclose(integrals(schedule, np.array([3.1])), 1.0 + 0.21, rtol=1e-14)
    FromOptax(joined(), 0.1).check(0.9)  # ends before the boundary


@pytest.mark.parametrize("schedule", [joined(), optax.linear_schedule(1.0, -1.0, 30)])
def test_traced_optax_schedules_are_not_valid(schedule):
    """Where the end is traced nothing can be raised: undeclared boundaries and negative strengths make a status."""
    ends = np.array([0.9, 3.1])
    valid = jax.jit(jax.vmap(lambda t1: FromOptax(schedule, 0.1).valid(t1)))(ends)
    np.testing.assert_array_equal(valid, [True, False])


def test_sum_refuses_what_is_no_schedule():
    with pytest.raises(ValueError, match="one or more schedules"):
        Sum()


def test_negative_optax_strengths_are_refused():
    schedule = FromOptax(optax.linear_schedule(1.0, -1.0, 10), 0.1, boundaries=[10])
    with pytest.raises(ValueError, match=r"gives the strength -1.0 at t = 1"):
        schedule.check(3.0)
    schedule.check(0.5)


@pytest.mark.parametrize("step_size", [0.0, -1.0, jnp.nan, jnp.inf])
def test_bad_step_sizes_are_refused(step_size):
    with pytest.raises(ValueError, match=f"step_size must be positive and finite, got {step_size}"):
        FromOptax(optax.constant_schedule(1.0), step_size)


def test_from_optax_is_differentiable_in_its_step_size():
    @jax.jit
    def spent(step_size):
        schedule = FromOptax(optax.cosine_decay_schedule(0.3, 17), step_size, boundaries=[17])
        return schedule.integral(1.2)

    check_grads(spent, (jnp.array(0.1),), order=1, atol=1e-6, rtol=1e-6, eps=1e-6)


@pytest.mark.parametrize("fn", [lambda t: jnp.where(t < 1.0, 1.0, 0.1), lambda t: jnp.abs(t - 1.0) ** 0.5])
def test_custom_schedules_with_undeclared_jumps_are_refused(fn):
    with pytest.raises(ValueError, match=r"not resolved to 1e-08.*CustomSchedule\(fn, breakpoints="):
        CustomSchedule(fn).check(3.1)
    assert not is_valid(CustomSchedule(fn), 3.1)
    assert is_valid(CustomSchedule(lambda t: jnp.where(t < 1.0, 1.0, 0.1), [1.0]), 3.1)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: CustomSchedule(lambda t: jnp.ones(2)), r"must return one real number, got .*shape=\(2,\)"),
        (lambda: CustomSchedule(lambda t: (t, t)), "must return one real number"),
        (lambda: CustomSchedule(lambda t: t, [-1.0]), r"breakpoints must be non-negative, got \[-1.\]"),
        (
            lambda: CustomSchedule(lambda t: t - 1.0).check(2.0),
            "CustomSchedule schedule gives the strength -1.0 at t = 0",
        ),
    ],
)
def test_bad_custom_schedules_are_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_functions_given_as_alpha_are_refused_with_both_remedies():
    with pytest.raises(ValueError, match=r"alpha must be a schedule.*CustomSchedule\(fn.*FromOptax\(fn, step_size\)"):
        _as_schedule(lambda t: t)  # Problem would be refused by the type checker of the tests
