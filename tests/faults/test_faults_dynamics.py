"""Bad inputs of solve, its flows and options, and numbers of flows that once were wrong without a word."""

# Bad inputs are what this file is made of.

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from faults_table import Refusal, Right, table

import mirrorjax as mj
from mirrorjax.geometry.families.spectral import SpectralGram
from mirrorjax.results import RESULTS, status_name

W0 = (jnp.ones(2), jnp.zeros(2))
DESCENT = optax.sgd(1.0)
TARGET = mj.LeastSquares(np.eye(2), np.ones(2))
PROBLEM = mj.Problem(mj.Hadamard(), mj.WeightDecay(), 0.1, TARGET)
# x = m^2, f = -sum x: the weights grow like e^{2t}, and x = e^{4t} passes the largest float at t = 178.
GROWING = mj.Problem(mj.Square(), mj.WeightDecay(), 0.0, mj.CustomObjective(lambda x: -x.sum()))
SYMMETRIC = np.array([[[1.0, 2.0], [2.0, 0.0]], [[0.0, 1.0], [1.0, 3.0]]])  # two matrices that do not commute
SENSED = mj.Problem(mj.Gram(), mj.WeightDecay(), 0.05, mj.MatrixSensing(SYMMETRIC, np.ones(2)))
SPECTRAL = SpectralGram(jnp.eye(2), jnp.array(1.0))


def solve(**keywords):
    """Solves the problem of this file with one keyword that is wrong."""
    return mj.solve(PROBLEM, W0, **{"t1": 1.0, **keywords})


def mirrored(R, problem=PROBLEM, w0=W0):
    return mj.solve(problem, w0, t1=1.0, flow=mj.MirrorFlow(R))


def short(dtype):
    """The problem of this file in a dtype of 16 bits."""
    objective = mj.LeastSquares(jnp.eye(2, dtype=dtype), jnp.ones(2, dtype))
    return mj.Problem(mj.Hadamard(), mj.WeightDecay(), 0.1, objective), (jnp.ones(2, dtype), jnp.zeros(2, dtype))


def positive(t, x, w):
    return 1.0 if t > 0 else 0.0


def sized(count):
    return (jnp.ones(count), jnp.zeros(count))


def legendre(scale=1.0, w0=W0, **how):
    return mj.legendre(mj.Hadamard(), mj.WeightDecay(scale), w0, **how)


ARGUMENTS = [
    Refusal("problem None", lambda: mj.solve(None, W0, t1=1.0), r"problem must be a Problem\(g, h, .*got None"),
    Refusal("swapped", lambda: mj.solve(W0, PROBLEM, t1=1.0), "problem must be a Problem.*the first argument"),
    Refusal("problem class", lambda: mj.solve(mj.Problem, W0, t1=1.0), "got the class Problem itself"),
    Refusal("weights a string", lambda: mj.solve(PROBLEM, "a", t1=1.0), "w0 must be a number"),
    Refusal("no weights", lambda: mj.solve(PROBLEM, None, t1=1.0), "a tuple of 2 arrays"),
    Refusal("a keyword of others", lambda: solve(tolerance=1e-3), r"solve\(\) has no argument tolerance"),
    Refusal("t1 a string", lambda: solve(t1="a"), "t1 must be a number"),
    Refusal("t1 None", lambda: solve(t1=None), "t1 must be a number"),
    Refusal("t1 complex", lambda: solve(t1=1j), "t1 must be real"),
    Refusal("t1 True", lambda: solve(t1=True), "t1 must be real"),
    Refusal("t1 an array", lambda: solve(t1=jnp.ones(2)), r"t1 must be a scalar, got shape \(2,\)"),
    Refusal("t1 a list", lambda: solve(t1=[1.0]), r"t1 must be a scalar, got shape \(1,\)"),
    Refusal("t1 infinite, decay for ever", lambda: solve(t1=jnp.inf), r"alpha\(0\) = 0.1 after the last breakpoint"),
    Refusal("t1 minus infinity", lambda: solve(t1=-jnp.inf), "t1 must be positive and finite, got -inf"),
    Refusal("rtol a string", lambda: solve(rtol="a"), "rtol must be a number"),
    Refusal("rtol negative", lambda: solve(rtol=-1e-3), "rtol must be positive and finite, got -0.001"),
    Refusal("rtol True", lambda: solve(rtol=True), "rtol must be real"),
    Refusal("atol NaN", lambda: solve(atol=jnp.nan), "atol must be positive and finite, got nan"),
    Refusal("max_steps True", lambda: solve(max_steps=True), "max_steps must be a whole number .*got True"),
    Refusal("max_steps a float", lambda: solve(max_steps=1e5), "max_steps must be a whole number"),
    Refusal("max_steps a string", lambda: solve(max_steps="a"), "max_steps must be a whole number"),
    Refusal("a status that is none", lambda: status_name("a"), "result must be a status such as sol.result, got 'a'"),
    Refusal("the class of statuses", lambda: status_name(RESULTS), "result must be a status"),
    Refusal("a status of diffrax", lambda: status_name(diffrax.RESULTS.successful), "result must be a status"),
]

SAVE_TIMES = [
    Refusal(
        "saveat of strings", lambda: solve(saveat=["a"]), r"saveat must be a number or an array of numbers, got \['a"
    ),
    Refusal("saveat a string", lambda: solve(saveat="linspace"), "saveat must be .* numbers, got 'linspace'"),
    Refusal("saveat of diffrax", lambda: solve(saveat=diffrax.SaveAt(ts=jnp.ones(2))), "saveat must be .* numbers"),
    Refusal("saveat of None", lambda: solve(saveat=[None]), "saveat must be .* numbers"),
    Refusal("saveat complex", lambda: solve(saveat=[1j]), "saveat must be real"),
    Refusal("saveat a scalar", lambda: solve(saveat=0.5), "non-empty one-dimensional"),
    Refusal("saveat nested", lambda: solve(saveat=[[0.5]]), "non-empty one-dimensional"),
    Refusal("saveat ragged", lambda: solve(saveat=[[0.5], [0.5, 1.0]]), "saveat must be a number or an array"),
    Refusal("saveat unsorted", lambda: solve(saveat=[1.0, 0.5]), "saveat must be increasing without repeats"),
    Refusal("saveat negative", lambda: solve(saveat=[-0.5, 0.5]), r"saveat must lie in \[0, t1\]"),
    Refusal(
        "saveat above t1 by a rounding",
        lambda: solve(t1=0.3, saveat=[0.1, 3 * 0.1]),
        r"its last time is above t1 by 5.55e-17, a rounding: pass t1=saveat\[-1\]",
    ),
    Refusal("saveat above t1", lambda: solve(saveat=[0.5, 1.5]), "its last time is above t1 by 0.5$"),
]

SOLVERS = [
    Refusal("solver a string", lambda: solve(solver="rkc"), r"solver must be a solver such as RKC\(\).*got 'rkc'"),
    Refusal("solver a class", lambda: solve(solver=mj.RKC), r"got the class RKC itself; call it: RKC\(\.\.\)"),
    Refusal("solver of diffrax, a class", lambda: solve(solver=diffrax.Tsit5), "got the class Tsit5 itself"),
    Refusal("solver a number", lambda: solve(solver=3), "solver must be a solver .*got 3"),
    Refusal("solver a controller", lambda: solve(solver=diffrax.ConstantStepSize()), "solver must be a solver"),
    Refusal(
        "no error estimate", lambda: solve(solver=diffrax.Euler()), r"Euler gives no estimate.*HalfSolver\(Euler\(\)\)"
    ),
    Refusal(
        "no tolerances of a root finder",
        lambda: solve(solver=diffrax.HalfSolver(diffrax.ImplicitEuler())),
        r"root finder of the ImplicitEuler in HalfSolver has no tolerances.*diffrax.ImplicitEuler\(\) itself",
    ),
    Refusal("several terms", lambda: solve(solver=diffrax.KenCarp3()), "KenCarp3 is for equations of several terms"),
    Refusal("adjoint a string", lambda: solve(adjoint="x"), "adjoint must be diffrax.Recursive.*got 'x'"),
    Refusal("adjoint a class", lambda: solve(adjoint=diffrax.ForwardMode), "got the class ForwardMode itself"),
    Refusal("adjoint a number", lambda: solve(adjoint=3), "adjoint must be .*got 3"),
    Refusal(
        "backsolve",
        lambda: solve(adjoint=diffrax.BacksolveAdjoint()),
        "BacksolveAdjoint cannot differentiate a solve with breakpoints.*ForwardMode",
    ),
    Refusal("implicit", lambda: solve(adjoint=diffrax.ImplicitAdjoint()), "ImplicitAdjoint cannot differentiate"),
]

METRICS = [
    Refusal("metrics a number", lambda: solve(metrics=3), r"metrics must be a function of \(t, x, w\), got 3"),
    Refusal(
        "metrics of one argument", lambda: solve(metrics=lambda t: t), r"function of \(t, x, w\), got one of \(t\)"
    ),
    Refusal("metrics of four", lambda: solve(metrics=lambda t, x, w, mu: t), r"got one of \(t, x, w, mu\)"),
    Refusal("metrics a string", lambda: solve(metrics=lambda t, x, w: "a"), "metrics must return numbers.*got 'a'"),
    Refusal("metrics with a string", lambda: solve(metrics=lambda t, x, w: {"a": [x, "b"]}), "got 'b' at 'a/1'"),
    Refusal("metrics a function", lambda: solve(metrics=lambda t, x, w: len), "metrics must return numbers"),
    Refusal("metrics a key", lambda: solve(metrics=lambda t, x, w: jax.random.key(0)), "metrics must return numbers"),
    Refusal("metrics an object", lambda: solve(metrics=lambda t, x, w: object()), "metrics must return numbers"),
    Refusal(
        "metrics with if",
        lambda: solve(metrics=positive),
        r"metrics needs the value of a number that is traced .*test_faults_dynamics.py, line \d+\); .*jnp.where",
    ),
    Refusal("metrics with numpy", lambda: solve(metrics=lambda t, x, w: np.sin(t)), "metrics needs the value"),
    Refusal("metrics with float", lambda: solve(metrics=lambda t, x, w: float(t)), "metrics needs the value"),
]

FLOWS = [
    Refusal("flow a class", lambda: solve(flow=mj.PrimalFlow), r"got the class PrimalFlow itself; call it: PrimalFlow"),
    Refusal("flow a name", lambda: solve(flow="mirror"), r"flow must be a flow such as PrimalFlow\(\).*got 'mirror'"),
    Refusal("flow a solver", lambda: solve(flow=mj.RKC()), "flow must be a flow"),
    Refusal("optimizer a function", lambda: mj.Descent(optax.sgd, 0.1), "optimizer must be an optax transformation"),
    Refusal("optimizer a name", lambda: mj.Descent("sgd", 0.1), "optimizer must be an optax transformation.*'sgd'"),
    Refusal("decay a name", lambda: mj.Descent(optax.sgd(1.0), 0.1, decay="l2"), 'decay must be "coupled" or'),
    Refusal("step size a string", lambda: mj.Descent(optax.sgd(1.0), "a"), "step_size must be a number"),
    Refusal("step size an array", lambda: mj.ProximalDescent(jnp.ones(2)), "step_size must be a scalar"),
    Refusal("step size negative", lambda: mj.ProximalDescent(-0.1), "step_size must be positive and finite"),
    Refusal("step size a schedule", lambda: mj.Descent(optax.sgd(1.0), optax.constant_schedule(1.0)), "step_size must"),
    Refusal(
        "lookahead",
        lambda: solve(flow=mj.Descent(optax.lookahead(optax.sgd(1.0), 5, 0.5), 0.1)),
        "Descent cannot run this lookahead .*use the optimizer inside it",
    ),
    Refusal(
        "an optimizer that wants more",
        lambda: solve(flow=mj.Descent(optax.contrib.sam(optax.sgd(1.0), optax.sgd(0.1)), 0.1)),
        "Descent cannot run this sam",
    ),
    Refusal(
        "R a string", lambda: mj.MirrorFlow("x"), r"R must be a Legendre function such as legendre\(g, h, w0\), got 'x'"
    ),
    Refusal("R a class", lambda: mj.RiemannianFlow(SpectralGram), "got the class SpectralGram itself"),
    Refusal(
        "R of another size", lambda: mirrored(legendre(w0=sized(3))), r"x of shape \(3,\).*g\(w0\) has shape \(2,\)"
    ),
    Refusal(
        "R of other weights", lambda: mirrored(mj.legendre(mj.Square(), mj.WeightDecay(), jnp.ones(2))), "weights of"
    ),
    Refusal("R of another start", lambda: mirrored(legendre(w0=(2 * W0[0], W0[1]))), "differ from w0 by 1 of them"),
    Refusal("R of another scale", lambda: mirrored(legendre(2.0)), "is not the Legendre function of this problem"),
    Refusal("R of nearly the scale", lambda: mirrored(legendre(1.001)), "is not the Legendre function of this problem"),
    Refusal(
        "data that do not commute",
        lambda: mirrored(SPECTRAL, SENSED, jnp.eye(2)),
        "sensing matrices that commute pairwise",
    ),
    Refusal(
        "a loss that does not commute",
        lambda: mirrored(
            SPECTRAL,
            mj.Problem(SENSED.g, SENSED.h, 0.05, mj.CustomObjective(lambda x: SENSED.objective(x))),
            jnp.eye(2),
        ),
        "is not the Legendre function of this problem",
    ),
    *[
        Refusal(
            f"{dtype.__name__} in {type(flow).__name__}",
            lambda dtype=dtype, flow=flow: mj.solve(*short(dtype), t1=10.0, flow=flow),
            f"the weights are {dtype.__name__}.*cast the weights and the data of the objective to float32",
        )
        for dtype in (jnp.bfloat16, jnp.float16)
        for flow in (mj.PrimalFlow(), mj.MirrorFlow(), mj.Descent(optax.sgd(1.0), 0.1))
    ],
]


def parts(alpha):
    return PROBLEM.g, PROBLEM.h, alpha, PROBLEM.objective


def closed_over(factor):
    """The loss where f uses a number that is no field of the problem."""
    objective = mj.CustomObjective(lambda x: factor * jnp.sum((x - 1) ** 2))
    problem = mj.Problem(mj.Hadamard(), mj.WeightDecay(), 0.1, objective)
    return mj.solve(problem, W0, t1=1.0, flow=mj.Descent(DESCENT, 0.5)).loss[-1]


FAILED = [
    Refusal("another decay", lambda: mj.SteepestFlow(1.5, "both"), 'decay must be "coupled" or "decoupled", got'),
    Refusal(
        "DualFlow with a rate for each coordinate",
        lambda: mj.solve(
            mj.Problem(mj.Blocks(mj.Linear(), mj.Hadamard(3)), mj.WeightDecay(), 0.1, PROBLEM.objective),
            (jnp.ones(1), 3 * (jnp.ones(1),)),
            t1=1.0,
            flow=mj.DualFlow(),
        ),
        r"DualFlow needs a dual variable that leaks at one rate, .* has shape \(2,\) .*; use MirrorFlow\(\)",
    ),
    Refusal("DualFlow(R='x')", lambda: mj.DualFlow("x"), "R must be a Legendre function"),
    Refusal("x overflows", lambda: mj.solve(GROWING, jnp.ones(3), t1=300.0), "x, w or the loss .* infinite"),
]


@table(ARGUMENTS)
def test_arguments(row):
    row.check()


@table(SAVE_TIMES)
def test_save_times(row):
    row.check()


@table(SOLVERS)
def test_solvers_and_adjoints(row):
    row.check()


@table(METRICS)
def test_metrics(row):
    row.check()


@table(FLOWS)
def test_flows(row):
    row.check()


@table(FAILED)
def test_failed_flows(row):
    row.check()


# Numbers that are traced: each lane has a status of its own, and a good lane keeps its numbers beside bad ones.

NAN, INF = jnp.nan, jnp.inf
GOOD = {"t1": 1.0, "saveat": [0.5, 1.0], "rtol": 1e-6, "atol": 1e-8, "step": 0.1}
BAD = [
    *[({"t1": t1}, "invalid_times") for t1 in (NAN, -1.0, INF, 0.0, 0.75)],
    *[({"saveat": ts}, "invalid_times") for ts in ([1, 0.5], [-1, 0.5], [0.5, 3], [0.5, NAN], [0.5, 0.5])],
    *[({name: value}, "invalid_options") for name in ("rtol", "atol", "step") for value in (-0.1, 0.0, NAN, INF)],
    ({"t1": NAN, "rtol": -1.0}, "invalid_times"),
    ({"step": 0.3}, "partial_step"),
]


@functools.cache
def lanes():
    """Lanes of a descent, which compiles faster than a flow: the good one, and those of the bad numbers."""
    rows = [GOOD, *[GOOD | bad for bad, _ in BAD]]
    values = {name: jnp.asarray([row[name] for row in rows]) for name in GOOD}

    def lane(step, **how):
        return solve(**how, flow=mj.Descent(DESCENT, step), throw=False)

    return jax.jit(jax.vmap(lambda values: lane(**values)))(values)


def test_bad_lanes_spoil_no_others():
    sol = lanes()
    np.testing.assert_allclose(sol.loss[0, -1], loss(0.1), rtol=1e-12)
    for leaf in (sol.x, sol.loss):
        assert jnp.all(jnp.isnan(leaf[1:]))
    # A bad lane holds up no other: it ends after one step.
    assert jnp.all(sol.stats["steps"][1:] == 1)


UNDER_JIT = jax.jit(lambda t1: mj.solve(PROBLEM, W0, t1=t1).loss)


@pytest.mark.parametrize("t1", [NAN, -1.0])
def test_a_traced_time_raises_under_jit(t1):
    with pytest.raises(RuntimeError, match="t1 is not positive and finite"):
        jax.block_until_ready(UNDER_JIT(t1))


def loss(alpha, **how):
    """The loss after ten steps of descent, which compile faster than a flow."""
    return mj.solve(mj.Problem(*parts(alpha)), W0, t1=1.0, flow=mj.Descent(DESCENT, 0.1), **how).loss[-1]


def differenced(alpha):
    """The derivative of the loss by differences of fourth order: 1e-12 from the step, 1e-13 from rounding."""
    e = 1e-3
    f = [loss(alpha + k * e) for k in (-2, -1, 1, 2)]
    return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * e)


def single():
    """The problem of this file in float32."""
    objective = mj.LeastSquares(np.eye(2, dtype=np.float32), np.ones(2, np.float32))
    return mj.Problem(mj.Hadamard(), mj.WeightDecay(), 0.1, objective), (np.ones(2, "f"), np.zeros(2, "f"))


def status(lane, name):
    """True where a lane has the right status."""
    return status_name(lanes().result)[lane] == name, True


RIGHTS = [
    *[
        Right(f"status of {bad}", lambda lane=lane, name=name: status(lane, name), rtol=0)
        for lane, (bad, name) in enumerate([({}, "successful"), *BAD])
    ],
    Right(
        "1000 steps in float32",
        lambda: (mj.solve(*single(), t1=100.0, flow=mj.Descent(DESCENT, 0.1)).stats["steps"], 1000),
        rtol=0,
    ),
    Right("gradient of a failed descent", lambda: (jax.grad(lambda a: loss(a, throw=False))(-0.1), NAN), rtol=0),
    Right(
        "derivative by a number that f closes over",
        # f is linear in it and its descent smooth: central differences of 1e-4 are right to 1e-8 and rounding.
        lambda: (jax.grad(closed_over)(1.0), (closed_over(1.0 + 1e-4) - closed_over(1.0 - 1e-4)) / 2e-4),
        rtol=1e-6,
    ),
    Right("jvp without an adjoint", lambda: (jax.jvp(loss, (0.1,), (1.0,))[1], differenced(0.1)), rtol=1e-9),
    Right(
        "x at the last time before it overflows",
        lambda: (mj.solve(GROWING, jnp.ones(3), t1=170.0).last.x, np.exp(4 * 170.0)),
        rtol=1e-3,  # errors of 1e-6 a step, in the logarithm
    ),
]


@table(RIGHTS)
def test_rights(row):
    row.check()
