"""Descent against hand-written loops of optax and numpy, and against the flow it discretizes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flow_problems import hadamard_problem
from sklearn.linear_model import Lasso

from mirrorjax.dynamics import Descent, ProximalDescent, solve
from mirrorjax.problem import L1, Hadamard, LeastSquares, Linear, Problem, SwitchOff, WeightDecay
from mirrorjax.results import RESULTS, status_name

STEP, STEPS = 0.1, 25
OPTIMIZERS = {"sgd": optax.sgd(1.0), "momentum": optax.sgd(1.0, momentum=0.9), "adam": optax.adam(1.0)}
# Optimizers that want the value, or search along a line.
WITH_VALUES = {
    "lbfgs": optax.lbfgs(),
    "polyak": optax.polyak_sgd(),
    "backtracking": optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15)),
    "plateau": optax.chain(optax.sgd(1.0), optax.contrib.reduce_on_plateau(patience=2, factor=0.5)),
}


def loop(problem, w0, optimizer, decay, steps, step=STEP):
    """Weights after every step, step 0 first; alpha is looked up at k * step."""
    memory, w, rows = optimizer.init(w0), w0, [w0]

    @jax.jit
    def moved(w, memory, alpha):
        def loss(w):
            value = problem.objective(problem.g(w))
            return value + alpha * problem.h(w) if decay == "coupled" else value

        gradient = jax.grad(loss)(w)
        more = {"value": loss(w), "grad": gradient, "value_fn": loss}
        update, memory = optax.with_extra_args_support(optimizer).update(gradient, memory, w, **more)
        if decay == "decoupled":
            update = jax.tree.map(lambda u, d: u - alpha * d, update, jax.grad(problem.h.__call__)(w))
        return jax.tree.map(lambda v, u: v + step * u, w, update), memory

    for k in range(steps):
        w, memory = moved(w, memory, problem.schedule(jnp.array(k * step)))
        rows.append(w)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)


@pytest.fixture
def _optax_promotes():
    """Adam itself divides by powers of its step count, a whole number."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.usefixtures("_optax_promotes")
@pytest.mark.parametrize("decay", ["coupled", "decoupled"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_against_a_loop_of_optax(name, decay):
    # Switched off in the middle of a step, so that the lookup at its start decides.
    problem, w0 = hadamard_problem(SwitchOff(0.3, 0.95))
    expected = loop(problem, w0, OPTIMIZERS[name], decay, STEPS)
    ts = STEP * jnp.arange(STEPS + 1.0)
    sol = solve(problem, w0, t1=STEP * STEPS, saveat=ts, flow=Descent(OPTIMIZERS[name], STEP, decay=decay))
    for leaf, other in zip(sol.w, expected, strict=True):
        # The clock adds up 0.1 to 2.5 with errors of 1e-15, which is 1e-14 of a step.
        np.testing.assert_allclose(leaf, other, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(sol.x, expected[0] * expected[1], rtol=1e-12, atol=1e-12)
    assert int(sol.stats["steps"]) == STEPS


@pytest.mark.usefixtures("_optax_promotes")
@pytest.mark.parametrize("decay", ["coupled", "decoupled"])
@pytest.mark.parametrize("name", WITH_VALUES)
def test_optimizers_that_want_the_value_against_a_loop_of_optax(name, decay):
    problem, w0 = hadamard_problem(SwitchOff(0.3, 2.5))
    expected = loop(problem, w0, WITH_VALUES[name], decay, 6, step=1.0)
    sol = solve(problem, w0, t1=6.0, saveat=jnp.arange(7.0), flow=Descent(WITH_VALUES[name], 1.0, decay=decay))
    for leaf, other in zip(sol.w, expected, strict=True):
        # Line searches multiply roundings: steps of a hundred times the last.
        np.testing.assert_allclose(leaf, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("step", "t_off", "steps"), [(0.1, 0.8, 8), (0.7, 2.1, 3), (0.25, 62.5, 250)])
def test_a_switch_off_at_a_whole_step_ends_there(step, t_off, steps):
    """Decay alone: w = w0 (1 - 2 alpha eta)^k with exactly t_off / eta factors, whatever t_off / eta rounds to."""
    problem = Problem(Hadamard(), WeightDecay(), SwitchOff(0.05, t_off), LeastSquares(jnp.zeros((1, 2)), jnp.zeros(1)))
    sol = solve(problem, (jnp.ones(2), jnp.ones(2)), t1=2 * t_off, flow=Descent(optax.sgd(1.0), step))
    np.testing.assert_allclose(sol.w[0][-1], (1 - 2 * 0.05 * step) ** steps, rtol=1e-11)


def test_dual_variable_is_the_sum_of_gradients():
    problem, w0 = hadamard_problem(0.1)
    expected = loop(problem, w0, optax.sgd(1.0), "coupled", STEPS)
    sol = solve(problem, w0, t1=STEP * STEPS, flow=Descent(optax.sgd(1.0), STEP))
    slopes = jax.vmap(problem.objective.gradient)(expected[0][:-1] * expected[1][:-1])
    np.testing.assert_allclose(sol.mu[-1], -STEP * jnp.sum(slopes, axis=0), rtol=1e-11)


def test_distance_to_the_flow_is_of_first_order():
    problem, w0 = hadamard_problem(SwitchOff(0.3, 1.0))
    flow = solve(problem, w0, t1=2.0, rtol=1e-10).x[-1]
    distances = [
        float(jnp.linalg.norm(solve(problem, w0, t1=2.0, flow=Descent(optax.sgd(1.0), step)).x[-1] - flow))
        for step in (0.02, 0.01, 0.005)
    ]
    orders = np.log2(np.divide(distances[:-1], distances[1:]))
    # First order, up to the next term of the expansion.
    np.testing.assert_allclose(orders, 1.0, atol=0.05)


def lasso_problem():
    rng = np.random.default_rng(3)
    Z, y = rng.normal(size=(12, 6)), rng.normal(size=12)
    return Problem(Linear(), L1(0.5), 0.3, LeastSquares(Z, y)), Z, y


def test_proximal_descent_against_ista():
    problem, Z, y = lasso_problem()
    w = np.linspace(-1, 1, 6)
    for _ in range(STEPS):
        moved = w - STEP * Z.T @ (Z @ w - y) / y.size
        w = np.sign(moved) * np.maximum(np.abs(moved) - STEP * 0.3 * 0.5, 0)
    sol = solve(problem, jnp.linspace(-1, 1, 6), t1=STEP * STEPS, flow=ProximalDescent(STEP))
    np.testing.assert_allclose(sol.x[-1], w, rtol=1e-12, atol=1e-12)


def test_proximal_descent_ends_at_the_lasso():
    problem, Z, y = lasso_problem()
    lasso = Lasso(alpha=0.3 * 0.5, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(Z, y)
    sol = solve(problem, jnp.ones(6), t1=200.0, flow=ProximalDescent(0.2))
    np.testing.assert_allclose(sol.x[-1], lasso.coef_, atol=1e-8)
    np.testing.assert_array_equal(sol.x[-1] == 0, lasso.coef_ == 0)


@pytest.mark.parametrize("flow", [Descent(optax.sgd(1.0), 1e3), ProximalDescent(1e3)])
def test_divergence_has_a_status(flow):
    _, Z, y = lasso_problem()
    problem = Problem(
        Linear(), L1(0.5) if isinstance(flow, ProximalDescent) else WeightDecay(), 0.0, LeastSquares(Z, y)
    )
    sol = solve(problem, jnp.ones(6), t1=1e6, flow=flow, throw=False)
    assert sol.result == RESULTS.diverged
    with pytest.raises(RuntimeError, match="descent the step is too large"):
        solve(problem, jnp.ones(6), t1=1e6, flow=flow)


@pytest.mark.usefixtures("_optax_promotes")
def test_derivatives_through_descent():
    problem, w0 = hadamard_problem(0.1)

    def end(alpha, step):
        changed = Problem(problem.g, problem.h, SwitchOff(alpha, 1.0), problem.objective)
        return jnp.sum(solve(changed, w0, t1=2.5, flow=Descent(optax.adam(1.0), step)).loss)

    with_slope = jax.jit(jax.value_and_grad(end))
    slope = with_slope(0.1, STEP)[1]
    difference = (with_slope(0.1 + 1e-5, STEP)[0] - with_slope(0.1 - 1e-5, STEP)[0]) / 2e-5
    # Central differences: 1e-10 from the step, 1e-16 / 1e-5 from rounding.
    np.testing.assert_allclose(slope, difference, rtol=1e-6)


def test_a_bad_step_size_of_a_lane_has_a_status():
    problem, _, _ = lasso_problem()

    def lane(step):
        return solve(problem, jnp.ones(6), t1=2.0, flow=ProximalDescent(step), throw=False)

    sol = jax.jit(jax.vmap(lane))(jnp.array([0.2, -0.2, 0.0, jnp.nan, jnp.inf, 0.3]))
    assert list(status_name(sol.result)) == ["successful", *["invalid_options"] * 4, "partial_step"]
    # The same steps; batched products may round differently.
    np.testing.assert_allclose(sol.x[0], lane(0.2).x, rtol=1e-12)
    assert jnp.all(jnp.isnan(sol.x[1:]))


def test_refusals():
    problem, w0 = hadamard_problem(0.1)
    with pytest.raises(ValueError, match=r"not differentiable at 0.*ProximalDescent"):
        solve(Problem(problem.g, L1(), 0.1, problem.objective), w0, t1=1.0, flow=Descent(optax.sgd(1.0), 0.1))
    with pytest.raises(ValueError, match="proximal map, such as L1; got WeightDecay"):
        solve(problem, w0, t1=1.0, flow=ProximalDescent(0.1))
    for step in (0.0, -1.0, jnp.nan, jnp.inf):
        with pytest.raises(ValueError, match=f"step_size must be positive and finite, got {step}"):
            ProximalDescent(step)
        with pytest.raises(ValueError, match=f"step_size must be positive and finite, got {step}"):
            Descent(optax.sgd(1.0), step)
