"""Flows beside gradient flow: in the space of the data, of second order, and in other norms."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.integrate import quad

from mirrorjax.dynamics import Descent, DualFlow, MirrorFlow, MomentumFlow, RiemannianFlow, SteepestFlow, solve
from mirrorjax.geometry import predict_limit
from mirrorjax.geometry.families.dilated import DilatedLegendre
from mirrorjax.geometry.families.products import ProductLegendre
from mirrorjax.geometry.legendre import legendre
from mirrorjax.problem import (
    AbstractObjective,
    CustomObjective,
    Hadamard,
    LeastSquares,
    Logistic,
    PowerDifference,
    Problem,
    SwitchOff,
    WeightDecay,
)

rng = np.random.default_rng(3)
Z = jnp.asarray(rng.normal(size=(4, 6)))
F = LeastSquares(Z, Z[:, 0] - 0.5 * Z[:, 3])
W0 = (jnp.ones(6), jnp.asarray(rng.uniform(-0.4, 0.4, 6)))


def problem(alpha=0.2, t_off=1.0, objective: AbstractObjective = F, scale=0.5):
    return Problem(Hadamard(), WeightDecay(scale), SwitchOff(alpha, t_off), objective)


@pytest.mark.parametrize("objective", [F, Logistic(Z, jnp.sign(F.y))], ids=["least squares", "logistic"])
def test_the_dual_flow_is_the_mirror_flow(objective):
    dual, mirror = (
        solve(problem(objective=objective), W0, t1=6.0, flow=flow, rtol=1e-9, saveat=[0.5, 2.0, 6.0])
        for flow in (DualFlow(), MirrorFlow())
    )
    for one, other in ((dual.x, mirror.x), (dual.mu, mirror.mu), (dual.w[0], mirror.w[0])):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8)


def test_the_dual_flow_reaches_the_limit_in_few_steps():
    p = problem()
    sol = solve(p, W0, t1=1e5, flow=DualFlow(), rtol=1e-8)
    limit = predict_limit(legendre(p.g, p.h, W0), F, float(sol.a[-1]))
    np.testing.assert_allclose(sol.x[-1], limit.x, rtol=1e-7, atol=1e-9)
    assert sol.stats["steps"] < 1000


def test_derivatives_of_the_dual_flow_by_the_switch_off():
    def end(t_off, **how):
        return solve(problem(t_off=t_off), W0, t1=6.0, flow=DualFlow(), **how).x[-1, 0]

    step = 1e-4
    ahead, behind = (end(1.0 + sign * step, rtol=1e-11, atol=1e-13, solver=diffrax.Tsit5()) for sign in (1, -1))
    np.testing.assert_allclose(jax.grad(end)(1.0), (ahead - behind) / (2 * step), rtol=1e-4)


def test_the_dual_flow_needs_measurements():
    p = problem(objective=CustomObjective(lambda x: jnp.sum((x - 1) ** 2)))
    with pytest.raises(ValueError, match="CustomObjective is no function of such; use LeastSquares"):
        solve(p, W0, t1=1.0, flow=DualFlow())


@pytest.mark.parametrize("depth", [3, 4])
def test_flows_in_mu_and_x_agree_with_the_weights_at_any_depth(depth):
    """Weight decay through a switch-off on products of more than two factors, by the R of which the dual leaks."""
    w0 = tuple(jnp.asarray(rng.uniform(0.3, 1.2, 6) * rng.choice([-1, 1], 6)) for _ in range(depth))
    p = Problem(Hadamard(depth), WeightDecay(0.5), SwitchOff(0.3, 1.0), F)
    R = DilatedLegendre(ProductLegendre(w0), depth, jnp.asarray(0.5))
    primal = solve(p, w0, t1=3.0, rtol=1e-9)
    for flow in (MirrorFlow(R), RiemannianFlow(R), DualFlow(R)):
        sol = solve(p, w0, t1=3.0, flow=flow, rtol=1e-9)
        np.testing.assert_allclose(sol.x, primal.x, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(sol.w[0], primal.w[0], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("g", [Hadamard(3), PowerDifference(2)], ids=["m w v", "u^4 - v^4"])
def test_the_limit_under_a_leak_is_predicted(g):
    """`legendre` knows the pair: its limit after a switch-off, by no integration and by a flow of the weights."""
    w0 = tuple(jnp.asarray(rng.uniform(0.5, 1.2, 6)) for _ in range(3 if isinstance(g, Hadamard) else 2))
    p = Problem(g, WeightDecay(0.5), SwitchOff(0.2, 1.0), F)
    R = legendre(g, p.h, w0)
    assert isinstance(R, DilatedLegendre)
    assert float(R.leak) == pytest.approx(-1 if isinstance(g, Hadamard) else -2)  # -2c(p - 2)
    primal = solve(p, w0, t1=300.0, rtol=1e-9)
    limit = predict_limit(R, F, float(primal.a[-1]))
    # A loss of 1e-16 is a residual of 1e-8, the error of the steps.
    assert float(primal.loss[-1]) < 1e-16
    np.testing.assert_allclose(primal.x[-1], limit.x, rtol=1e-6, atol=1e-8)
    assert float(limit.kkt_residual) < 1e-10


def test_a_leak_of_another_strength_is_refused():
    w0 = tuple(jnp.asarray(rng.uniform(0.3, 1.2, 6)) for _ in range(3))
    p = Problem(Hadamard(3), WeightDecay(0.5), SwitchOff(0.3, 1.0), F)
    with pytest.raises(ValueError, match="not the Legendre function of this problem"):
        solve(p, w0, t1=1.0, flow=MirrorFlow(DilatedLegendre(ProductLegendre(w0), 3, jnp.asarray(0.4))))


def test_descent_with_momentum_tends_to_the_momentum_flow():
    """At first order in its step gamma / (1 - beta), for equal lambda."""
    distances = []
    for gamma, beta in ((4e-4, 0.98), (1e-4, 0.99)):
        flow = MomentumFlow(gamma, beta)
        assert float(flow.inertia) == pytest.approx(1.0)
        eta = gamma / (1 - beta)
        # optax.sgd at unit rate sums the gradients with momentum beta: times gamma it is the heavy ball.
        descent = Descent(optax.sgd(1 - beta, momentum=beta), eta)
        ends = [solve(problem(), W0, t1=4.0, flow=each).x[-1] for each in (flow, descent)]
        distances.append(np.abs(ends[0] - ends[1]).max())
    # The second step is half of the first, 0.02.
    assert distances[1] < 0.6 * distances[0] < 0.01


def test_paths_of_equal_lambda_collapse_and_small_ones_are_gradient_flow():
    one, other = (solve(problem(), W0, t1=4.0, flow=MomentumFlow(*pair)).x[-1] for pair in ((0.01, 0.9), (0.04, 0.8)))
    np.testing.assert_allclose(one, other, rtol=1e-12)
    slow = solve(problem(), W0, t1=4.0, flow=MomentumFlow(1e-4, 0.0)).x[-1]
    # The flow of inertia lambda lags by about lambda.
    np.testing.assert_allclose(slow, solve(problem(), W0, t1=4.0).x[-1], atol=1e-3)


@pytest.mark.parametrize("bad", [(0.0, 0.5), (-1.0, 0.5), (jnp.nan, 0.5), (0.1, 1.0), (0.1, -0.1)])
def test_momentum_refuses_other_numbers(bad):
    with pytest.raises(ValueError, match=r"gamma must be positive|beta must lie in \[0, 1\)"):
        MomentumFlow(*bad)


def test_steepest_flow_of_q_2_is_gradient_flow():
    for decay in ("coupled", "decoupled"):
        sol = solve(problem(), W0, t1=3.0, flow=SteepestFlow(2.0, decay), rtol=1e-8)
        np.testing.assert_allclose(sol.x, solve(problem(), W0, t1=3.0, rtol=1e-8).x, rtol=1e-6, atol=1e-8)


def test_decoupled_decay_shrinks_the_balance_of_a_steepest_flow_exactly():
    q, c = 1.5, 0.5
    sol = solve(problem(scale=c), W0, t1=2.0, flow=SteepestFlow(q), rtol=1e-8, saveat=[0.5, 1.0, 2.0])

    def balance(w):
        return jnp.abs(w[0]) ** q - jnp.abs(w[1]) ** q

    expected = np.exp(2 * q * c * np.asarray(sol.a))[:, None] * np.asarray(balance(W0))
    np.testing.assert_allclose(jax.vmap(balance)(sol.w), expected, rtol=1e-4)


def test_the_dual_variable_of_a_steepest_flow_without_decay_is_its_mirror_map():
    """`Hess R = (4 |x|^q + balance^2)^(-1/2)`, integrated by scipy along x."""
    q = 1.5
    sol = solve(problem(alpha=0.0), W0, t1=2.0, flow=SteepestFlow(q), rtol=1e-8)
    balance = np.abs(W0[0]) ** q - np.abs(W0[1]) ** q
    for i in range(6):
        start, end = float(W0[0][i] * W0[1][i]), float(sol.x[-1, i])
        between = [0.0] if start * end < 0 else None  # where the integrand has a kink
        mapped, _ = quad(lambda x, b=float(balance[i]): (4 * abs(x) ** q + b**2) ** -0.5, start, end, points=between)
        np.testing.assert_allclose(sol.mu[-1, i], mapped, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("q", [0.9, 2.1, jnp.nan])
def test_steepest_flow_refuses_other_norms(q):
    with pytest.raises(ValueError, match=r"q must lie in \[1, 2\]"):
        SteepestFlow(q)
