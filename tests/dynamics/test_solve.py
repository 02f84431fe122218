"""solve(): what is saved, options, statuses, limits with independent solvers, precision at extreme decay."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flow_problems import TS, hadamard_problem, switched
from sklearn.linear_model import Lasso

from mirrorjax.dynamics import Descent, MirrorFlow, solve
from mirrorjax.problem import (
    Constant,
    CustomObjective,
    FromOptax,
    Gram,
    Hadamard,
    LeastSquares,
    MatrixSensing,
    Piecewise,
    Problem,
    Square,
    SwitchOff,
    WeightDecay,
)
from mirrorjax.results import RESULTS

# What is saved


def test_saves_the_trajectory_from_the_start_to_the_end():
    problem, w0 = switched()
    sol = solve(problem, w0, t1=3.0, saveat=TS)
    np.testing.assert_array_equal(sol.ts, TS)
    assert sol.x.shape == (4, 4)
    assert sol.mu.shape == (4, 4)
    assert sol.metrics is None
    np.testing.assert_allclose(sol.x[0], problem.g(w0), rtol=1e-14)
    np.testing.assert_allclose(sol.w[1][0], w0[1], rtol=1e-14)
    np.testing.assert_array_equal(sol.mu[0], 0.0)
    np.testing.assert_allclose(sol.a, [0.0, -0.21, -0.3, -0.3], rtol=1e-14)
    np.testing.assert_allclose(jax.vmap(problem.loss)(sol.w), sol.loss, rtol=1e-12)
    np.testing.assert_allclose(sol.last.x, sol.x[-1], rtol=1e-14)
    assert float(sol.t_end) == 3.0
    assert sol.result == RESULTS.successful
    assert int(sol.stats["steps"]) == int(sol.stats["accepted_steps"]) + int(sol.stats["rejected_steps"])


def test_saves_the_end_alone_unless_told_otherwise():
    problem, w0 = switched()
    final, whole = solve(problem, w0, t1=3.0), solve(problem, w0, t1=3.0, saveat=TS)
    assert final.x.shape == (1, 4)
    np.testing.assert_allclose(final.x[-1], whole.x[-1], rtol=1e-12)  # the same steps by two programs: rounding
    np.testing.assert_array_equal(final.ts, [3.0])


def test_metrics_replace_the_states():
    problem, w0 = switched()

    def metrics(t, x, w):
        return {"time": t, "norm": jnp.sum(jnp.abs(x)), "signs": jnp.sum(x > 0)}

    sol = solve(problem, w0, t1=3.0, saveat=TS, metrics=metrics)
    whole = solve(problem, w0, t1=3.0, saveat=TS)
    np.testing.assert_allclose(sol.metrics["time"], TS, rtol=1e-15)
    np.testing.assert_allclose(sol.metrics["norm"], jnp.sum(jnp.abs(whole.x), axis=1), rtol=1e-12)
    np.testing.assert_array_equal(sol.metrics["signs"], jnp.sum(whole.x > 0, axis=1))
    np.testing.assert_allclose(sol.loss, whole.loss, rtol=1e-12)
    assert sol.x.shape == (1, 4)
    np.testing.assert_allclose(sol.x[-1], whole.x[-1], rtol=1e-12)


def test_numpy_weights_are_taken():
    problem, w0 = switched()
    sol = solve(problem, jax.tree.map(np.asarray, w0), t1=1.0)
    np.testing.assert_array_equal(sol.x, solve(problem, w0, t1=1.0).x)


@pytest.mark.parametrize("t_off", [0.0, 1e-9, 1e-3, 1.0, 3.0, 3.5, jnp.inf])
def test_every_switch_off_time_solves(t_off):
    problem, w0 = hadamard_problem(SwitchOff(0.3, t_off))
    sol = solve(problem, w0, t1=3.0, rtol=1e-8)
    alike = {0.0: Constant(0.0), 3.0: Constant(0.3), 3.5: Constant(0.3), jnp.inf: Constant(0.3)}
    if t_off in alike:
        same = solve(hadamard_problem(alike[t_off])[0], w0, t1=3.0, rtol=1e-8)
        # Two adaptive solves at 1e-8 a step.
        np.testing.assert_allclose(sol.x, same.x, atol=1e-7)
    np.testing.assert_allclose(sol.a[-1], -0.3 * min(t_off, 3.0), rtol=1e-14)


# Options


@pytest.mark.parametrize("solver", [diffrax.Dopri8(), diffrax.Kvaerno5(), diffrax.Heun()])
def test_any_solver_gives_the_same(solver):
    problem, w0 = switched()
    expected = solve(problem, w0, t1=2.0, rtol=1e-10)
    sol = solve(problem, w0, t1=2.0, rtol=1e-6, solver=solver)
    # Errors of 1e-6 a step over fewer than a hundred steps, of which a contracting flow forgets most.
    np.testing.assert_allclose(sol.x, expected.x, atol=1e-5)


def test_breakpoints_reach_the_controller():
    """A jump that is stepped to costs a few rejected steps, one that is not a dozen."""
    times, values = [0.5, 1.0, 1.5, 2.0], [5.0, 0.0, 5.0, 0.0, 5.0]

    def undeclared(step):
        return jnp.asarray(values)[jnp.searchsorted(jnp.asarray(times), step, side="right")]

    declared, w0 = hadamard_problem(Piecewise(times, values))
    hidden = eqx.tree_at(lambda p: p.schedule, declared, FromOptax(undeclared, 1.0, boundaries=times))
    aware, same = solve(declared, w0, t1=3.0, rtol=1e-8), solve(hidden, w0, t1=3.0, rtol=1e-8)
    # Two programs: rounding, relative to the size of x at the start.
    np.testing.assert_allclose(aware.x, same.x, rtol=1e-12, atol=1e-15)
    assert int(aware.stats["rejected_steps"]) <= 2 * len(times)


def test_new_numbers_do_not_recompile():
    traces = []

    def fn(x):
        traces.append(None)
        return jnp.sum((x - 1) ** 2)

    objective = CustomObjective(fn)
    for i, (alpha, t_off, t1, rtol) in enumerate([(0.1, 1.0, 2.0, 1e-6), (0.2, 9, 3, 1e-5), (0.0, 0.0, 2.5, 1e-7)]):
        solve(
            Problem(Square(), WeightDecay(0.1 + i), SwitchOff(alpha, t_off), objective), jnp.ones(2), t1=t1, rtol=rtol
        )
        if i == 0:
            first = len(traces)
    # Each call looks at f(x) twice, at its shape and for numbers that f closes over; only the first compiles.
    assert len(traces) - first <= 4


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"t1": 0.0}, "t1 must be positive and finite, got 0.0"),
        ({"t1": -1.0}, "t1 must be positive and finite, got -1.0"),
        ({"t1": jnp.inf}, "the limit at t1 = inf needs an alpha that is switched off"),
        ({"t1": jnp.nan}, "t1 must be positive and finite, got nan"),
        ({"t1": jnp.ones(2)}, r"t1 must be a scalar, got shape \(2,\)"),
        ({"rtol": 0.0}, "rtol must be positive and finite, got 0.0"),
        ({"atol": -1e-3}, "atol must be positive and finite, got -0.001"),
        ({"max_steps": 0}, "max_steps must be a whole number of at least 1, got 0"),
        ({"saveat": jnp.array([1.0, 0.5])}, "saveat must be increasing without repeats"),
        ({"saveat": jnp.array([0.5, 0.5])}, "saveat must be increasing without repeats"),
        ({"saveat": jnp.array([0.5, 2.5])}, r"saveat must lie in \[0, t1\] = \[0, 2.0\]"),
        ({"saveat": jnp.array([-0.5, 1.0])}, r"saveat must lie in \[0, t1\]"),
        ({"saveat": jnp.array([])}, "non-empty one-dimensional"),
        ({"saveat": jnp.array([jnp.nan, 1.0])}, "saveat must be increasing"),
        ({"saveat": jnp.array([jnp.nan])}, "saveat must lie in"),
    ],
)
def test_bad_options_are_refused(keywords, words):
    problem, w0 = hadamard_problem(0.1)
    with pytest.raises(ValueError, match=words):
        solve(problem, w0, **{"t1": 2.0, **keywords})  # pyright: ignore[reportArgumentType]


def test_a_solver_for_descent_is_refused():
    problem, w0 = hadamard_problem(0.1)
    with pytest.raises(ValueError, match="Descent makes its own steps; leave out solver="):
        solve(problem, w0, t1=1.0, flow=Descent(optax.sgd(1.0), 0.1), solver=diffrax.Tsit5())


@pytest.mark.parametrize(
    ("w0", "words"),
    [
        ((jnp.ones(4), jnp.ones(3)), r"shapes must agree, got \(4,\), \(3,\)"),
        ((jnp.ones(4, int), jnp.ones(4, int)), "floating point, got dtype int"),
        ((np.ones(4), np.ones(4, np.float32)), "of one dtype, got float64, float32"),
        ((np.ones(4, np.float32), np.ones(4, np.float32)), "holds float64 data, but g gives x in float32"),
        ((jnp.ones(5), jnp.ones(5)), r"x of shape \(4,\), but g gives x of shape \(5,\)"),
        (jnp.ones(4), "a tuple of 2 arrays"),
        (None, "a tuple of 2 arrays, got NoneType"),
    ],
)
def test_bad_weights_are_refused(w0, words):
    problem, _ = hadamard_problem(0.1)
    with pytest.raises(ValueError, match=words):
        solve(problem, w0, t1=1.0)


# Independent answers


def test_constant_decay_ends_at_the_lasso():
    """Stationary points of f(m w) + alpha (m^2 + w^2) minimise f + 2 alpha |x|_1; scikit-learn's alpha is 2 alpha."""
    rng = np.random.default_rng(3)
    Z, y = rng.normal(size=(12, 6)), rng.normal(size=12)
    lasso = Lasso(alpha=2 * 0.1, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(Z, y)
    assert 0 < np.sum(lasso.coef_ != 0) < 6
    problem = Problem(Hadamard(), WeightDecay(), 0.1, LeastSquares(Z, y))
    sol = solve(problem, (jnp.ones(6), jnp.zeros(6)), t1=400.0)
    np.testing.assert_allclose(sol.x[-1], lasso.coef_, atol=1e-5)


def entropy(x, w0, log_decay):
    """`grad R_a(x)` of x = m w at x > 0 with log A = log_decay + log |u0 v0|, written so that A may underflow."""
    u0, v0 = (w0[0] + w0[1]) / np.sqrt(2), (w0[0] - w0[1]) / np.sqrt(2)
    log_A = log_decay + np.log(np.abs(u0 * v0))
    r = np.exp(log_A - np.log(np.abs(x)))
    return (np.sign(x) * (np.log(np.abs(x)) - log_A + np.log1p(np.sqrt(1 + r**2))) - np.log(np.abs(u0 / v0))) / 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("strength", [20.0, 320.0])
def test_extreme_decay_keeps_its_digits(strength, dtype):
    """a = -12.5 and a = -200, where the weights pass e^{-25} and e^{-400}: 1e-174, below the floats of 32 bits.

    The identity grad R_a(x) = mu, in float64 on the host, ties what comes back to what went in.
    """
    Z, y = np.eye(2, dtype=dtype), np.array([1.0, -0.5], dtype)
    w0 = (np.array([1.0, 1.0], dtype), np.array([0.2, -0.3], dtype))
    problem = Problem(Hadamard(), WeightDecay(), SwitchOff(strength, 0.625), LeastSquares(Z, y))
    # Growth from e^{4a} takes time about 4|a| / (2 |grad f|), with |grad f| = 0.25 at least.
    t1 = 8 * strength * 0.625 + 60
    sol = solve(problem, w0, t1=t1)
    tolerance = 1e-3 if dtype == np.float32 else 1e-5
    np.testing.assert_allclose(sol.x[-1], y, atol=tolerance)
    assert sol.x.dtype == dtype
    # |mu| grows to 4|a|/2 before x leaves zero; it is known to the solver's relative tolerance.
    expected = entropy(np.asarray(sol.x[-1], float), [np.asarray(v, float) for v in w0], -4 * strength * 0.625)
    np.testing.assert_allclose(sol.mu[-1], expected, rtol=tolerance)


def test_single_and_double_precision_agree_with_the_mirror_flow_while_tiny():
    w0 = (jnp.array([1.0, 1.0]), jnp.array([0.2, -0.3]))
    objective = LeastSquares(np.eye(2), np.array([1.0, -0.5]))
    problem = Problem(Hadamard(), WeightDecay(), SwitchOff(20.0, 0.625), objective)
    ts = jnp.array([0.1, 0.625, 5.0, 30.0])
    primal = solve(problem, w0, t1=30.0, saveat=ts, rtol=1e-9)
    mirror = solve(problem, w0, t1=30.0, saveat=ts, rtol=1e-9, flow=MirrorFlow())
    # In relative error, though x passes 1e-21.
    np.testing.assert_allclose(primal.x, mirror.x, rtol=1e-6)
    np.testing.assert_allclose(primal.w[0], mirror.w[0], rtol=1e-6)
    assert jnp.min(jnp.abs(primal.x)) < 1e-20


def test_tiny_weights_in_single_precision_keep_their_digits():
    """Squares of 1e-25 underflow in float32: the scale must be taken out before anything is squared."""
    w0 = (jnp.full(2, 1e-25, jnp.float32), jnp.full(2, 0.9e-25, jnp.float32))
    Z, y = np.eye(2, dtype=np.float32), np.array([1.0, 0.5], np.float32)
    problem = Problem(Hadamard(), WeightDecay(), 0.0, LeastSquares(Z, y))
    sol = solve(problem, w0, t1=40.0)
    # The sum m + w grows at the rate grad f = y/2 (two rows), the difference decays at it.
    grown = 1.9e-25 * np.exp(40.0 * y.astype(float) / 2) / 2
    np.testing.assert_allclose(sol.w[0][-1], grown, rtol=1e-3)


def test_matrix_sensing_recovers_low_rank():
    """Strong decay switched off early makes the nuclear norm decide: 28 of 55 numbers measured, float32."""
    rng = np.random.default_rng(1)
    factor = np.linalg.qr(rng.normal(size=(10, 1)))[0]
    truth = factor @ factor.T
    A = rng.normal(size=(28, 10, 10))
    A = ((A + A.transpose(0, 2, 1)) / 2).astype(np.float32)
    f = MatrixSensing(A, np.tensordot(A, truth.astype(np.float32), 2))
    problem = Problem(Gram(), WeightDecay(), SwitchOff(20.0, 0.625), f)
    sol = solve(problem, jnp.eye(10, dtype=jnp.float32), t1=200.0)
    plain = solve(Problem(Gram(), WeightDecay(), SwitchOff(0.0, 0.625), f), jnp.eye(10, dtype=jnp.float32), t1=200.0)
    assert float(sol.loss[-1]) < 1e-6
    # Recovery to the digits of float32 at rtol 1e-4; without decay the same data are fitted by something else.
    assert float(jnp.linalg.norm(sol.x[-1] - truth.astype(np.float32))) < 1e-2
    assert float(jnp.linalg.norm(plain.x[-1] - truth.astype(np.float32))) > 0.1


def test_the_end_is_differentiable():
    problem, w0 = hadamard_problem(0.2)
    slope = jax.jacobian(lambda t1: solve(problem, w0, t1=t1, rtol=1e-9).x[-1])(jnp.array(1.5))
    step = 1e-4
    ends = [solve(problem, w0, t1=1.5 + k * step, rtol=1e-11).x[-1] for k in (-1, 1)]
    # Central differences: 1e-8 from the step, 1e-11 / 1e-4 from the solver.
    np.testing.assert_allclose(slope, (ends[1] - ends[0]) / (2 * step), atol=1e-6)
