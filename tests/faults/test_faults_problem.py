"""Bad parts of a problem, and numbers of schedules that once were wrong."""

from functools import partial

import diffrax
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
    Refusal(
        "an infinite integral",
        lambda: checked(alpha=1e308, t1=10.0),
        r"alpha is too strong: int_0\^t1 alpha is inf",
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
    Refusal("Blocks of nothing", lambda: mj.Blocks(), "Blocks takes one part or more, .* got none"),
    Refusal("Blocks of a class", lambda: mj.Blocks(mj.Square), "part 0 of Blocks must be .* got the class Square"),
    Refusal(
        "Blocks of lone weights",
        lambda: mj.Blocks(mj.Square(), mj.Linear()).check(jnp.ones(2)),
        "tuple with the weights of its 2 parts, got ",
    ),
    Refusal("Blockwise of L1", lambda: mj.Blockwise(mj.L1()), "takes differentiable regularizers, got L1"),
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


@table([*STRENGTHS, *REGULARIZERS, *FAMILIES, *OBJECTIVES])
def test_refusals(row):
    row.check()


RIGHTS = [
    Right("a NumPy depth", lambda: (mj.Hadamard(np.int64(3))((jnp.full(1, 2.0),) * 3), [8.0]), rtol=1e-15),
    Right("a NumPy k", lambda: (mj.PowerDifference(np.int32(2))((jnp.full(1, 2.0), jnp.ones(1))), [15.0]), rtol=1e-15),
    Right(
        "a NumPy flag",
        lambda: (mj.MatrixProduct(np.bool_(False))((jnp.ones((1, 2)), jnp.ones((2, 1)))), [[2.0]]),
        rtol=1e-15,
    ),
]


@table(RIGHTS)
def test_rights(row):
    row.check()


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
        assert any(leaf is a for leaf in leaves)
        made = jax.tree.unflatten(treedef, leaves)
        return made.loss(W) + made.h(W) + made.schedule(jnp.asarray(0.5))

    plain = CAPTURED[part](0.3)
    right = plain.loss(W) + plain.h(W) + plain.schedule(jnp.asarray(0.5))
    np.testing.assert_allclose(held(0.3), right, rtol=1e-12)


def test_equal_functions_are_captured_as_one_program():
    """A compiled solve is found again by the programs of its functions."""
    one, other = (
        problem(objective=mj.CustomObjective(partial(jnp.multiply, 2.0))).capture(W).objective.fn for _ in range(2)
    )
    assert one.program is other.program


def test_a_solve_is_differentiable_in_a_number_that_a_schedule_closes_over():
    """One step of descent gives `x = (1 - 2 eta a) eta / 2`, since the gradient of f is -1/2 at x = 0."""

    def end(a):
        made = problem(alpha=mj.FromOptax(optax.cosine_decay_schedule(a, 17), 0.1, [17]))
        flow = mj.Descent(optax.sgd(1.0), 0.1)
        return mj.solve(made, W, t1=0.1, flow=flow, adjoint=diffrax.ForwardMode()).x[-1, 0]

    x, slope = jax.jvp(end, (0.3,), (1.0,))
    np.testing.assert_allclose((x, slope), ((1 - 0.2 * 0.3) * 0.05, -0.01), rtol=1e-12)
