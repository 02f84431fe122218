"""Bad parts of a problem, and numbers of schedules that once were wrong."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from faults_table import Refusal, Right, table

import mirrorjax as mj

W = (jnp.ones(2), jnp.zeros(2))
F = mj.LeastSquares(np.eye(2), np.ones(2))


def problem(g=None, h=None, alpha=0.1, objective=F):
    return mj.Problem(g or mj.Hadamard(), h or mj.WeightDecay(), alpha, objective)


def checked(g=None, h=None, alpha=0.1, objective=F, w=W, t1=1.0):
    """Checks a problem as `solve` does before it compiles."""
    problem(g, h, alpha, objective).check(w, t1)


def with_optax(schedule, t1, step_size=0.25, boundaries=()):
    return mj.FromOptax(schedule, step_size, boundaries).check(t1)


def last_two(count):
    return jnp.where(count >= 9998, 1.0, 0.0)


def nonnegative(w):
    return jnp.sum(w[0]) if w[0][0] > 0 else jnp.sum(w[1])


def numpy_sum(w):
    return np.sum(np.asarray(w[0]))


def two_arguments(one, other):
    return one + other


STRENGTHS = [
    *(
        Refusal(f"alpha {value!r}", lambda value=value: problem(alpha=value), says)
        for value, says in {
            "a": "alpha must be a number or an array of numbers, got 'a'",
            None: "alpha must be a number or an array of numbers, got None",
            1j: "alpha must be real",
            True: "alpha must be real",
            -1.0: "alpha must be finite and non-negative, got -1.0",
            np.nan: "alpha must be finite and non-negative, got nan",
            (1.0, 2.0): "alpha must be a scalar",
        }.items()
    ),
    Refusal(
        "alpha is a class",
        lambda: problem(alpha=mj.SwitchOff),
        r"alpha must be .* the class SwitchOff itself; call it",
    ),
    Refusal("alpha is a function", lambda: problem(alpha=jnp.sin), r"CustomSchedule\(fn.*FromOptax\(fn"),
    Refusal("a key", lambda: mj.Constant(jax.random.key(0)), "alpha must be .* got a random key"),
    Refusal("t_off is a string", lambda: mj.SwitchOff(0.1, "1"), "t_off must be a number .* got '1'"),
    Refusal("t_off is a list", lambda: mj.CosineDecay(0.1, [1.0]), "t_off must be a scalar"),
    Refusal("t_off is negative", lambda: mj.LinearDecay(0.1, -1), "t_off must be non-negative, got -1"),
    Refusal(
        "an infinite integral",
        lambda: checked(alpha=1e308, t1=10.0),
        r"alpha is too strong: int_0\^t1 alpha is inf",
    ),
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
        lambda: optax.sgd(mj.CosineDecay(0.1, 1.0)).update(W, optax.sgd(mj.CosineDecay(0.1, 1.0)).init(W)),
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

REGULARIZERS = [
    Refusal(
        "h is a class",
        lambda: problem(h=mj.WeightDecay),
        "h must be .* got the class WeightDecay itself; call it",
    ),
    Refusal("h is a function", lambda: problem(h=jnp.sum), r"h must be a regularizer .* or CustomRegularizer\(fn\)"),
    Refusal("h is a reparameterization", lambda: problem(h=mj.Hadamard()), "h must be a regularizer"),
    Refusal("Compatible of a string", lambda: mj.Compatible("g"), "g of Compatible must be a repar.* got 'g'"),
    Refusal("Compatible of a class", lambda: mj.Compatible(mj.Hadamard), "the class Hadamard itself; call it"),
    Refusal("Compatible of other weights", lambda: checked(h=mj.Compatible(mj.Square())), "Square takes weights w"),
    Refusal("WeightDecay of no weights", lambda: mj.WeightDecay().check(()), "WeightDecay takes .* without leaves"),
    Refusal("L1 of no weights", lambda: mj.L1().check({}), "L1 takes a pytree of arrays, got one without leaves"),
    Refusal(
        "WeightDecay of integers",
        lambda: mj.WeightDecay().check(jnp.arange(3)),
        "in floating point, got dtype int",
    ),
    Refusal("a scale of strings", lambda: mj.WeightDecay("1"), "scale must be a number"),
    Refusal("a scale of NaN", lambda: mj.L1(np.nan), "scale must be finite, got nan"),
    Refusal("a scale of infinity", lambda: mj.Compatible(mj.Hadamard(), np.inf), "scale must be finite, got inf"),
    Refusal("two scales", lambda: mj.WeightDecay([1.0, 2.0]), "scale must be a scalar"),
    Refusal("a form of NaN", lambda: mj.QuadraticForm(np.full((2, 2), np.nan)), "G0 must be finite"),
    Refusal("an empty form", lambda: mj.QuadraticForm(np.zeros((0, 0))), "G0 must hold at least one"),
    Refusal("a form of strings", lambda: mj.QuadraticForm("a"), "G0 must be a number"),
    Refusal(
        "a regularizer with an if",
        lambda: checked(h=mj.CustomRegularizer(nonnegative)),
        r"the function of CustomRegularizer needs the value .*test_faults_problem.py, line \d+.*jnp.where",
    ),
    Refusal(
        "a regularizer in numpy",
        lambda: checked(h=mj.CustomRegularizer(numpy_sum)),
        "the function of CustomRegularizer needs the value .* jnp functions instead of numpy",
    ),
    Refusal(
        "a regularizer of a string",
        lambda: checked(h=mj.CustomRegularizer(lambda w: "a")),
        "one floating-point scalar, got a",
    ),
    Refusal("a regularizer of None", lambda: checked(h=mj.CustomRegularizer(lambda w: None)), "scalar, got None"),
    Refusal("a regularizer of a vector", lambda: checked(h=mj.CustomRegularizer(lambda w: w[0])), "scalar, got .*2"),
    Refusal("a regularizer of two arguments", lambda: mj.CustomRegularizer(two_arguments), "one argument, the weights"),
    Refusal(
        "a regularizer of degree '2'",
        lambda: mj.CustomRegularizer(lambda w: jnp.sum(w[0] ** 2), "2"),
        "homogeneity must be a whole number, got '2'",
    ),
]

FAMILIES = [
    Refusal("g is a class", lambda: problem(g=mj.Square), "g must be .* got the class Square itself; call it"),
    Refusal("g is a function", lambda: problem(g=jnp.exp), r"g must be a reparameterization .* or Custom\(fn\)"),
    Refusal(
        "depth '2'",
        lambda: mj.Hadamard(depth="2"),
        "depth of Hadamard must be a whole number of at least 2, got '2'",
    ),
    Refusal("depth 2.0", lambda: mj.Hadamard(depth=2.0), "must be a whole number of at least 2, got 2.0"),
    Refusal(
        "depth of an array",
        lambda: mj.Hadamard(depth=jnp.array(2)),
        "must be a whole number of at least 2, got Array",
    ),
    Refusal("depth True", lambda: mj.Hadamard(depth=True), "must be a whole number of at least 2, got True"),
    Refusal("depth 1", lambda: mj.Hadamard(depth=1), r"at least 2, got 1; depth 1 is Linear\(\)"),
    Refusal("k 0", lambda: mj.PowerDifference(0), "k of PowerDifference must be a whole number of at least 1, got 0"),
    Refusal("k 1.5", lambda: mj.PowerDifference(1.5), "k of PowerDifference must be a whole number"),
    Refusal("transpose 'no'", lambda: mj.MatrixProduct(transpose="no"), "must be True or False, got 'no'"),
    Refusal("transpose None", lambda: mj.MatrixProduct(transpose=None), "must be True or False, got None"),
    Refusal("Quadratic of no coordinates", lambda: mj.Quadratic(np.zeros((0, 2, 2))), "G must hold at least one"),
    Refusal("Quadratic of NaN", lambda: mj.Quadratic(np.full((1, 2, 2), np.nan)), "G must be finite"),
    Refusal("Quadratic of infinity", lambda: mj.Quadratic(np.full((1, 2, 2), np.inf)), "G must be finite"),
    Refusal("weights of strings", lambda: checked(w=("a", "b")), "takes weights .* arrays, got str"),
    Refusal(
        "weights of strings, solved",
        lambda: mj.solve(problem(), ("a", "b"), t1=1.0),
        r"w0\[0\] must be a number .* 'a'",
    ),
    Refusal(
        "weights of NumPy strings",
        lambda: mj.solve(problem(), (np.array(["a"]), np.array(["b"])), t1=1.0),
        r"w0\[0\] must be a number or an array",
    ),
    Refusal(
        "weights of objects",
        lambda: mj.solve(problem(), (np.array([object()]), np.array([None])), t1=1.0),
        r"w0\[0\] must be a number or an array",
    ),
    Refusal(
        "Separable of None",
        lambda: checked(g=mj.Separable(lambda u: None, jnp.exp)),
        "function g_u of Separable must return an array like its factor, of shape .* got None",
    ),
    Refusal(
        "Separable of a sum",
        lambda: checked(g=mj.Separable(jnp.exp, jnp.sum)),
        "function g_v of Separable must return an array like its factor",
    ),
    Refusal(
        "Separable in numpy",
        lambda: checked(g=mj.Separable(np.exp, jnp.exp)),
        "of Separable, g_u, needs the value",
    ),
    Refusal("Separable of a number", lambda: mj.Separable(3, jnp.exp), "Separable, g_u, takes a function .* got 3"),
    Refusal("Separable of two arguments", lambda: mj.Separable(jnp.exp, two_arguments), "Separable, g_v, takes"),
    Refusal("Custom in numpy", lambda: checked(g=mj.Custom(lambda w: np.exp(w[0]))), "of Custom needs the value"),
    Refusal("Custom with an if", lambda: checked(g=mj.Custom(nonnegative)), r"of Custom needs the value .*line \d+"),
    Refusal("Custom of None", lambda: checked(g=mj.Custom(lambda w: None)), "one floating-point array, got None"),
    Refusal("Custom of a tuple", lambda: checked(g=mj.Custom(lambda w: w)), "one floating-point array, got"),
    Refusal("Custom of no arguments", lambda: mj.Custom(lambda: 1.0), "one argument, the weights"),
    Refusal("Custom of degree '2'", lambda: mj.Custom(jnp.exp, "2"), "homogeneity must be a whole number, got '2'"),
    Refusal("Custom of degree 1.5", lambda: mj.Custom(jnp.exp, 1.5), "homogeneity must be a whole number, got 1.5"),
]

OBJECTIVES = [
    Refusal("f is a class", lambda: problem(objective=mj.LeastSquares), "objective must be .* the class LeastSquares"),
    Refusal("f is a function", lambda: problem(objective=jnp.sum), r"objective must be .* or CustomObjective\(fn\)"),
    Refusal(
        "f of two arguments",
        lambda: mj.CustomObjective(two_arguments),
        "one argument, x, got one of the arguments",
    ),
    Refusal(
        "f with an if",
        lambda: checked(objective=mj.CustomObjective(lambda x: x[0] if x[0] > 0 else -x[0])),
        "needs the value",
    ),
    Refusal(
        "f of a string",
        lambda: checked(objective=mj.CustomObjective(lambda x: "a")),
        "floating-point scalar, got a",
    ),
    Refusal("f of a vector", lambda: checked(objective=mj.CustomObjective(lambda x: x)), "floating-point scalar, got"),
    Refusal("data of strings", lambda: mj.LeastSquares("a", [1.0]), "Z must be a number"),
    Refusal("targets of None", lambda: mj.LeastSquares(np.eye(2), None), "y must be a number"),
    Refusal("data of NaN", lambda: mj.LeastSquares(np.full((1, 2), np.nan), np.ones(1)), "Z holds NaN or infinite"),
    Refusal(
        "symmetric 'yes'",
        lambda: mj.MatrixSensing(np.ones((1, 2, 2)), np.ones(1), symmetric="yes"),
        "symmetric must be True",
    ),
    Refusal("labels 0 and 1", lambda: mj.Logistic(np.eye(2), np.array([0.0, 1.0])), "labels must be -1 or"),
]


@table([*STRENGTHS, *GIVEN, *REGULARIZERS, *FAMILIES, *OBJECTIVES])
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
    Right("a NumPy depth", lambda: (mj.Hadamard(np.int64(3))((jnp.full(1, 2.0),) * 3), [8.0]), rtol=1e-15),
    Right("a NumPy k", lambda: (mj.PowerDifference(np.int32(2))((jnp.full(1, 2.0), jnp.ones(1))), [15.0]), rtol=1e-15),
    Right(
        "a NumPy flag",
        lambda: (mj.MatrixProduct(np.bool_(False))((jnp.ones((1, 2)), jnp.ones((2, 1)))), [[2.0]]),
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


CAPTURED = {
    "regularizer": lambda a: problem(h=mj.CustomRegularizer(lambda w: a * jnp.sum(w[0] ** 2))),
    "reparameterization": lambda a: problem(g=mj.Custom(lambda w: a * w[0] * w[1])),
    "objective": lambda a: problem(objective=mj.CustomObjective(lambda x: a * jnp.sum((x - 1) ** 2))),
    "schedule": lambda a: problem(alpha=mj.CustomSchedule(lambda t: a * jnp.exp(-t))),
    "difference": lambda a: problem(g=mj.Separable(lambda u: a * u, jnp.tanh), h=mj.WeightDecay()),
}


@pytest.mark.parametrize("part", CAPTURED)
def test_traced_numbers_in_users_functions_become_leaves(part):
    """A jitted function takes functions as constants, and a tracer in one is none: JAX has no handler for it."""

    @jax.jit
    def held(a):
        leaves, treedef = jax.tree.flatten(CAPTURED[part](a).capture(W))
        assert all(isinstance(leaf, jax.Array) or callable(leaf) for leaf in leaves)
        made = jax.tree.unflatten(treedef, leaves)
        return any(leaf is a for leaf in leaves) and made.loss(W) + made.h(W) + made.schedule(jnp.asarray(0.5))

    plain = CAPTURED[part](0.3)
    right = plain.loss(W) + plain.h(W) + plain.schedule(jnp.asarray(0.5))
    np.testing.assert_allclose(held(0.3), right, rtol=1e-12)


def test_functions_without_traced_numbers_are_kept_as_they_are():
    """A compiled solve is found again by the identity of its functions."""
    fn = partial(jnp.multiply, 2.0)
    assert problem(objective=mj.CustomObjective(fn)).capture(W).objective.fn is fn


def test_weights_of_a_traced_problem_solve_and_differentiate():
    """Against central differences, which are good to 1e-7 here."""

    def loss(a):
        made = problem(alpha=mj.FromOptax(optax.cosine_decay_schedule(a, 17), 0.1, [17]))
        return mj.solve(made, W, t1=1.0, rtol=1e-8).loss[-1]

    np.testing.assert_allclose(jax.grad(loss)(0.3), (loss(0.301) - loss(0.299)) / 2e-3, rtol=1e-5)
