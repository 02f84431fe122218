"""RKC under vmap and derivatives, in each precision, with events, and resumed."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rkc_problems import heat, integrate, march, pendulum, polynomials

from mirrorjax.dynamics.solvers.rkc import RKC, RKCState


class TestTransformations:
    def test_counts(self):
        field, _ = heat(30)
        sol = march(field, jnp.ones(30), 0.01, 10)
        rho = 4 * 31**2 * np.sin(np.pi * 30 / 62) ** 2
        # The estimate is at most rho, and was settled to within a few percent of it.
        least, most = (np.ceil(np.sqrt(1 + 1.54 * 1.2 * 0.001 * factor * rho)) for factor in (0.9, 1.0))
        assert 1 + 10 * least <= int(sol.solver_state.num_evaluations) <= 1 + 10 * most
        assert 10 < sol.solver_state.num_products <= 60

    def test_vmap_equals_loop(self):
        def lane(rate, t_off):
            def field(t, y, args):
                return -rate * (y - jnp.where(t < t_off, jnp.cos(t), 1.0)) * jnp.arange(1.0, 5.0)

            sol = integrate(field, jnp.zeros(4), 3.0, rtol=1e-4, jumps=t_off[None])
            return sol.ys[0], sol.solver_state.num_evaluations, sol.stats["num_accepted_steps"]

        lane = jax.jit(lane)
        rates, offs = jnp.array([1.0, 30.0, 2000.0]), jnp.array([1.0, 5.0, 0.5])
        ys, evaluations, steps = jax.vmap(lane)(rates, offs)
        assert len(set(evaluations.tolist())) == 3
        for i in range(3):
            y, evaluation, step = lane(rates[i], offs[i])
            assert (evaluation, step) == (evaluations[i], steps[i])
            np.testing.assert_allclose(ys[i], y, rtol=1e-12)

    def test_gradients(self):
        """In a closed-over number, y0 and args, through some 20 stages a step: two levels of the bounded loop."""

        def loss(p, adjoint):
            def field(t, y, args):
                return -p[0] * jnp.arange(1.0, 6.0) * (y**3 + y - args * jnp.cos(t))

            options = {"solver": RKC(max_stages=32, safety=60.0), "adjoint": adjoint, "args": p[2], "max_steps": 16}
            return jnp.sum(jnp.sin(march(field, jnp.full(5, p[1]), 0.8, 8, **options).ys[0]))

        lanes = jnp.array([[3.0, 0.7, 1.3], [2.0, 0.5, 0.9]])
        value = jax.jit(jax.vmap(lambda p: loss(p, diffrax.RecursiveCheckpointAdjoint())))
        differences = [(value(lanes + d) - value(lanes - d)) / 2e-5 for d in 1e-5 * jnp.eye(3)[:, None, :].repeat(2, 1)]
        adjoints = diffrax.RecursiveCheckpointAdjoint(), diffrax.ForwardMode()
        for differentiate, adjoint in zip((jax.grad, jax.jacfwd), adjoints, strict=True):
            gradient = jax.jit(jax.vmap(differentiate(functools.partial(loss, adjoint=adjoint))))(lanes)
            # Central differences of step 1e-5: truncated by 1e-10, rounded by 1e-16 / 1e-5.
            np.testing.assert_allclose(
                gradient, jnp.stack(differences, axis=1), rtol=1e-8, atol=1e-9, err_msg=f"{adjoint}"
            )

    def test_gradient_of_an_adaptive_solve_with_a_jump(self):
        rate, t1 = 30.0, 2.0

        def final(t_off):
            field = lambda t, y, args: -rate * (y - jnp.where(t < t_off, 0.0, t - t_off))  # noqa: E731
            return integrate(field, jnp.array(1.0), t1, rtol=1e-7, atol=1e-9, jumps=t_off[None], max_steps=4096).ys[0]

        def exact(t_off):
            elapsed = t1 - t_off
            return jnp.exp(-rate * t1) + elapsed - (1 - jnp.exp(-rate * elapsed)) / rate

        t_off = jnp.array(0.7)
        value, slope = jax.jit(jax.value_and_grad(final))(t_off)
        np.testing.assert_allclose(value, exact(t_off), rtol=1e-5)
        # The derivative is as accurate as the solution: errors of 1e-7 in each of some hundred steps.
        np.testing.assert_allclose(slope, jax.grad(exact)(t_off), rtol=1e-5)

    @pytest.mark.parametrize("slow_dtype", [jnp.float32, jnp.float64])
    def test_precision_of_each_leaf_is_kept(self, slow_dtype):
        def field(t, y, args):
            assert t.dtype == y[0].dtype == jnp.float32
            assert y[1]["slow"].dtype == slow_dtype
            return -100.0 * y[0], {"slow": -y[1]["slow"]}

        y0 = (jnp.ones(3, jnp.float32), {"slow": jnp.ones((2, 2), slow_dtype)})
        # diffrax's adaptive controller itself does not take two dtypes under strict promotion; its fixed steps do.
        steps = {"stepsize_controller": diffrax.ConstantStepSize(), "dt0": 1 / 32}
        sol = integrate(field, y0, jnp.float32(1.0), t0=jnp.float32(0.0), **steps)
        fast, slow = sol.ys[0], sol.ys[1]["slow"]
        assert (fast.dtype, slow.dtype, sol.solver_state.radius.dtype) == (jnp.float32, slow_dtype, jnp.float32)
        np.testing.assert_allclose(sol.solver_state.radius, 100.0, rtol=0.01)
        T, w0, w1, a, b = polynomials(3)  # the 3 stages that 1.2 * 100 / 32 needs
        np.testing.assert_allclose(
            fast, (a + b * T(w0 - w1 * 100 / 32)) ** 32, rtol=1e-3
        )  # 32 roundings, each of z eps
        np.testing.assert_allclose(slow[0, 0], np.exp(-1.0), rtol=1e-3)  # h^2 / 6

    def test_float32_adaptive(self):
        field = lambda t, y, args: -jnp.array([1e4, 1e2, 1.0], jnp.float32) * (y - jnp.cos(t))  # noqa: E731
        sol = integrate(field, jnp.zeros(3, jnp.float32), jnp.float32(3.0), t0=jnp.float32(0.0), rtol=1e-4, atol=1e-6)
        # y = (k^2 cos t + k sin t) / (1 + k^2) once the start is forgotten, which e^{-3t} shows in the last one.
        k, t = np.array([1e4, 1e2, 1.0]), 3.0
        exact = (k**2 * np.cos(t) + k * np.sin(t) - k**2 * np.exp(-k * t)) / (1 + k**2)
        np.testing.assert_allclose(sol.ys[0], exact, atol=1e-3)

    def test_saves_steps(self):
        sol = integrate(pendulum, jnp.array([1.0, 0.5]), 1.0, saveat=diffrax.SaveAt(steps=True), max_steps=256)
        count = int(sol.stats["num_accepted_steps"])
        assert jnp.isfinite(sol.ys[:count]).all()
        assert sol.ts[count - 1] == 1.0

    def test_event(self):
        event = diffrax.Event(diffrax.steady_state_event(rtol=1e-3, atol=1e-3))
        sol = integrate(lambda t, y, args: 1.0 - y, jnp.zeros(2), 100.0, event=event)
        assert sol.result == diffrax.RESULTS.event_occurred
        np.testing.assert_allclose(sol.ys[0], 1.0, atol=5e-3)

    def test_resumes_to_the_same_bits(self):
        field, _ = heat(20)
        saveat = diffrax.SaveAt(t1=True, solver_state=True, controller_state=True)
        once, again = (integrate(field, jnp.ones(20), 0.05, saveat=saveat) for _ in range(2))
        assert isinstance(once.solver_state, RKCState)
        ends = [
            integrate(
                field,
                half.ys[0],
                0.1,
                t0=0.05,
                solver_state=half.solver_state,
                controller_state=half.controller_state,
            ).ys
            for half in (once, again)
        ]
        assert (ends[0] == ends[1]).all()
