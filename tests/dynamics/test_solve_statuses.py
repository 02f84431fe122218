"""solve(): how it ends, and lanes that end in other ways than their neighbours."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flow_problems import TS, hadamard_problem, switched

from mirrorjax.dynamics import DualFlow, MirrorFlow, PrimalFlow, RiemannianFlow, solve
from mirrorjax.problem import (
    CustomObjective,
    FromOptax,
    Linear,
    Problem,
    Square,
    SwitchOff,
    WeightDecay,
)
from mirrorjax.results import RESULTS, status_name
from mirrorjax.sweeps import sweep


@eqx.filter_jit
def lanes(alphas, t_offs):
    """Lanes of the shared problem over three save times; five lanes in every test, for one program."""
    problem, w0 = switched()

    def lane(alpha, t_off):
        schedule = SwitchOff(alpha, t_off)
        return solve(eqx.tree_at(lambda p: p.schedule, problem, schedule), w0, t1=2.0, saveat=TS[:3], throw=False)

    return eqx.filter_vmap(lane)(alphas, t_offs)


def test_lanes_equal_single_solves():
    _, w0 = switched()
    alphas, t_offs = jnp.array([0.1, 0.5, 0.0, 0.2, 0.3]), jnp.array([1.0, jnp.inf, 1.0, 0.0, 1.9])
    sol = lanes(alphas, t_offs)
    for i in range(5):
        one = solve(hadamard_problem(SwitchOff(alphas[i], t_offs[i]))[0], w0, t1=2.0, saveat=TS[:3])
        # The same steps; batched products may round differently.
        np.testing.assert_allclose(sol.x[i], one.x, rtol=1e-9, atol=1e-12)
        assert int(sol.stats["steps"][i]) == int(one.stats["steps"])


def explosive():
    """x = w, f = -sum x^3 / 3: x' = x^2, which reaches infinity at t = 1/x0."""
    return Problem(Linear(), WeightDecay(), 0.0, CustomObjective(lambda x: -jnp.sum(x**3) / 3))


def test_blow_up_is_found_quickly():
    sol = solve(explosive(), jnp.ones(1), t1=2.0, saveat=jnp.array([0.5, 1.5, 2.0]), throw=False)
    assert (sol.result == RESULTS.step_size_underflow) | (sol.result == RESULTS.diverged)
    assert int(sol.stats["steps"]) < 1000
    np.testing.assert_allclose(sol.t_end, 1.0, atol=1e-4)
    np.testing.assert_allclose(sol.x[0], 2.0, rtol=1e-5)
    assert jnp.all(jnp.isnan(sol.x[1:]))
    assert jnp.all(jnp.isnan(sol.loss[1:]))
    with pytest.raises(RuntimeError, match=r"blows up in finite time|infinite or NaN"):
        solve(explosive(), jnp.ones(1), t1=2.0, saveat=jnp.array([0.5, 1.5, 2.0]))


def test_out_of_steps():
    problem, w0 = switched()
    sol = solve(problem, w0, t1=100.0, saveat=jnp.array([0.1, 100.0]), max_steps=5, throw=False)
    assert sol.result == RESULTS.max_steps_reached
    assert int(sol.stats["steps"]) == 5
    assert 0 < float(sol.t_end) < 100.0
    assert jnp.all(jnp.isfinite(sol.last.x))
    assert jnp.all(jnp.isnan(sol.x[-1]))
    with pytest.raises(RuntimeError, match="ran out of steps"):
        solve(problem, w0, t1=100.0, saveat=jnp.array([0.1, 100.0]), max_steps=5)


def test_bad_lanes_spoil_no_others():
    """A strength below 0, one that is NaN and a time that is NaN each get their status; the others keep every bit."""
    good = lanes(jnp.array([0.3, 0.1, 0.2, 0.3, 0.5]), jnp.array([1.0, 1.0, 1.0, 1.0, 0.5]))
    mixed = lanes(jnp.array([0.3, -0.1, jnp.nan, 0.3, 0.5]), jnp.array([1.0, 1.0, 1.0, jnp.nan, 0.5]))
    expected = ["successful", "invalid_schedule", "invalid_schedule", "invalid_schedule", "successful"]
    assert list(status_name(mixed.result)) == expected
    for i in (0, 4):
        np.testing.assert_array_equal(mixed.x[i], good.x[i])
        np.testing.assert_array_equal(mixed.loss[i], good.loss[i])
    assert jnp.all(jnp.isnan(mixed.x[1:4]))


def test_a_strength_at_which_the_velocity_overflows():
    """The finite velocity that replaces it has no error, so that no step would be rejected."""
    sol = lanes(jnp.array([1e308, 1e308, 0.1, 0.1, 0.1]), jnp.array([jnp.inf, 1e-300, 1.0, 1.0, 1.0]))
    assert list(status_name(sol.result)) == ["invalid_weights"] * 2 + ["successful"] * 3


def test_bad_options_of_a_lane_spoil_no_others():
    problem, w0 = switched()

    @jax.jit
    @jax.vmap
    def lanes(t1, rtol, atol, last):
        return solve(problem, w0, t1=t1, rtol=rtol, atol=atol, saveat=jnp.stack([jnp.zeros(()), last]), throw=False)

    good, nan, inf = (2.0, 1e-6, 1e-8, 2.0), jnp.nan, jnp.inf
    times = [(nan, 1e-6, 1e-8, 2.0), (inf, 1e-6, 1e-8, 2.0), (-2.0, 1e-6, 1e-8, 2.0), (2.0, 1e-6, 1e-8, 2.5)]
    numbers = [(2.0, bad, 1e-8, 2.0) for bad in (nan, 0.0, -1e-6)] + [(2.0, 1e-6, bad, 2.0) for bad in (nan, inf)]
    sol = lanes(*map(jnp.asarray, zip(good, *times, *numbers, strict=True)))
    expected = ["successful"] + ["invalid_times"] * len(times) + ["invalid_options"] * len(numbers)
    assert list(status_name(sol.result)) == expected
    # The same steps; batched products may round differently.
    np.testing.assert_allclose(sol.x[0, -1], solve(problem, w0, t1=2.0).x[-1], rtol=1e-9, atol=1e-12)
    assert jnp.all(jnp.isnan(sol.x[1:]))
    # A bad lane holds up no other: a tolerance that is NaN would reject every step.
    assert jnp.all(sol.stats["steps"][1:] == 1)


def test_weights_that_are_not_finite():
    problem, w0 = switched()
    for bad in (jnp.nan, jnp.inf):
        sol = solve(problem, (w0[0].at[1].set(bad), w0[1]), t1=1.0, throw=False)
        assert sol.result == RESULTS.invalid_weights
        assert jnp.all(jnp.isnan(sol.x))
        assert float(sol.t_end) == 0.0
        assert int(sol.stats["steps"]) == 1  # the lanes beside it in a batch do not wait
    with pytest.raises(RuntimeError, match="initial weights hold NaN"):
        solve(problem, (w0[0].at[1].set(jnp.nan), w0[1]), t1=1.0)


def test_negative_strengths_from_optax_under_vmap():
    base, w0 = hadamard_problem(0.1)

    @eqx.filter_jit
    @eqx.filter_vmap
    def lanes(step_size):
        schedule = FromOptax(lambda step: 1.0 - step, step_size)
        return solve(eqx.tree_at(lambda p: p.schedule, base, schedule), w0, t1=2.0, throw=False)

    sol = lanes(jnp.array([1.0, 4.0]))
    assert list(status_name(sol.result)) == ["invalid_schedule", "successful"]


def test_a_status_is_readable():
    assert "Successful: the end was reached" in repr(RESULTS.successful)
    assert "ran out of steps" in repr(RESULTS.max_steps_reached)


def test_out_of_steps_has_no_derivative():
    def last(t1):
        sol = solve(switched()[0], switched()[1], t1=t1, max_steps=5, throw=False)
        return sol.loss[-1], sol.result

    # One program with the derivative, and one without, which is other code of ours.
    (value, status), slope = jax.jit(jax.value_and_grad(last, has_aux=True))(100.0)
    assert jnp.isnan(value)
    assert jnp.isnan(slope)
    assert status == jax.jit(last)(100.0)[1] == RESULTS.max_steps_reached


def test_a_start_without_a_velocity_is_given_up_soon():
    """From weights 0 the dual flow has no R_a; the lanes beside it in a batch wait for no hundred thousand steps."""
    problem, w0 = switched()

    def lane(size):
        return solve(problem, jax.tree.map(lambda w: size * w, w0), t1=1.0, flow=DualFlow(), throw=False)

    sol = jax.jit(jax.vmap(lane))(jnp.array([1.0, 0.0]))
    assert list(status_name(sol.result)) == ["successful", "invalid_weights"]
    assert int(sol.stats["steps"][1]) < 1000


@pytest.mark.parametrize("flow", [PrimalFlow(), MirrorFlow(), RiemannianFlow()], ids=["primal", "mirror", "riemannian"])
def test_an_x_that_overflows_is_no_success(flow):
    """x = w^2 with x' = 4 x: the coordinates of the flows stay finite where x does not."""
    problem = Problem(Square(), WeightDecay(), 0.0, CustomObjective(lambda x: -jnp.sum(x)))
    sol = solve(problem, jnp.ones(3, jnp.float32), t1=40.0, flow=flow, throw=False)
    assert list(np.ravel(status_name(sol.result))) == ["diverged"]


def test_a_lane_of_a_sweep_whose_x_overflows():
    def lane(alpha):
        return Problem(Square(), WeightDecay(), alpha, CustomObjective(lambda x: -jnp.sum(x))), jnp.ones(3)

    ds = sweep(lane, {"alpha": [0.9, 0.0]}, t1=300.0, progress=False)
    assert list(ds["status"].values) == ["successful", "diverged"]
    assert np.all(np.isnan(ds["x"].values[1]))
