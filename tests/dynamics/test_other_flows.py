"""Flows beside gradient flow: in the space of the data, of second order, and in other norms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flow_problems import by_velocity, reference

from mirrorjax.dynamics import Descent, DualFlow, MirrorFlow, MomentumFlow, solve
from mirrorjax.geometry import predict_limit
from mirrorjax.geometry.families.dilated import DilatedLegendre
from mirrorjax.geometry.families.products import ProductLegendre
from mirrorjax.geometry.legendre import legendre
from mirrorjax.problem import (
    AbstractObjective,
    Hadamard,
    LeastSquares,
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


@pytest.mark.slow
def test_the_flow_in_the_data_agrees_with_the_weights_beyond_depth_2():
    """Weight decay through a switch-off on three factors, by the R of which the dual leaks.

    The mirror flow of four and five factors is compared with the weights in geometry/test_products.py, and the flow in
    x of pairs that leak with that in mu in geometry/test_normalising.py.
    """
    w0 = tuple(jnp.asarray(rng.uniform(0.3, 1.2, 6) * rng.choice([-1, 1], 6)) for _ in range(3))
    p = Problem(Hadamard(3), WeightDecay(0.5), SwitchOff(0.3, 1.0), F)
    R = DilatedLegendre(ProductLegendre(w0), 3, jnp.asarray(0.5))
    ts = np.array([0.0, 0.6, 1.0, 3.0])
    [(w, _)] = reference(p, w0, ts, [p.schedule])
    [points] = by_velocity(DualFlow(R), p, w0, ts, [p.schedule])
    np.testing.assert_allclose(points.x, jax.vmap(p.g)(w), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(points.w[0], w[0], rtol=1e-6, atol=1e-8)


def test_the_limit_under_a_leak_is_predicted():
    """`legendre` knows the pair: its limit after a switch-off, by no integration and by a flow of the weights.

    Products are in geometry/test_projection.py and geometry/test_strong_decay.py.
    """
    rng = np.random.default_rng(4)
    w0 = tuple(jnp.asarray(rng.uniform(0.5, 1.2, 6)) for _ in range(2))
    p = Problem(PowerDifference(2), WeightDecay(0.5), SwitchOff(0.2, 1.0), F)
    R = legendre(p.g, p.h, w0)
    assert isinstance(R, DilatedLegendre)
    assert float(R.leak) == pytest.approx(-2)  # -2c(p - 2)
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


def descended(gamma, beta):
    """The end of descent with momentum on the clock of the flow, and its step, `eta = gamma / (1 - beta)`."""
    eta = round(gamma / (1 - beta), 12)  # t1 is a whole number of steps
    # optax.sgd at unit rate sums the gradients with momentum beta: times gamma it is the heavy ball.
    return solve(problem(), W0, t1=4.0, flow=Descent(optax.sgd(1 - beta, momentum=beta), eta)).x[-1]


def test_descents_of_equal_lambda_tend_to_one_path_that_of_the_momentum_flow():
    """At first order in the step gamma / (1 - beta); a descent of another lambda is elsewhere."""
    pairs = (4e-4, 0.98), (1e-4, 0.99)  # steps of 0.02 and 0.01
    assert [float(MomentumFlow(*pair).inertia) for pair in pairs] == pytest.approx([1.0, 1.0])
    flow = solve(problem(), W0, t1=4.0, flow=MomentumFlow(*pairs[0])).x[-1]
    ends = [descended(*pair) for pair in pairs]
    distances = [float(np.abs(end - flow).max()) for end in ends]
    assert distances[1] < 0.6 * distances[0] < 0.01
    assert np.abs(ends[0] - ends[1]).max() < 0.01
    assert np.abs(descended(2.5e-5, 0.9975) - ends[1]).max() > 0.1  # lambda = 4, in steps of 0.01


def test_paths_of_equal_lambda_collapse_and_small_ones_are_gradient_flow():
    one, other = (solve(problem(), W0, t1=4.0, flow=MomentumFlow(*pair)).x[-1] for pair in ((0.01, 0.9), (0.04, 0.8)))
    np.testing.assert_allclose(one, other, rtol=1e-12)
    slow = solve(problem(), W0, t1=4.0, flow=MomentumFlow(1e-4, 0.0)).x[-1]
    # The flow of inertia lambda lags by about lambda.
    np.testing.assert_allclose(slow, solve(problem(), W0, t1=4.0).x[-1], atol=1e-3)
