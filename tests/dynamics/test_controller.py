"""GiveUp: a blow-up ends the solve at the spacing of floats, an early switch-off does not. Stopping: at every jump."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mirrorjax.dynamics.solvers.controller import GiveUp, Stopping


def run(rate, y0, t1, jump_ts=None, dt0=None):
    control = GiveUp(diffrax.PIDController(rtol=1e-6, atol=1e-8))
    if jump_ts is not None:
        control = Stopping(control, jnp.array(jump_ts))
    return diffrax.diffeqsolve(
        diffrax.ODETerm(rate),
        diffrax.Tsit5(),
        jnp.array(0.0),
        jnp.array(t1),
        dt0,
        jnp.array(y0),
        stepsize_controller=control,
        max_steps=20_000,
        throw=False,
    )


@pytest.mark.parametrize("t_blow", [1e-6, 1.0, 1e4])
def test_a_blow_up_ends_soon(t_blow):
    """y' = y^2 / t_blow from 1: y = 1 / (1 - t / t_blow)."""
    sol = run(lambda t, y, args: y**2 / t_blow, 1.0, 2 * t_blow)
    assert sol.result != diffrax.RESULTS.successful
    assert sol.result != diffrax.RESULTS.max_steps_reached
    # Each step brings t nearer by a factor, so some dozens for each of the 16 digits of t.
    assert int(sol.stats["num_steps"]) < 1000


def test_a_singular_slope_ends_soon():
    """y' = -1 / (2 y) from 1 reaches 0 at t = 1, and beyond it there is nothing: NaN, as from a logarithm."""
    sol = run(lambda t, y, args: jnp.where(y > 0, -0.5 / y, jnp.nan), 1.0, 2.0)
    assert sol.result != diffrax.RESULTS.successful
    assert int(sol.stats["num_steps"]) < 1000


@pytest.mark.parametrize("jump", [1e-300, 1e-12, 1e-3])
def test_an_early_jump_is_no_alarm(jump):
    sol = run(lambda t, y, args: jnp.where(t < jump, -1e3, -1.0) * y, 1.0, 2.0, jump_ts=[jump])
    assert sol.result == diffrax.RESULTS.successful
    assert sol.ys is not None
    # Errors of 1e-6 a step.
    np.testing.assert_allclose(sol.ys[-1], np.exp(-1e3 * jump - (2 - jump)), rtol=1e-4)


def test_steps_are_those_of_the_wrapped_controller():
    def rate(t, y, args):
        return -y * (1 + jnp.sin(20 * t))

    plain = diffrax.diffeqsolve(
        diffrax.ODETerm(rate),
        diffrax.Tsit5(),
        jnp.array(0.0),
        jnp.array(3.0),
        None,
        jnp.array(1.0),
        stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-8),
    )
    sol = run(rate, 1.0, 3.0)
    np.testing.assert_array_equal(sol.ys, plain.ys)
    assert int(sol.stats["num_steps"]) == int(plain.stats["num_steps"])


def test_the_first_step_is_a_constant_and_its_clipping_moves():
    """Where the first step ends at the jump, its end moves with the jump; where it does not, with nothing."""

    def planned(jump):
        control = Stopping(GiveUp(diffrax.PIDController(rtol=1e-6, atol=1e-8)), jump[None])
        term, func = diffrax.ODETerm(lambda t, y, args: -y), lambda terms, t, y, args: terms.vf(t, y, args)
        begun = jnp.array(0.0), jnp.array(2.0), jump
        step, _ = control.init(term, *begun, None, None, func, 5)
        # Given to another solve as its first step, as `solve` does.
        again, _ = control.init(term, *begun, step, None, func, 5)
        return step, again

    early = jax.jvp(planned, (jnp.array(1e-3),), (jnp.array(1.0),))
    late = jax.jvp(planned, (jnp.array(1.5),), (jnp.array(1.0),))
    np.testing.assert_allclose(early[0], 1e-3, rtol=1e-15)
    np.testing.assert_array_equal(early[1], [1.0, 1.0])
    assert float(late[0][0]) < 1.5
    np.testing.assert_array_equal(late[1], [0.0, 0.0])


@pytest.mark.parametrize("jumps", [[0.3], [0.1, 0.3, 0.3, 1.7, 5.0], [0.5, 0.5 + 2**-53], [2.0]])
def test_steps_stop_where_those_of_diffrax_do(jumps):
    """Step by step, with the derivatives of the times in the jumps; at t0 and t1 too, and at neighbours of a jump."""

    def rate(t, y, args):
        strength = 1.0 + 3.0 * jnp.sum(jnp.where(t >= args, jnp.arange(1.0, args.size + 1), 0.0))
        return -strength * y

    def end(control, jumps):
        saveat = diffrax.SaveAt(steps=True)
        terms, start = diffrax.ODETerm(rate), jnp.ones(2)
        adjoint, more = diffrax.ForwardMode(), {"stepsize_controller": control(jumps), "max_steps": 200}
        sol = diffrax.diffeqsolve(
            terms, diffrax.Tsit5(), 0.0, 2.0, None, start, args=jumps, saveat=saveat, adjoint=adjoint, **more
        )
        return sol.ts, sol.ys

    plain = diffrax.PIDController(rtol=1e-6, atol=1e-8)
    jumps = jnp.array(jumps, float)

    def of(control):
        (ts, ys), (slopes, _) = jax.jit(lambda jumps: jax.jvp(lambda jumps: end(control, jumps), (jumps,), (jumps,)))(
            jumps
        )
        return ts, ys, slopes

    ours = of(lambda jumps: Stopping(plain, jumps))
    for mine, theirs in zip(ours, of(lambda jumps: diffrax.ClipStepSizeController(plain, jump_ts=jumps)), strict=True):
        np.testing.assert_array_equal(mine, theirs)
