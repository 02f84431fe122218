"""Schedules: bad numbers and functions, counts of steps taken for times, integrals that once were wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from faults_table import Refusal, Right, table

import mirrorjax as mj


def with_optax(schedule, t1, step_size=0.25, boundaries=()):
    return mj.FromOptax(schedule, step_size, boundaries).check(t1)


def last_two(count):
    return jnp.where(count >= 9998, 1.0, 0.0)


def two_arguments(one, other):
    return one + other


STRENGTHS = [
    Refusal("a key", lambda: mj.Constant(jax.random.key(0)), "alpha must be .* got a random key"),
    Refusal("t_off is a string", lambda: mj.SwitchOff(0.1, "1"), "t_off must be a number .* got '1'"),
    Refusal("t_off is a list", lambda: mj.CosineDecay(0.1, [1.0]), "t_off must be a scalar"),
    Refusal("t_off is negative", lambda: mj.LinearDecay(0.1, -1), "t_off must be non-negative, got -1"),
    Refusal("Sum of a number", lambda: mj.Sum(mj.Constant(0.1), 0.2), "Sum takes one or more schedules"),
    Refusal("Sum of a list", lambda: mj.Sum([mj.Constant(0.1)]), "Sum takes one or more schedules"),
    Refusal("Piecewise strings", lambda: mj.Piecewise(["a"], [1.0, 0.0]), r"times must be a number .*\['a'\]"),
    Refusal("Piecewise values of strings", lambda: mj.Piecewise([1.0], "ab"), "values must be a number"),
    Refusal("Piecewise None", lambda: mj.Piecewise(None, [1.0]), "times must be a number .* got None"),
    Refusal("Piecewise ragged", lambda: mj.Piecewise([1.0], [[1.0], [1.0, 2.0]]), "values must be a number"),
    Refusal("Piecewise falls back", lambda: mj.Piecewise([2.0, 1.0], [1.0, 1.0, 1.0]), "times must increase"),
    Refusal("Piecewise of a NaN time", lambda: mj.Piecewise([np.nan], [1.0, 0.0]), "times must be non-negative"),
    *(
        Refusal(
            f"a count of steps, {name}",
            lambda schedule=schedule: schedule(jnp.asarray(3, jnp.int32)),
            f"{name} is a function of the flow's time, a float, got t = 3 of dtype int32; .* multiply it by the step",
        )
        for name, schedule in {
            "Constant": mj.Constant(0.1),
            "SwitchOff": mj.SwitchOff(0.25, 3e-2),
            "LinearDecay": mj.LinearDecay(0.1, 1.0),
            "CosineDecay": mj.CosineDecay(0.1, 1.0),
            "Piecewise": mj.Piecewise([1.0], [1.0, 0.0]),
            "Sum": mj.Sum(mj.Constant(0.1)),
            "FromOptax": mj.FromOptax(optax.constant_schedule(0.1), 0.1),
            "CustomSchedule": mj.CustomSchedule(jnp.exp),
        }.items()
    ),
    Refusal(
        "a Python integer",
        lambda: mj.SwitchOff(0.1, 1.0)(3),
        r"got t = 3 of dtype int.*write a float such as 3\.0",
    ),
    Refusal("a NumPy integer", lambda: mj.SwitchOff(0.1, 1.0)(np.int64(3)), "a function of the flow's time"),
    Refusal("a boolean time", lambda: mj.SwitchOff(0.1, 1.0)(True), "got t = True of dtype bool"),
    Refusal("a time of strings", lambda: mj.SwitchOff(0.1, 1.0)("1"), "t must be a number"),
    Refusal(
        "counts under vmap",
        lambda: jax.vmap(mj.Constant(0.1))(jnp.arange(3)),
        "Constant is a function of the flow's",
    ),
    Refusal(
        "a schedule of time as an optax learning rate",
        lambda: optax.sgd(mj.CosineDecay(0.1, 1.0)).update(
            jnp.ones(1), optax.sgd(mj.CosineDecay(0.1, 1.0)).init(jnp.ones(1))
        ),
        "CosineDecay is a function of the flow's time",
    ),
]

GIVEN = [
    Refusal(
        "on in the first step only",
        lambda: with_optax(optax.piecewise_constant_schedule(12.0, {1: 0.0}), 1250.0),
        r"integral of the FromOptax schedule up to t1 = 1250.0 is not resolved.*boundaries=\[",
    ),
    Refusal(
        "its integral too",
        lambda: mj.FromOptax(optax.piecewise_constant_schedule(12.0, {1: 0.0}), 0.25).integral(1250.0),
        "is not resolved",
    ),
    Refusal("on in the last two of 10,000 steps", lambda: with_optax(last_two, 2500.0), "is not resolved"),
    Refusal(
        "a warm-up of 2 in 20,000 steps",
        lambda: with_optax(optax.linear_schedule(0.0, 1.0, 2), 5000.0),
        "is not resolved",
    ),
    Refusal(
        "one step in the middle of 100,000",
        lambda: with_optax(lambda count: jnp.where((count >= 43_210) & (count < 43_211), 1.0, 0.1), 25_000.0),
        "is not resolved",
    ),
    Refusal(
        "negative in one step of 10,000",
        lambda: with_optax(lambda count: jnp.where((count >= 7) & (count < 8), -1.0, 0.1), 2500.0),
        r"gives the strength -1.0 at t = 1\.",
    ),
    Refusal(
        "negative at the end",
        lambda: with_optax(optax.linear_schedule(1.0, -1.0, 10), 2.0),
        "gives the strength -",
    ),
    Refusal(
        "FromOptax of a vector",
        lambda: mj.FromOptax(lambda count: jnp.ones(3), 0.1),
        "function of FromOptax must return one real number, got .*3",
    ),
    Refusal(
        "FromOptax of None",
        lambda: mj.FromOptax(lambda count: None, 0.1),
        "must return one real number, got None",
    ),
    Refusal(
        "FromOptax of a string",
        lambda: mj.FromOptax(lambda count: "a", 0.1),
        "must return one real number, got a",
    ),
    Refusal(
        "FromOptax of a boolean",
        lambda: mj.FromOptax(lambda count: count > 3, 0.1),
        "must return one real number",
    ),
    Refusal("FromOptax of a number", lambda: mj.FromOptax(0.3, 0.1), "FromOptax takes a function of the step count"),
    Refusal(
        "FromOptax of two arguments",
        lambda: mj.FromOptax(two_arguments, 0.1),
        r"a function of one argument, the step count, got one of the arguments \(one, other\)",
    ),
    Refusal(
        "FromOptax of an if",
        lambda: mj.FromOptax(lambda count: 1.0 if count < 3 else 0.0, 0.1),
        "of FromOptax needs",
    ),
    Refusal("FromOptax of numpy", lambda: mj.FromOptax(np.cos, 0.1), "the function of FromOptax needs the value"),
    Refusal(
        "FromOptax of a schedule of time",
        lambda: mj.FromOptax(mj.SwitchOff(0.1, 1.0), 0.1),
        "SwitchOff is one of the flow's time: use it as it is",
    ),
    Refusal(
        "a boundary of strings",
        lambda: mj.FromOptax(jnp.exp, 0.1, ["a"]),
        r"boundaries must be a number .*\['a'\]",
    ),
    Refusal("a boundary as a number", lambda: mj.FromOptax(jnp.exp, 0.1, 3), "boundaries must be a list of numbers"),
    Refusal("a boundary twice", lambda: mj.FromOptax(jnp.exp, 0.1, [3, 3]), "boundaries must differ from each other"),
    Refusal("a step size of strings", lambda: mj.FromOptax(jnp.exp, "a"), "step_size must be a number"),
    Refusal("a step size of 0", lambda: mj.FromOptax(jnp.exp, 0), "step_size must be positive"),
    Refusal(
        "on at the start",
        lambda: mj.CustomSchedule(lambda t: jnp.where(t < 1e-3, 12.0, 0.0)).check(1250.0),
        r"integral of the CustomSchedule schedule .*CustomSchedule\(fn, breakpoints=",
    ),
    Refusal(
        "on at the end",
        lambda: mj.CustomSchedule(lambda t: jnp.where(t > 1249.99, 12.0, 0.0)).integral(1250.0),
        "is not resolved",
    ),
    Refusal("CustomSchedule of an if", lambda: mj.CustomSchedule(lambda t: 1.0 if t < 3 else 0.0), "needs the value"),
    Refusal("CustomSchedule of a string", lambda: mj.CustomSchedule("t"), "takes a function of the time t, got 't'"),
    Refusal("CustomSchedule of two arguments", lambda: mj.CustomSchedule(two_arguments), "one argument, the time t"),
    Refusal(
        "CustomSchedule that is inf",
        lambda: mj.CustomSchedule(lambda t: 1 / t).check(1.0),
        "gives the strength inf at t = 0",
    ),
]


@table([*STRENGTHS, *GIVEN])
def test_refusals(row):
    row.check()


def integral(schedule, t1, boundaries, step_size=0.25):
    made = mj.FromOptax(schedule, step_size, boundaries)
    made.check(t1)
    return made.integral(jnp.asarray(t1))


def steps_summed(schedule, n, step_size=0.25, parts=64):
    """The integral over n steps as a midpoint sum in NumPy: exact for steps and slopes, 1e-4 / parts^2 for a cosine."""
    counts = (np.arange(n * parts) + 0.5) / parts
    return np.sum(np.asarray(schedule(counts), float)) * step_size / parts


RIGHTS = [
    Right(
        "on in the first step only, declared",
        lambda: (integral(optax.piecewise_constant_schedule(12.0, {1: 0.0}), 1250.0, [1]), 3.0),
        rtol=1e-12,
    ),
    Right(
        "on in the last two of 10,000 steps, declared",
        lambda: (
            integral(last_two, 2500.0, [9998]),
            steps_summed(lambda c: np.where(c >= 9998, 1.0, 0.0), 10_000, parts=1),
        ),
        rtol=1e-12,
    ),
    Right(
        "a warm-up of 2 in 20,000 steps, declared",
        lambda: (
            integral(optax.linear_schedule(0.0, 1.0, 2), 5000.0, [2]),
            steps_summed(lambda c: np.minimum(c / 2, 1.0), 20_000),
        ),
        rtol=1e-12,
    ),
    Right(
        "a million steps",
        lambda: (
            integral(optax.linear_schedule(1.0, 0.0, 1_000_000), 250_000.0, [1_000_000]),
            steps_summed(lambda c: 1 - c / 1e6, 1_000_000, parts=1),
        ),
        rtol=1e-12,
    ),
    Right(
        "a boundary inside a step",
        lambda: (integral(lambda count: jnp.where(count < 10.5, 1.0, 0.1), 10.0, [10.5]), 0.25 * (10.5 + 0.1 * 29.5)),
        rtol=1e-12,
    ),
    Right(
        "a cosine over three steps",
        lambda: (integral(optax.cosine_decay_schedule(1.0, 3), 2.0, [3]), 0.25 * 1.5),
        rtol=1e-12,
    ),
    Right(
        "the strength of equal times",
        lambda: (jax.vmap(mj.Piecewise([1.0, 1.0], [3.0, 2.0, 0.5]))(jnp.array([0.5, 1.0])), [3.0, 0.5]),
        rtol=1e-15,
    ),
    Right(
        "the integral of equal times",
        lambda: (mj.Piecewise([1.0, 1.0], [3.0, 2.0, 0.5]).integral(2.0), 3.5),
        rtol=1e-15,
    ),
    Right(
        "the derivative of an optax schedule in its own number",
        lambda: (
            jax.grad(lambda a: mj.FromOptax(optax.cosine_decay_schedule(a, 17), 0.1, [17]).integral(jnp.asarray(1.7)))(
                0.3
            ),
            0.85,  # a t_off / 2
        ),
        rtol=1e-12,
    ),
    Right(
        "a batch of optax schedules",
        lambda: (
            jax.vmap(lambda a: mj.FromOptax(optax.linear_schedule(a, 0.0, 10), 0.1, [10]).integral(jnp.asarray(3.0)))(
                jnp.array([1.0, 2.0])
            ),
            [0.5, 1.0],
        ),
        rtol=1e-12,
    ),
]


@table(RIGHTS)
def test_rights(row):
    row.check()


@pytest.mark.parametrize(
    "schedule", [optax.piecewise_constant_schedule(12.0, {1: 0.0}), last_two, optax.linear_schedule(0.0, 1.0, 2)]
)
def test_where_the_end_is_traced_an_undeclared_boundary_is_a_status(schedule):
    ends = jnp.array([2500.0, 0.2])  # the second end comes before any boundary but that of the warm-up
    valid = jax.jit(jax.vmap(mj.FromOptax(schedule, 0.25).valid))(ends)
    np.testing.assert_array_equal(valid, [False, True])


def shares(a, b):
    """The derivative of a solve in two switch-off times at which it is not smooth to look at, only at their sum."""
    schedule = mj.Sum(mj.SwitchOff(0.3, a), mj.SwitchOff(0.1, b))
    return schedule.breakpoints @ jnp.array([1.0, 0.0])


def test_equal_breakpoints_share_their_derivative_by_their_jumps():
    """A solver ends one step there: what depends on the first breakpoint depends on both."""
    np.testing.assert_allclose(jax.grad(shares, (0, 1))(1.0, 1.0), (0.75, 0.25), rtol=1e-12)
    np.testing.assert_allclose(jax.grad(shares, (0, 1))(1.0, 2.0), (1.0, 0.0), rtol=1e-12)
    np.testing.assert_allclose(jax.grad(shares, (0, 1))(jnp.inf, jnp.inf), (0.0, 0.0))
    nested = lambda a, b: mj.Sum(mj.Sum(mj.Constant(0.1), mj.SwitchOff(0.2, a)), mj.SwitchOff(0.2, b)).breakpoints[1]  # noqa: E731
    np.testing.assert_allclose(jax.grad(nested, (0, 1))(1.0, 1.0), (0.5, 0.5), rtol=1e-12)
    pieces = lambda t: mj.Piecewise(t, [3.0, 2.0, 0.5]).breakpoints[0]  # noqa: E731
    np.testing.assert_allclose(jax.grad(pieces)(jnp.array([1.0, 1.0])), (0.4, 0.6), rtol=1e-12)
