"""The bracketed root and the damped Newton search: accuracy, statuses, and derivatives three ways."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from mirrorjax.geometry.newton import convex_minimum, damped_newton, solve_spd
from mirrorjax.geometry.roots import monotone_root
from mirrorjax.results import RESULTS, status_name


def power(s, args):
    """grad Q of the power difference u^6 - v^6: poles at both ends."""
    P, S = args
    return (P - 24 * s) ** -1.5 - (S + 24 * s) ** -1.5


def power_root(y, P, S):
    return monotone_root(power, y, -S / 24, P / 24, (P, S))


FUNCTIONS = {
    "sinh": (lambda s: jnp.sinh(s), -jnp.inf, jnp.inf),
    "identity": (lambda s: s, -jnp.inf, jnp.inf),
    "cube and line": (lambda s: s**3 + 1e-3 * s, -jnp.inf, jnp.inf),
    "log": (lambda s: jnp.log(s), 0.0, jnp.inf),
    "tangent": (lambda s: jnp.tan(s), -np.pi / 2, np.pi / 2),
    "exponential": (lambda s: jnp.exp(s) - 5, -jnp.inf, jnp.inf),
    "logit": (lambda s: jnp.log(s) - jnp.log1p(-s), 0.0, 1.0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_recovers_what_was_put_in(name):
    fn, lower, upper = FUNCTIONS[name]
    inside = {0.0: np.geomspace(1e-8, 0.9, 25), -np.pi / 2: np.linspace(-1.5, 1.5, 25)}
    truth = inside.get(lower, np.linspace(-30, 30, 25))

    @jax.jit
    def everything(truth):
        y = fn(truth)
        return monotone_root(lambda s, _: fn(s), y, lower, upper), y, jax.vmap(jax.grad(fn))(truth)

    recovered, y, slope = jax.tree.map(np.asarray, everything(truth))
    assert np.all(recovered.ok)
    # Rounding of fn by a few eps (of its largest part, 5 in the exponential) moves s by that over its slope; and eps s.
    bound = 8 * np.finfo(float).eps * (np.abs(truth) + (np.abs(y) + 5) / slope)
    assert np.all(np.abs(recovered.value - truth) <= bound)


def test_agrees_with_brentq():
    rng = np.random.default_rng(0)
    P, S = rng.uniform(0.5, 2, (2, 30)) ** -4.0
    y = rng.normal(size=30) * 3
    root = power_root(*map(jnp.asarray, (y, P, S)))
    assert jnp.all(root.ok)
    for i in range(30):
        ends = (-S[i] / 24 * (1 - 1e-9), P[i] / 24 * (1 - 1e-9))
        expected: Any = scipy.optimize.brentq(lambda s, i=i: float(power(s, (P[i], S[i])) - y[i]), *ends, xtol=1e-16)
        # Levels P - 24 s are rounded to eps max(P, S) <= 16 eps, so s to about eps of their scale.
        assert float(root.value[i]) == pytest.approx(expected, rel=0, abs=16 * float(np.finfo(float).eps))


def test_few_steps_are_enough_near_poles_and_far_away():
    y = jnp.asarray([0.0, 1e-12, 1.0, 1e6, -1e12, 1e15])
    P, S = jnp.full(6, 3.0), jnp.full(6, 0.01)
    # Bisection alone would take 60 or more; measured 27 for the worst of these, hence 40.
    assert jnp.all(monotone_root(power, y, -S / 24, P / 24, (P, S), max_steps=40).ok)


def test_statuses():
    def names(fn, y, lower, upper, **options):
        recovered = monotone_root(fn, jnp.asarray(y), lower, upper, **options)
        failed = ~np.asarray(recovered.ok)
        assert np.array_equal(np.isnan(recovered.value), failed)
        return list(status_name(recovered.result))

    tanh = names(lambda s, _: jnp.tanh(s), [0.5, 2.0, -2.0, np.inf, np.nan], -jnp.inf, jnp.inf)
    assert tanh == ["successful", "outside_range", "outside_range", "outside_range", "not_converged"]
    # 1 is attained by rounding only, where tanh is flat: no root, and none is made up.
    assert names(lambda s, _: jnp.tanh(s), [1.0], -jnp.inf, jnp.inf) == ["not_converged"]
    assert names(lambda s, _: s, [0.5, 1.1, 2.0, -1.0], 0.0, 1.0) == ["successful"] + 3 * ["outside_range"]
    assert names(lambda s, _: s, [0.5], 1.0, 0.0) == ["outside_range"]
    assert names(lambda s, _: jnp.sinh(s), [3.0], -jnp.inf, jnp.inf, max_steps=2) == ["not_converged"]
    assert names(lambda s, _: s * jnp.nan, [3.0], -1.0, 1.0) == ["not_converged"]
    # fn ends at 2, inside the interval given: the root below is found, a value beyond is not claimed to be outside.
    undefined = names(lambda s, _: jnp.where(s < 2, s, jnp.nan), [1.5, 3.0], 0.0, jnp.inf)
    assert undefined == ["successful", "not_converged"]


def test_root_next_to_a_pole_is_the_last_float_before_it():
    root = monotone_root(lambda s, _: 1 / (1 - s), jnp.asarray([1e10, 1e30]), -jnp.inf, 1.0)
    assert jnp.all(root.ok)
    assert root.value[1] == np.nextafter(1.0, 0.0)
    assert root.value[0] == pytest.approx(1 - 1e-10, abs=2e-16)


def test_derivatives_three_ways():
    rng = np.random.default_rng(1)
    y, P, S = (jnp.asarray(rng.uniform(0.5, 2, 5)) for _ in range(3))

    def implicit(y, P, S):
        return power_root(y, P, S).value

    def unrolled(y, P, S):
        s = jax.lax.stop_gradient(implicit(y, P, S))
        for _ in range(3):  # each Newton step from the root makes one more order of derivatives right
            value, slope = jax.jvp(lambda s: power(s, (P, S)), (s,), (jnp.ones_like(s),))
            s = s - (value - y) / slope
        return s

    def total(function):
        return lambda P: jnp.sum(jnp.sin(20 * function(y, P, S)))

    @jax.jit  # one program: each derivative outside jit would be compiled by itself
    def everything(y, P, S):
        jacobians = [mode(implicit, (0, 1, 2))(y, P, S) for mode in (jax.jacfwd, jax.jacrev)]
        hessians = jax.hessian(total(implicit))(P), jax.jacrev(jax.jacrev(total(implicit)))(P)
        return jacobians, jax.jacfwd(unrolled, (0, 1, 2))(y, P, S), hessians, jax.hessian(total(unrolled))(P)

    jacobians, through, (hessian, reverse_twice), hessian_through = everything(y, P, S)
    for i in range(3):
        step = jnp.zeros(5).at[2].set(1e-5)
        shifted = [[b + sign * step if i == j else b for j, b in enumerate((y, P, S))] for sign in (1, -1)]
        difference = (implicit(*shifted[0]) - implicit(*shifted[1])) / 2e-5
        for ours in jacobians:
            np.testing.assert_allclose(ours[i], through[i], rtol=1e-11, atol=1e-14)
            # Central differences: 1e-10 third derivatives, and 1e-16 / 1e-5 of rounding.
            np.testing.assert_allclose(ours[i][:, 2], difference, atol=1e-8)
    np.testing.assert_allclose(hessian, hessian_through, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(reverse_twice, hessian, rtol=1e-12, atol=1e-13)


def test_derivative_in_the_leaves_of_a_module():
    class Scaled(eqx.Module):
        rate: jax.Array

        def __call__(self, s, args):
            return jnp.sinh(self.rate * s)

    def root(rate):
        return monotone_root(Scaled(rate), jnp.asarray([2.0]), -jnp.inf, jnp.inf).value[0]

    # s = arcsinh(2) / rate
    assert jax.grad(root)(jnp.asarray(3.0)) == pytest.approx(-np.arcsinh(2) / 9, rel=1e-14)
    assert jax.grad(jax.grad(root))(jnp.asarray(3.0)) == pytest.approx(2 * np.arcsinh(2) / 27, rel=1e-14)


def test_a_failed_point_spoils_no_derivative_of_another():
    y = jnp.asarray([0.3, 2.0, -0.4])

    def roots(rate, y):
        return monotone_root(lambda s, rate: jnp.tanh(rate * s), y, -jnp.inf, jnp.inf, rate)

    def total(rate, y):
        recovered = roots(rate, y)
        return jnp.sum(jnp.where(recovered.ok, recovered.value, 0.0) ** 2)

    rate, slopes = jnp.asarray(2.0), jax.jit(jax.grad(total, (0, 1)))
    expected, _ = slopes(rate, jnp.asarray([0.3, -0.4]))
    slope, along_y = slopes(rate, y)
    assert slope == pytest.approx(float(expected), rel=1e-14)
    assert np.all(np.isfinite(along_y))
    forward = jax.jit(jax.jacfwd(lambda rate: roots(rate, y).value))(rate)
    assert np.array_equal(np.isnan(forward), [False, True, False])


def test_float32_vmap_and_jit():
    y = jnp.linspace(-5, 5, 12, dtype=jnp.float32).reshape(3, 4)
    solve = jax.jit(jax.vmap(lambda y: monotone_root(lambda s, _: jnp.sinh(s), y, -jnp.inf, jnp.inf)))
    recovered = solve(y)
    assert recovered.value.dtype == jnp.float32
    assert jnp.all(recovered.ok)
    assert recovered.ok.shape == (3, 4)
    np.testing.assert_allclose(recovered.value, np.arcsinh(y), rtol=8 * float(np.finfo(np.float32).eps))


def test_fn_must_be_elementwise():
    with pytest.raises(ValueError, match="elementwise"):
        monotone_root(lambda s, _: jnp.sum(s), jnp.ones(3), 0.0, 1.0)


def dual_objective(nu, args):
    """The dual of predicting a limit, for the hyperbolic entropy: badly scaled when the columns of Z are."""
    Z, y, scale = args
    return scale / 2 * jnp.sum(jnp.cosh(2 * (nu @ Z))) - jnp.sum(nu * y)


slope_of_dual = jax.jit(jax.grad(dual_objective))
hessian_of_dual = jax.jit(jax.hessian(dual_objective))


@pytest.fixture
def badly_scaled():
    rng = np.random.default_rng(2)
    Z = rng.normal(size=(5, 9)) * np.logspace(-3, 3, 9)
    return jnp.asarray(Z * np.logspace(-2, 2, 5)[:, None]), jnp.asarray(rng.normal(size=5) * np.logspace(0, 4, 5))


@pytest.mark.parametrize("scale", [1e3, 1.0, 1e-8])
def test_convex_minimum_agrees_with_scipy(badly_scaled, scale):
    args = (*badly_scaled, jnp.asarray(scale))
    found = convex_minimum(dual_objective, jnp.zeros(5), args, rtol=1e-12, atol=1e-300)
    assert found.result == RESULTS.successful
    root = scipy.optimize.root(
        lambda nu: np.asarray(slope_of_dual(nu, args)),
        np.asarray(found.value) * 1.001,
        jac=lambda nu: np.asarray(hessian_of_dual(nu, args)),
        tol=1e-15,
    )
    # Both stop where the gradient is rounding; the condition number of the scaled Hessian is below 1e5.
    np.testing.assert_allclose(found.value, root.x, rtol=1e-9)


def test_convex_minimum_where_plain_newton_diverges():
    def value(z, _):
        return jnp.sum(jnp.sqrt(1 + (1e3 * z - 5e4) ** 2)) + 1e-6 * jnp.sum(z**2)

    def plain(z):
        return z - jnp.linalg.solve(jax.hessian(value)(z, None), jax.grad(value)(z, None))

    assert not jnp.all(jnp.abs(plain(jnp.zeros(2))) < 1e3)
    found = convex_minimum(value, jnp.zeros(2), rtol=1e-12, atol=0.0)
    assert found.result == RESULTS.successful
    # 1e6 t = -2e-6 z at the minimum, t = z - 50: t = -1e-10. The next Newton step is below the rtol asked for.
    np.testing.assert_allclose(found.value, 50 - 1e-10, rtol=1e-12)


def test_convex_minimum_refuses_trials_that_are_not_finite():
    def barrier(z, _):
        return -jnp.sum(jnp.log(z)) + 1e4 * jnp.sum(z)  # NaN for z < 0, where a plain step from 1 lands

    found = convex_minimum(barrier, jnp.ones(3), rtol=1e-13, atol=0.0)
    np.testing.assert_allclose(found.value, 1e-4, rtol=1e-12)


def test_convex_minimum_derivatives(badly_scaled):
    Z, y = badly_scaled

    @jax.jit
    def minimum(scale):
        return convex_minimum(dual_objective, jnp.zeros(5), (Z, y, scale), rtol=1e-13, atol=1e-300).value

    @jax.jit
    def unrolled(scale):
        nu = jax.lax.stop_gradient(minimum(scale))
        for _ in range(3):
            args = (Z, y, scale)
            nu = nu - solve_spd(jax.hessian(dual_objective)(nu, args), jax.grad(dual_objective)(nu, args))
        return nu

    scale, step = jnp.asarray(0.7), 1e-4
    difference = (minimum(scale + step) - minimum(scale - step)) / (2 * step)
    forward, reverse, twice, through, through_twice = jax.jit(
        lambda s: (
            jax.jacfwd(minimum)(s),
            jax.jacrev(minimum)(s),
            jax.jacfwd(jax.jacrev(minimum))(s),
            jax.jacfwd(unrolled)(s),
            jax.jacfwd(jax.jacfwd(unrolled))(s),
        )
    )(scale)
    for ours in (forward, reverse):
        # rtol: condition number 1e5 times eps; differences: third derivatives times 1e-8.
        np.testing.assert_allclose(ours, through, rtol=1e-9)
        np.testing.assert_allclose(ours, difference, rtol=1e-6)
    np.testing.assert_allclose(twice, through_twice, rtol=1e-8)


def test_convex_minimum_lanes_are_independent(badly_scaled):
    Z, y = badly_scaled

    def lane(scale):
        return convex_minimum(dual_objective, jnp.zeros(5), (Z, y, scale), rtol=1e-12, atol=1e-300)

    scales = jnp.asarray([1.0, -1.0, jnp.nan, 1e-3])
    lanes = jax.vmap(lane)(scales)
    assert list(status_name(lanes.result)) == ["successful", "not_converged", "not_converged", "successful"]
    assert np.array_equal(np.isnan(lanes.value).all(axis=1), [False, True, True, False])
    # Batched linear algebra sums in another order.
    np.testing.assert_allclose(lanes.value[3], lane(scales[3]).value, rtol=1e-9)


def test_damped_newton_solves_and_reports():
    Z = jnp.asarray(np.random.default_rng(3).normal(size=(3, 4)))
    y = jnp.asarray([1.0, -200.0, 3.0])

    def equations(z):
        return jnp.sinh(z @ Z) @ Z.T - y, jnp.cosh(z @ Z)

    def solve(max_steps):
        return damped_newton(
            equations,
            lambda z, cosh: (Z * cosh[None]) @ Z.T,
            jnp.zeros(3),
            tolerance=jnp.full(3, 1e-10),
            max_steps=max_steps,
        )

    found, cosh = solve(50)
    np.testing.assert_allclose(equations(found.value)[0], 0, atol=1e-10)
    np.testing.assert_allclose(cosh, jnp.cosh(found.value @ Z), rtol=1e-15)
    short, _ = solve(1)
    assert status_name(short.result) == "not_converged"
    assert jnp.all(jnp.isnan(short.value))
    assert short.residual > 1e-10


def test_solve_spd_ignores_units():
    rng = np.random.default_rng(4)
    root = rng.normal(size=(4, 4)) + 3 * np.eye(4)
    units = np.logspace(-60, 60, 4)
    matrix = units[:, None] * (root @ root.T) * units
    truth = rng.normal(size=4) / units
    # Condition number of root root^T, below 1e3, times eps.
    np.testing.assert_allclose(solve_spd(jnp.asarray(matrix), jnp.asarray(matrix @ truth)), truth, rtol=1e-11)
    assert jnp.all(jnp.isnan(solve_spd(-jnp.eye(2), jnp.ones(2))))
