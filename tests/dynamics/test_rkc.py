"""RKC against closed forms, numpy's Chebyshev polynomials, scipy's integrators and finite differences."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rkc_problems import heat, integrate, march, oracle, pendulum, polynomials
from scipy.integrate import solve_ivp

from mirrorjax.dynamics.solvers.rkc import RKC, _move, _Step
from mirrorjax.dynamics.solvers.rkc_coefficients import DAMPING, Method, later_stage, stages_needed

STAGES = (2, 3, 4, 7, 16, 50)


class TestMethod:
    @pytest.mark.parametrize("s", STAGES)
    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
    def test_coefficients(self, s, dtype):
        _, _, w1, a, b = polynomials(s)
        method = Method(jnp.array(s), dtype)
        stage = later_stage(jnp.array(s), method)
        # A few rounding errors; numpy's own evaluation loses s^2 of them in float64.
        tolerance = float(max(8 * jnp.finfo(dtype).eps, 4 * s**2 * np.finfo(float).eps))
        np.testing.assert_allclose([method.w1, stage.a, stage.b], [w1, a, b], rtol=tolerance)
        np.testing.assert_allclose(stage.c, 1.0, rtol=tolerance)

    @pytest.mark.parametrize("s", STAGES)
    def test_interval_is_the_published_one(self, s):
        published = 2 / 3 * (s**2 - 1) * (1 - 2 / 15 * DAMPING)
        # The published formula drops terms of order eps^2 = 0.024, with small factors.
        np.testing.assert_allclose(Method(jnp.array(s), jnp.float64).interval, published, rtol=3e-3)

    def test_number_of_stages_is_enough_and_least(self):
        s = jnp.arange(3, 3000)
        interval = jax.vmap(lambda s: Method(s, jnp.float64).interval)
        z = interval(s) * 0.99  # the 1.54 of the paper is 0.6% above the exact factor
        needed = jax.vmap(stages_needed)(z).astype(int)
        assert (needed <= s).all()
        assert (interval(needed) >= z).all()
        assert (interval(jnp.maximum(needed - 1, 2)) <= z * 1.02).all()
        assert stages_needed(jnp.array(0.0)) == 2

    @pytest.mark.parametrize("s", STAGES)
    def test_stability_polynomial(self, s):
        def amplification(z):
            one = jnp.array(1.0)
            field = lambda t, y: z * y  # noqa: E731
            closed = eqx.filter_closure_convert(field, one, one)
            return 1 + _move(_Step(closed, jnp.array(0.0), one, one, one, z, jnp.array(s)), max_stages=64)

        T, w0, w1, a, b = polynomials(s)
        z = jnp.linspace(-(1 + w0) / w1, 0, 401)
        values = jax.vmap(amplification)(z)
        # Rounding errors grow like s^2, in the recurrence as in numpy's sum.
        np.testing.assert_allclose(values, a + b * T(w0 + w1 * np.asarray(z)), atol=10 * s**2 * np.finfo(float).eps)
        assert (jnp.abs(values) <= 1 + 1e-12).all()
        # An even T_s passes 1 at -w_0; an odd one must fall to -(1 + a)/b > -6, where cosh(s phi) = 6, phi = 2.48/s.
        outside = 1.001 * w0 if s % 2 == 0 else np.cosh(2.5 / s) * w0
        assert abs(amplification(jnp.array(-(w0 + outside) / w1))) > 1

    def test_lanes_of_a_batch_need_different_stages(self):
        """33 lanes, of which few need many stages: the batch is narrowed to 8 and each lane gets its own polynomial."""
        stages = np.full(33, 2)
        stages[[3, 8, 20]] = 40
        stages[10:16] = np.arange(5, 11)
        z = np.linspace(-0.9, -0.1, 33)
        one = jnp.array(1.0)

        @jax.jit
        def amplification(z, s):
            closed = eqx.filter_closure_convert(lambda t, y: z * y, one, one)
            return 1 + _move(_Step(closed, jnp.array(0.0), one, one, one, z, s), max_stages=64)

        expected = []
        for s, at in zip(stages, z, strict=True):
            T, w0, w1, a, b = polynomials(int(s))
            expected.append(a + b * T(w0 + w1 * at))
        batch = jax.jit(jax.vmap(amplification))(jnp.asarray(z), jnp.asarray(stages))
        np.testing.assert_allclose(batch, expected, atol=10 * 40**2 * np.finfo(float).eps)
        # One number of stages for all, and all but one number the same, are batches too.
        shared = jax.jit(jax.vmap(amplification, in_axes=(0, None)))(jnp.asarray(z), jnp.array(7))
        alone = [amplification(at, jnp.array(7)) for at in jnp.asarray(z)]
        np.testing.assert_allclose(shared, alone, rtol=1e-14)


class TestOrder:
    # The error constant depends on s: a safety factor proportional to 1/h keeps s at 2, or near 6.
    @pytest.mark.parametrize("safety", [1.2, 200.0])
    def test_second_order(self, safety):
        y0 = jnp.array([1.0, 0.5])
        exact = oracle(lambda t, y: np.asarray(pendulum(t, jnp.asarray(y))), y0, 2.0)
        errors = [
            float(jnp.linalg.norm(march(pendulum, y0, 2.0, n, solver=RKC(safety=safety * n / 40)).ys[0] - exact))
            for n in (40, 80, 160)
        ]
        orders = np.log2(np.divide(errors[:-1], errors[1:]))
        # The next order of the expansion contributes O(h), 1/20 in the first pair.
        np.testing.assert_allclose(orders, 2.0, atol=0.15)

    def test_error_estimate_is_third_order(self):
        solver, terms = RKC(), diffrax.ODETerm(pendulum)
        t0, y0 = jnp.array(0.0), jnp.array([1.0, 0.5])

        def estimate(h):
            state = solver.init(terms, t0, t0 + h, y0, None)
            return jnp.linalg.norm(solver.step(terms, t0, t0 + h, y0, None, state, False)[1])

        errors = jax.vmap(estimate)(jnp.array([0.04, 0.02, 0.01]))
        np.testing.assert_allclose(jnp.log2(errors[:-1] / errors[1:]), 3.0, atol=0.15)

    def test_dense_output(self):
        ts = jnp.linspace(0.0, 2.0, 23)
        y0 = jnp.array([1.0, 0.5])
        sol = integrate(pendulum, y0, 2.0, saveat=diffrax.SaveAt(ts=ts, dense=True))
        exact = solve_ivp(
            lambda t, y: np.asarray(pendulum(t, jnp.asarray(y))),
            (0, 2),
            np.asarray(y0),
            rtol=1e-10,
            atol=1e-12,
            t_eval=ts,
        ).y.T
        # Errors of 1e-6 in each of some hundred steps, damped; the interpolant adds O(h^4).
        np.testing.assert_allclose(sol.ys, exact, atol=3e-5)
        np.testing.assert_allclose(jax.vmap(sol.evaluate)(ts), sol.ys, atol=1e-12)


class TestStiff:
    @pytest.mark.parametrize("rtol", [1e-3, 1e-5])
    def test_heat_equation(self, rtol):
        field, exact = heat(100)
        x = np.arange(1, 101) / 101
        u0 = x * (1 - x) * (1 + np.sin(9 * x))
        sol = integrate(field, jnp.asarray(u0), 0.1, rtol=rtol, atol=rtol * 1e-2)
        explicit = integrate(field, jnp.asarray(u0), 0.1, solver=diffrax.Tsit5(), rtol=rtol, atol=rtol * 1e-2)
        error = np.linalg.norm(sol.ys[0] - exact(u0, 0.1)) / np.linalg.norm(exact(u0, 0.1))
        # The error per step is rtol; the flow forgets errors, and some twenty steps are made in the time it takes.
        assert error < 20 * rtol
        work = sol.solver_state.num_evaluations + sol.solver_state.num_products
        # Stability limits Tsit5 to h rho = 3.3 for 6 evaluations, 7400 in all; RKC needs about 450 and 1000.
        assert 8 * work < 6 * explicit.stats["num_steps"]
        assert sol.stats["num_rejected_steps"] <= 8  # while the first step is found

    def test_matrix_flow_with_switch_off(self):
        rng = np.random.default_rng(0)
        n, m, t_off, t1 = 10, 60, 20.0, 60.0
        U = rng.normal(size=(n, 2))
        X = U @ U.T / np.sum(U**2)
        B = rng.normal(size=(m, n, n))
        A = (B + B.transpose(0, 2, 1)) / 2

        def velocity(U, alpha):
            residual = np.einsum("ijk,jk->i", A, U @ U.T - X)
            return -2 * np.einsum("i,ijk->jk", residual, A) @ U / m - 2 * alpha * U

        def field(t, U, args):
            residual = jnp.einsum("ijk,jk->i", jnp.asarray(A), U @ U.T - X)
            return -2 * jnp.einsum("i,ijk->jk", residual, jnp.asarray(A)) @ U / m - 2 * jnp.where(t < t_off, 0.2, 0) * U

        middle = oracle(lambda t, U: velocity(U.reshape(n, n), 0.2).ravel(), np.eye(n).ravel(), t_off)
        exact = oracle(lambda t, U: velocity(U.reshape(n, n), 0.0).ravel(), middle, t1, t0=t_off).reshape(n, n)
        sol = integrate(field, jnp.eye(n), t1, rtol=1e-5, atol=1e-8, jumps=[t_off])
        # Errors of 1e-5 in each of about 400 steps; the flow forgets most of them.
        assert np.linalg.norm(sol.ys[0] - exact) < 1e-4 * np.linalg.norm(exact)

    def test_jump_renews_field_and_radius(self):
        def field(t, y, args):
            rate = jnp.where(t < 1.0, 1.0, 1000.0)
            return -rate * (y - jnp.where(t < 1.0, 0.0, 2.0))

        declared = integrate(field, jnp.array([1.0, 3.0]), 2.0, rtol=1e-4, atol=1e-6, jumps=[1.0])
        assert jnp.allclose(declared.ys, 2.0, atol=1e-5)  # e^{-1000} of the past is left
        # The step that crosses 1 comes 1000 times too long: log_5(1000) = 4.3 rejections bring it down.
        assert declared.stats["num_rejected_steps"] <= 7

    def test_backward_in_time(self):
        forward = integrate(pendulum, jnp.array([1.0, 0.5]), 1.0, rtol=1e-8, atol=1e-10)
        backward = integrate(pendulum, forward.ys[0], 0.0, t0=1.0, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(backward.ys[0], [1.0, 0.5], atol=1e-6)


class TestRadius:
    def test_zero_jacobian(self):
        sol = march(lambda t, y, args: jnp.ones_like(y), jnp.zeros(3), 1.0, 4)
        np.testing.assert_allclose(sol.ys[0], 1.0, rtol=1e-14)
        assert sol.solver_state.radius == 0
        assert sol.solver_state.num_evaluations == 1 + 4 * 2

    @pytest.mark.parametrize(
        ("matrix", "what"),
        [
            ([[5.0, 0.0], [0.0, -50.0]], "growing"),
            ([[-1.0, 8.0], [-8.0, -40.0]], "damped rotation"),
            ([[-3.0, 40.0], [0.0, -3.0]], "defective"),
            ([[-0.5, 3.0], [-3.0, -0.5]], "complex pair"),
        ],
    )
    def test_linear_systems(self, matrix, what):
        M = jnp.asarray(matrix)
        y0 = jnp.array([1.0, -1.0])
        sol = integrate(lambda t, y, args: M @ y, y0, 1.0, rtol=1e-5, atol=1e-7)
        exact = jax.scipy.linalg.expm(M) @ y0
        # As above: the sum of the errors made in some hundred steps; what grows, grows with the solution.
        np.testing.assert_allclose(sol.ys[0], exact, rtol=1e-3, atol=1e-4, err_msg=what)

    def test_finds_an_eigenvector_that_overtakes(self):
        def rates(t):
            return jnp.array([4000.0, 1.0, 1.0]) * jnp.exp(-t) + jnp.array([1.0, 2000.0, 1.0]) * (1 - jnp.exp(-t))

        def field(t, y, args):
            return -rates(t) * (y - jnp.sin(t))

        sol = integrate(field, jnp.zeros(3), 4.0, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(sol.solver_state.radius, rates(4.0).max(), rtol=0.02)
        lag = jnp.cos(4.0) / rates(4.0)[:2]  # y = sin t - cos t / rate, up to terms of order 1 / rate^2 = 2e-4
        np.testing.assert_allclose(sol.ys[0][:2], jnp.sin(4.0) - lag, atol=1e-3)
        # Exactly diagonal, the hardest case: without the share of all directions 103 steps were rejected, with it 32.
        assert sol.stats["num_rejected_steps"] < 60


class TestLimits:
    def test_too_few_stages_shrink_the_step(self):
        field, exact = heat(30)
        u0 = np.sin(np.pi * np.arange(1, 31) / 31)
        sol = integrate(field, jnp.asarray(u0), 0.2, solver=RKC(max_stages=5), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(sol.ys[0], exact(u0, 0.2), atol=1e-4)
        # beta(5) = 15.7 and safety 1.2 allow h = 0.0034, 59 steps; shrinking by 5 wastes at most that factor.
        assert sol.stats["num_accepted_steps"] < 5 * 59

    def test_too_few_stages_in_a_fixed_step_fail(self):
        field, _ = heat(30)
        sol = march(field, jnp.ones(30), 0.2, 10, solver=RKC(max_stages=5), throw=False)
        assert sol.result == diffrax.RESULTS.dt_min_reached

    def test_a_jacobian_that_is_not_finite_fails(self):
        sol = integrate(lambda t, y, args: y**2, jnp.array([1.0]), 2.0, throw=False, max_steps=2000)
        assert sol.result != diffrax.RESULTS.successful

    @pytest.mark.parametrize("max_stages", [1])
    def test_bad_stages(self, max_stages):
        with pytest.raises(ValueError, match="max_stages must be a whole number"):
            RKC(max_stages=max_stages)

    @pytest.mark.parametrize("safety", [0.5, float("nan"), float("inf")])
    def test_bad_safety(self, safety):
        with pytest.raises(ValueError, match="safety must be at least 1"):
            RKC(safety=safety)
