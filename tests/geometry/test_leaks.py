"""The clock, the least remaining time and the critical strengths, against scipy integrations of the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import mirrorjax as mj
from mirrorjax.results import RESULTS

OFF, C = 50.0, 1.0


def of_one_coordinate(depth=3, c=C):
    return mj.legendre(mj.Hadamard(depth), mj.WeightDecay(c), (jnp.zeros(1), *[jnp.ones(1)] * (depth - 1)))


def flowed(w0, alpha, t1, target=1.0, c=C, events=None):
    """scipy's solution of one coordinate x = w_1 .. w_p with f = (x - target)^2 / 2, to t1 under constant decay."""

    def rhs(t, w):
        return -(np.prod(w) - target) * np.array([np.prod(np.delete(w, j)) for j in range(w.size)]) - 2 * c * alpha * w

    return solve_ivp(rhs, (0, t1), w0, method="LSODA", rtol=1e-10, atol=1e-60, events=events)


@pytest.fixture(scope="module")
def R():
    return of_one_coordinate()


@pytest.fixture(scope="module")
def needed(R):
    """`remaining_time` to x of one coordinate from another x, both at a, compiled once."""

    @jax.jit
    def needed(x, here, a, slope):
        return mj.remaining_time(R, x[None], R.dual(here[None], a).value, a, slope)

    return lambda *numbers: needed(*(jnp.asarray(number, float) for number in numbers))


def test_the_clock_is_the_rate_of_nu(R):
    # w = e^s V with s = 2 c a, and nu = atan V_1 from (0, 1, 1): d nu/dt = -clock f'(x), by scipy on the weights.
    alpha, t, step = 0.2, 2.0, 1e-3
    nu = []
    for at in (t - step, t + step):
        w = flowed([0.0, 1.0, 1.0], alpha, at).y[:, -1]
        nu.append(np.arctan(w[0] * np.exp(2 * C * alpha * at)))
    x = np.prod(flowed([0.0, 1.0, 1.0], alpha, t).y[:, -1])
    rate = (nu[1] - nu[0]) / (2 * step)
    assert rate / (1 - x) == pytest.approx(float(mj.clock(R, -alpha * t)), rel=1e-5)  # second differences of step^2
    assert float(mj.clock(R, -15.0)) == pytest.approx(np.exp(-30), rel=1e-13)


def test_the_clock_of_a_commuting_pair_is_1():
    R = mj.legendre(mj.Hadamard(), mj.WeightDecay(0.7), (jnp.ones(2), jnp.zeros(2)))
    assert float(mj.clock(R, -3.0)) == 1.0


@pytest.mark.parametrize("alpha", [0.1, 0.3])
def test_the_remaining_time_bounds_a_recovery_from_below(alpha, needed):
    """About 1 at strength 0.1, where x stays alive; 1e12 and more at 0.3, which kills it (switched off at t = 50)."""
    off = flowed([0.0, 1.0, 1.0], alpha, OFF).y[:, -1]
    x = np.prod(off)

    def arrived(t, w):
        return np.prod(w) - 0.99

    arrived.terminal = True
    taken = flowed(off, 0.0, 1e16, events=arrived).t_events[0][0]
    least = float(needed(0.99, x, -alpha * OFF, 1 - x).value[0])
    # At 0.3 x stays tiny until the very end, so that the slope is its bound nearly all the time.
    assert (1 - 1e-6) * least < taken < (10 if alpha == 0.1 else 1.001) * least
    if alpha == 0.1:
        assert 0.1 < least < 10
    else:
        assert 1e11 < least < 1e14


def test_rounding_of_a_large_mu_is_no_time(needed):
    """Decay of 0.1 until t = 275 leaves x alive, with mu = 1e24 near the end of its interval: its rounding is 1e8."""
    off = flowed([0.0, 1.0, 1.0], 0.1, 275.0).y[:, -1]
    x = np.prod(off)

    def arrived(t, w):
        return np.prod(w) - 0.99

    arrived.terminal = True
    taken = flowed(off, 0.0, 1e3, events=arrived).t_events[0][0]
    found = needed(0.99, x, -27.5, 1 - x)
    assert bool(found.ok[0])
    assert float(found.value[0]) <= taken < 100
    # A coordinate that the same decay has killed needs what its way takes, pi/2 over the clock.
    assert float(needed(0.99, 0.0, -27.5, 1.0).value[0]) == pytest.approx(np.pi / 2 * np.exp(55.0), rel=1e-9)


def test_the_remaining_time_is_exact_for_a_constant_slope(needed):
    """f = -x / 2, whose slope is 1/2 all along: the time is that of an integration of nu' = clock / 2."""
    a = -1.0
    w = np.exp(2 * a) * np.array([0.3, 1.0, 1.0])
    # Start at V = (tan nu, sec nu, sec nu): scale (0.3, 1, 1) to a point of the curve.
    nu = np.arctan(0.3)
    w[1:] = np.exp(2 * a) / np.cos(nu)
    end = solve_ivp(
        lambda t, w: 0.5 * np.array([w[1] * w[2], w[0] * w[2], w[0] * w[1]]),
        (0, 5.0),
        w,
        method="DOP853",
        rtol=1e-12,
        atol=1e-15,
    ).y[:, -1]
    found = needed(np.prod(end), np.prod(w), a, 0.5)
    assert float(found.value[0]) == pytest.approx(5.0, rel=1e-9)


def test_statuses_and_limits_of_the_remaining_time(needed):
    assert float(needed(0.5, 0.5, -1.0, 1.0).value[0]) == 0  # it is there already
    assert float(needed(0.5, 0.2, -1.0, 0.0).value[0]) == np.inf  # no slope moves nothing
    for numbers, result in [
        ((np.inf, 0.2, -1.0, 1.0), RESULTS.outside_range),
        ((0.5, 0.2, 1.0, 1.0), RESULTS.invalid_strength),
        ((0.5, 0.2, -1.0, np.nan), RESULTS.invalid_options),
        ((0.5, 0.2, -1.0, -1.0), RESULTS.invalid_options),
    ]:
        found = needed(*numbers)
        assert bool(jnp.all(found.result == result)), numbers
        assert np.isnan(found.value[0])


def bisected(w0, low, high, t1):
    """The strength below which x is alive at t1, to 3e-4 of it."""
    while high - low > 3e-4 * low:
        middle = (low + high) / 2
        low, high = (middle, high) if np.prod(flowed(w0, middle, t1).y[:, -1]) > 1e-3 else (low, middle)
    return (low + high) / 2


@pytest.mark.parametrize("depth", [3, 5])
def test_the_critical_strength_is_that_of_the_flow(depth):
    exact = float(mj.critical_strength(depth, 1.0))
    # From w = 1, where x is at its target. Within 3e-4 of the saddle-node x lingers for pi / sqrt(3e-4 ..) < 1000.
    assert bisected(np.ones(depth), 0.99 * exact, 1.01 * exact, 2000.0) == pytest.approx(exact, rel=1e-3)
    if depth == 3:
        assert exact == pytest.approx(0.23624, abs=1e-5)
        assert bisected([0.0, 1.0, 1.0], 0.99 * exact, 1.01 * exact, 2000.0) == pytest.approx(exact, rel=1e-3)


def test_the_critical_strength_scales_and_is_the_threshold_of_the_lasso_at_depth_2():
    assert float(mj.critical_strength(2, -3.0, curvature=0.5, scale=2.0)) == pytest.approx(0.5 * 3 / 4)
    x = np.linspace(0, 2, 200_001)
    for depth, y, kappa, c in ((3, 2.0, 0.7, 0.3), (4, 1.5, 1.2, 1.0)):
        largest = np.max(kappa * (y - x) * x ** (1 - 2 / depth)) / (2 * c)
        assert float(mj.critical_strength(depth, y, kappa, c)) == pytest.approx(largest, rel=1e-8)


def test_the_bound_on_strengths_is_above_the_critical_strength(R):
    bound = jax.jit(lambda slope: mj.strength_bound(R, slope))
    # |f'| <= 1 from (0, 1, 1), where the interval ends at pi/2: 1 / (2 pi/2).
    found = float(bound(jnp.array(1.0)).value[0])
    assert found == pytest.approx(1 / np.pi, rel=1e-12)
    assert found > float(mj.critical_strength(3, 1.0))
    assert bool(jnp.all(bound(jnp.array(np.nan)).result == RESULTS.invalid_options))
    two = mj.legendre(mj.Hadamard(), mj.WeightDecay(), (jnp.ones(2), jnp.zeros(2)))
    np.testing.assert_array_equal(mj.strength_bound(two, 1.0).value, np.inf)
