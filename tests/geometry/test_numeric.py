"""The general path against the formulas of the theory, and against the parameter flow where there is no formula."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg

import mirrorjax as mj
from mirrorjax.geometry.numeric import NumericLegendre
from mirrorjax.results import status_name

U, V = np.array([1.0, 0.8, 1.3]), np.array([0.9, 1.2, 0.7])
C = 0.7  # the scale of h, so that a factor of c in the wrong place shows
A = -0.15


def assert_exact(actual, expected):
    """The contract of the numeric path: integrators run at 1e-12, and Newton stops at 2e-11 of the weights' size."""
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


def hadamard_dual(x, a):
    u, v = (U + V) / np.sqrt(2), (U - V) / np.sqrt(2)
    return (np.arcsinh(x / (np.abs(u * v) * np.exp(4 * C * a))) - np.log(np.abs(u / v))) / 2


def hadamard_value(x, a):
    u, v = (U + V) / np.sqrt(2), (U - V) / np.sqrt(2)
    A = np.abs(u * v) * np.exp(4 * C * a)
    return np.sum(x * np.arcsinh(x / A) - np.sqrt(x**2 + A**2) - np.log(np.abs(u / v)) * x) / 2


def square_dual(x, a):
    return np.log(x / U**2) / 4 - C * a


def square_value(x, a):
    return np.sum(x * np.log(x / U**2) - x) / 4 - C * a * np.sum(x)


def power_primal(k):
    K = 2 * k * (2 * k - 2)

    def primal(mu, a):
        P, S = U ** (2.0 - 2 * k) - K * (mu + C * a), V ** (2.0 - 2 * k) + K * (mu - C * a)
        return P ** (-k / (k - 1)) - S ** (-k / (k - 1))

    return primal


def log_dual(x, a):
    u, v = U**2 + 2 * C * a, V**2 + 2 * C * a
    return (v * np.exp(2 * x) - u) / (2 * (1 + np.exp(2 * x)))


def log_primal(mu, a):
    u, v = U**2 + 2 * C * a, V**2 + 2 * C * a
    return np.log((u + 2 * mu) / (v - 2 * mu)) / 2


def pair(g, w0):
    return NumericLegendre(g, mj.Compatible(g, C), w0)


BOTH = (jnp.asarray(U), jnp.asarray(V))
WITH_DUAL = {
    "Hadamard": (pair(mj.Hadamard(), BOTH), hadamard_dual, [-2.0, 0.01, 30.0]),
    "Square": (pair(mj.Square(), BOTH[0]), square_dual, [0.01, 1.0, 30.0]),
    "LogDifference": (pair(mj.LogDifference(), BOTH), log_dual, [-2.0, 0.01, 3.0]),
}
WITH_PRIMAL = {
    "PowerDifference(2)": (pair(mj.PowerDifference(2), BOTH), power_primal(2), [-0.1, 0.0, 0.05]),
    "LogDifference": (pair(mj.LogDifference(), BOTH), log_primal, [-0.2, 0.0, 0.1]),
}


@pytest.mark.parametrize("name", WITH_DUAL)
def test_dual_is_the_closed_form(name):
    R, formula, x = WITH_DUAL[name]
    for a in (0.0, A):
        recovered = R.dual(jnp.asarray(x), a)
        assert jnp.all(recovered.ok)
        np.testing.assert_allclose(recovered.value, formula(np.asarray(x), a))


@pytest.mark.parametrize("name", WITH_PRIMAL)
def test_primal_is_the_closed_form_and_dual_inverts_it(name):
    R, formula, mu = WITH_PRIMAL[name]
    for a in (0.0, A):
        x = formula(np.asarray(mu), a)
        assert_exact(R.inverse_mirror_map(jnp.asarray(mu), a), x)
        assert_exact(R.mirror_map(jnp.asarray(x), a), mu)


@pytest.mark.parametrize(("name", "formula"), [("Hadamard", hadamard_value), ("Square", square_value)])
def test_values_differ_from_the_closed_form_by_one_constant(name, formula):
    R, _, x = WITH_DUAL[name]
    x, z = jnp.asarray(x), jnp.asarray([0.5, 0.6, 0.7])
    constant = R.value(x, 0.0) - formula(np.asarray(x), 0.0)
    for point in (x, z):
        assert_exact(R.value(point, A) - constant, formula(np.asarray(point), A))
    # The constant that the docstring states: R_0 vanishes, with its gradient, at x_init.
    np.testing.assert_allclose(R.value(R.g(R.w0), 0.0), 0, atol=1e-9)


def test_value_is_fenchel_conjugate_and_decreases_at_rate_h():
    R, _, mu = WITH_PRIMAL["PowerDifference(2)"]
    mu, a, step = jnp.asarray(mu), -0.15, 1e-4
    x = R.inverse_mirror_map(mu, a)
    np.testing.assert_allclose(R.value(x, a) + R.potential(mu, a), jnp.sum(mu * x), rtol=1e-10)
    slope = (R.value(x, a + step) - R.value(x, a - step)) / (2 * step)
    # Central differences: 1e-8 times third derivatives of order 1 to 10.
    np.testing.assert_allclose(slope, -R.h(R.weights(mu, a)), rtol=1e-6)


def test_quadratic_with_commuting_matrices():
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    G0, G1, G2 = (basis * eigenvalues @ basis.T for eigenvalues in rng.uniform(-1, 1, (3, 4)))
    w0 = rng.normal(size=4)
    R = NumericLegendre(mj.Quadratic(np.stack([G1, G2])), mj.QuadraticForm(G0 @ G0), jnp.asarray(w0))
    mu, a = np.array([0.6, -0.4]), -0.5

    def psi(mu, a):
        return scipy.linalg.expm(mu[0] * G1 + mu[1] * G2 + a * G0 @ G0) @ w0

    w = psi(mu, a)
    x = np.array([w @ G @ w / 2 for G in (G1, G2)])
    np.testing.assert_allclose(R.weights(jnp.asarray(mu), a), w)
    assert_exact(R.mirror_map(jnp.asarray(x), a), mu)
    assert_exact(R.potential(jnp.asarray(mu), a), (w @ w - w0 @ w0) / 4)
    J = np.stack([G1 @ w, G2 @ w])
    assert_exact(R.metric_vector(jnp.asarray(mu), jnp.asarray([1.0, 2.0]), a), J @ J.T @ [1, 2])
    np.testing.assert_allclose(R.hessian(jnp.asarray(x), a), np.linalg.inv(J @ J.T), rtol=1e-7)
    assert status_name(R.dual(jnp.asarray(x), a).result).shape == ()


def rotated_squares():
    """x_i = w^T G_i w / 2 written by hand, G_i diagonal in a rotated basis."""
    basis = jnp.asarray(np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0])
    values = jnp.asarray([[1.0, 0.2, -0.5], [0.1, 1.0, 0.3]])
    return mj.Custom(lambda w: values @ (basis.T @ w) ** 2 / 2), jnp.asarray([1.0, -0.7, 0.5])


TRACES = []


def product(w):
    TRACES.append(w)
    return w[0] * w[1]


def test_identity_of_the_three_flows_for_a_custom_pair():
    """grad R_{a_t}(x_t) = -int_0^t grad f, along the parameter flow as scipy integrates it, on both sides of t_off."""
    g, w0 = mj.Custom(product), BOTH
    h, t_off, alpha = mj.WeightDecay(0.7), 0.5, 0.3
    flat, unravel = jax.flatten_util.ravel_pytree(w0)
    d = g(w0).size
    target = jnp.linspace(-0.5, 1.0, d)

    @jax.jit
    def field(state, strength):
        w = unravel(state[: flat.size])
        x, pull = jax.vjp(g, w)
        slope = jnp.sin(x - target) + 0.1 * x  # grad f of a smooth f that is not quadratic
        decay = jax.flatten_util.ravel_pytree(jax.grad(h)(w))[0]
        return jnp.concatenate([-jax.flatten_util.ravel_pytree(pull(slope)[0])[0] - strength * decay, -slope])

    R, state = NumericLegendre(g, h, w0), np.concatenate([flat, np.zeros(d)])
    for start, end, strength in ((0.0, t_off, alpha), (t_off, 1.2, 0.0)):
        solution = scipy.integrate.solve_ivp(
            lambda t, state, strength=strength: np.asarray(field(state, strength)),
            (start, end),
            state,
            method="DOP853",
            rtol=1e-12,
            atol=1e-13,
        )
        state = solution.y[:, -1]
        x, traces = g(unravel(jnp.asarray(state[: flat.size]))), len(TRACES)
        recovered = R.dual(x, -alpha * t_off)
        assert recovered.ok
        # One trace serves all points and strengths.
        assert start == 0.0 or len(TRACES) == traces
        np.testing.assert_allclose(recovered.value, state[flat.size :])


def test_derivatives_three_ways():
    R, _, mu = WITH_PRIMAL["PowerDifference(2)"]
    a = jnp.asarray(A)
    x = R.inverse_mirror_map(jnp.asarray(mu), a)

    def primal(mu, a):
        P, S = U**-2 - 8 * (mu + C * a), V**-2 + 8 * (mu - C * a)
        return P**-2 - S**-2

    def dual(x, a):
        return R.dual(x, a).value

    root = dual(x, a)

    def unrolled(x, a):
        mu = root
        for _ in range(3):  # each Newton step makes one more order of derivatives right
            value, slope = jax.jvp(lambda mu: primal(mu, a), (mu,), (jnp.ones_like(mu),))
            mu = mu - (value - x) / slope
        return mu

    def second(function):
        return jax.hessian(lambda x, a: jnp.sum(jnp.sin(function(x, a))), (0, 1))

    @jax.jit  # one program: each derivative outside jit would be compiled by itself
    def by_steps(x, a):
        return jax.jacfwd(unrolled, (0, 1))(x, a), second(unrolled)(x, a)

    # Ours outside jit: the search is one program of the library, which one around them would hold four times.
    forward, reverse = (jacobian(dual, (0, 1))(x, a) for jacobian in (jax.jacfwd, jax.jacrev))
    (through, twice_through), twice = by_steps(x, a), second(dual)(x, a)
    for argument, step in ((0, 1e-5 * jnp.ones(3)), (1, jnp.asarray(1e-5))):
        ours = forward[argument]
        np.testing.assert_allclose(reverse[argument], ours, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(ours, through[argument], rtol=1e-9, atol=1e-12)
        ends = [[b + s * step if i == argument else b for i, b in enumerate((x, a))] for s in (1, -1)]
        difference = (dual(*ends[0]) - dual(*ends[1])) / 2e-5
        # The Jacobian in x is diagonal. Noise of 1e-12 in mu over 2e-5.
        np.testing.assert_allclose(jnp.sum(ours, axis=1) if argument == 0 else ours, difference, atol=1e-6)
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-8, atol=1e-10), twice, twice_through)


def test_derivatives_of_value_and_primal():
    R, _, mu = WITH_PRIMAL["PowerDifference(2)"]
    mu, a = jnp.asarray(mu), jnp.asarray(A)
    x = R.inverse_mirror_map(mu, a)

    def everything(x, mu, a):
        metric = jax.jacrev(lambda mu: R.primal(mu, a).value)(mu)
        return jax.grad(R.value, (0, 1))(x, a), jax.hessian(R.value)(x, a), metric, jax.grad(R.potential)(mu, a)

    (in_x, in_a), hessian, metric, slope = everything(x, mu, a)
    np.testing.assert_allclose(in_x, mu, atol=1e-15)  # one mu is 0
    assert_exact(in_a, -R.h(R.weights(mu, a)))
    assert_exact(hessian, R.hessian(x, a))
    assert_exact(metric @ jnp.ones(3), R.metric_vector(mu, jnp.ones(3), a))
    assert_exact(slope, x)


def test_derivatives_in_the_pair_are_refused():
    x, g = jnp.full(3, 0.3), mj.Hadamard()

    def value(scale, m0):
        R = NumericLegendre(g, mj.Compatible(g, scale), (m0, BOTH[1]))
        return jnp.sum(R.dual(x, A).value)

    for argument in (0, 1):
        with pytest.raises(ValueError, match="closed form"):
            jax.eval_shape(jax.grad(value, argument), jnp.asarray(1.0), BOTH[0])
    with pytest.raises(RuntimeError, match="dual_interval"):
        jax.eval_shape(jax.grad(lambda a: jnp.sum(pair(g, BOTH).dual_interval(a)[0])), A)


def test_statuses_and_neighbours():
    square, _, _ = WITH_DUAL["Square"]
    x = jnp.asarray([1.5, -1.0, jnp.nan])
    recovered = square.dual(x, A)
    assert list(status_name(recovered.result)) == ["successful", "outside_range", "outside_range"]
    assert np.array_equal(np.isnan(recovered.value), [False, True, True])
    assert_exact(recovered.value[0], square_dual(np.asarray([1.5, 1.0, 1.0]), A)[0])
    # 1e-30 is in the range, but its distance to the end of it is below what the line resolves.
    close = square.dual(jnp.asarray([1e-30, 0.2, 0.3]), A)
    assert list(status_name(close.result)) == ["not_converged", "successful", "successful"]
    assert jnp.isnan(close.value[0])
    assert_exact(close.value[1:], square_dual(np.asarray([1.0, 0.2, 0.3]), A)[1:])

    def total(a):
        recovered = square.dual(x, a)
        return jnp.sum(jnp.where(recovered.ok, recovered.value, 0.0))

    assert jax.grad(total)(A) == pytest.approx(-C, rel=1e-9)
    with pytest.raises(ValueError, match=r"x must be finite, got x\[2\] = nan"):
        square.mirror_map(x, A)
    with pytest.raises(RuntimeError, match=r"outside the range .*x\[1\] = -1.0"):
        square.mirror_map(x.at[2].set(0.5), A)


def test_outside_the_dual_interval():
    R, formula, _ = WITH_PRIMAL["PowerDifference(2)"]
    upper = U**-2.0 / 8 - C * A
    mu = jnp.asarray([0.1, upper[1] + 1e-3, upper[2] * (1 - 1e-4)])
    recovered = R.primal(mu, A)
    assert list(status_name(recovered.result)) == ["successful", "outside_dual_interval", "successful"]
    # Near the end x is ill-conditioned in mu: 1e4 times more than elsewhere.
    expected = formula(np.asarray(mu), A)
    np.testing.assert_allclose(recovered.value[jnp.array([0, 2])], expected[[0, 2]], rtol=1e-8)
    assert jnp.isnan(recovered.value[1])
    assert jnp.isnan(R.weights(mu, A)[0][1])
    assert jnp.isnan(R.potential(mu, A))


def test_range_exhausted():
    R, _, _ = WITH_PRIMAL["LogDifference"]
    end = -(0.7**2) / (2 * C)
    x = jnp.zeros(3)
    before, after = R.dual(x, end * 0.999), R.dual(x, end * 1.001)
    assert jnp.all(before.ok)
    assert set(status_name(after.result)) == {"range_exhausted"}
    assert jnp.all(jnp.isnan(after.value))
    assert jnp.all(jnp.isnan(R.dual_interval(end * 1.001)[0]))


def test_strong_regularization_from_a_zero_factor():
    """m0 = 1, w0 = 0, the paper's start; at c a = -10 the weights have shrunk by e^-20 and A by e^-40."""
    R = pair(mj.Hadamard(), (jnp.ones(3), jnp.zeros(3)))
    for x in (jnp.asarray([0.0, 1e-9, 0.1]), jnp.asarray([-100.0, 1e-3, 2.0])):
        recovered = R.dual(x, -10.0 / C)
        assert jnp.all(recovered.ok)
        np.testing.assert_allclose(recovered.value, np.arcsinh(np.asarray(x) / (0.5 * np.exp(-40))) / 2)
    # e^-20000 is below the smallest float: no number is made up.
    assert set(status_name(R.dual(x, -1e4 / C).result)) == {"not_converged"}


@pytest.mark.parametrize("a", [0.0, -1.0])
def test_dual_interval_of_power_difference(a):
    R, _, _ = WITH_PRIMAL["PowerDifference(2)"]
    lower, upper = R.dual_interval(a)
    # The end is where the flow stops, to the tolerance of the integrator.
    np.testing.assert_allclose(lower, -(V**-2.0) / 8 + C * a, rtol=1e-11)
    np.testing.assert_allclose(upper, U**-2.0 / 8 - C * a, rtol=1e-11)


def test_dual_interval_of_log_difference_and_of_families_without_end():
    lower, upper = WITH_PRIMAL["LogDifference"][0].dual_interval(A)
    np.testing.assert_allclose(lower, -(U**2 + 2 * C * A) / 2, rtol=1e-11)
    np.testing.assert_allclose(upper, (V**2 + 2 * C * A) / 2, rtol=1e-11)
    lower, upper = WITH_DUAL["Hadamard"][0].dual_interval(A)
    assert jnp.all(lower == -jnp.inf)
    assert jnp.all(upper == jnp.inf)


def test_dual_interval_on_the_axes_of_a_coupled_family():
    g, w0 = rotated_squares()
    lower, upper = NumericLegendre(g, mj.WeightDecay(), w0).dual_interval(A)
    assert jnp.all(lower == -jnp.inf)
    assert jnp.all(upper == jnp.inf)


def test_minimizer():
    R, formula, _ = WITH_PRIMAL["PowerDifference(2)"]
    np.testing.assert_allclose(R.minimizer(A), formula(np.zeros(3), A))


def test_vmap_over_points_and_strengths():
    R, formula, _ = WITH_DUAL["Hadamard"]
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 3)))
    a = jnp.asarray([0.0, -2.0, -0.3])
    table = jax.jit(jax.vmap(jax.vmap(lambda x, a: R.dual(x, a).value, (None, 0)), (0, None)))(x, a)
    expected = [[formula(np.asarray(point), strength) for strength in np.asarray(a)] for point in x]
    assert_exact(table, expected)


def test_float32():
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), BOTH)
    R = NumericLegendre(mj.Hadamard(), mj.WeightDecay(C), half)
    x = jnp.asarray([-2.0, 0.01, 3.0], jnp.float32)
    recovered = R.dual(x, jnp.float32(A))
    assert recovered.value.dtype == jnp.float32
    assert jnp.all(recovered.ok)
    # The contract in float32; integrators at 1e-6.
    np.testing.assert_allclose(recovered.value, hadamard_dual(np.asarray(x, float), A), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(R.value(x, A) - R.value(half[0] * half[1], 0.0), _hadamard_rise(x), rtol=1e-4, atol=1e-4)


def _hadamard_rise(x):
    return hadamard_value(np.asarray(x, float), A) - hadamard_value(U * V, 0.0)


def test_bad_arguments():
    g, h = mj.Hadamard(), mj.WeightDecay()
    with pytest.raises(ValueError, match="not differentiable"):
        NumericLegendre(g, mj.L1(), BOTH)
    with pytest.raises(ValueError, match=r"w0 must be finite, got w0\[0\]\[0\] = nan"):
        NumericLegendre(g, h, (jnp.asarray([jnp.nan]), jnp.ones(1)))
    with pytest.raises(ValueError, match="tuple of 2 arrays"):
        NumericLegendre(g, h, jnp.ones(3))
    with pytest.raises(ValueError, match="one dtype"):
        NumericLegendre(mj.Custom(lambda w: w[0]), h, (jnp.ones(1), jnp.ones(1, jnp.float32)))


def test_lost_rank_has_a_status():
    """m = w = 0 is a fixed point of every flow: J = 0 there, and no x but 0 is reached."""
    R = pair(mj.Hadamard(), (jnp.asarray([0.0, 1.0, 1.0]), jnp.asarray([0.0, 0.5, 0.2])))
    recovered = R.dual(jnp.full(3, 0.3), A)
    assert not recovered.ok[0]
    assert jnp.isnan(recovered.value[0])
    assert jnp.all(recovered.ok[1:])
