"""Type of bias, positional bias and range, against formulas written out here and differences of R_a itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.table import Table

import mirrorjax as mj
from mirrorjax.geometry.effects import effects, explain, local_exponent
from mirrorjax.geometry.registry import closed_form

LOG, POWER = mj.LogDifference(), mj.PowerDifference(2)


def hadamard(m0, w0, dtype=float):
    R = closed_form(mj.Hadamard(), mj.WeightDecay(), (jnp.array(m0, dtype), jnp.array(w0, dtype)))
    assert R is not None
    return R


def log_difference(u0, v0):
    R = closed_form(LOG, mj.Compatible(LOG), (jnp.array(u0), jnp.array(v0)))
    assert R is not None
    return R


def power_difference(u0, v0):
    R = closed_form(POWER, mj.Compatible(POWER), (jnp.array(u0), jnp.array(v0)))
    assert R is not None
    return R


def hyperbolic(scale, log_A):
    """Exponent of z arcsinh z - sqrt(1 + z^2) + 1 at z = scale / A, without cancellation and without overflow."""
    log_z = np.log(scale) - log_A
    if log_z > 300:  # arcsinh z = log 2z, and sqrt(1 + z^2) - 1 = z, to all digits
        return 1 / (1 - 1 / (np.log(2) + log_z))
    z = np.exp(log_z)
    product = z * np.arcsinh(z)
    return product / (product - z**2 / (np.sqrt(1 + z**2) + 1))


@pytest.mark.parametrize("a", [0.0, -1.0, -5.0, -1e4])
@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e6])
def test_hyperbolic_entropy_at_all_scales(a, scale):
    found = local_exponent(hadamard([1.0], [0.0]), a, scale)
    assert found.ok
    # 1e-9 is what the quadrature promises.
    np.testing.assert_allclose(found.value, hyperbolic(scale, 4 * a + np.log(0.5)), rtol=1e-9)


def test_digits_are_kept_next_to_a_minimum_away_from_zero():
    R = hadamard([1.0, 2.0], [0.5, -0.3])
    for scale in (1e-18, 1e-12, 1e-8, 1e-5):
        # R is smooth with curvatures and argmin of order one: the exponent is 2 up to a few times the scale.
        np.testing.assert_allclose(local_exponent(R, -0.1, scale).value, 2.0, atol=1e-12 + 5 * scale)


def test_where_mu_saturates():
    # Balanced start: R_a = U/2 log(2 cosh x), mu = U tanh(x) / 2, which is its limit U/2 to all digits beyond x = 19.
    R = log_difference([1.0], [1.0])
    for x in (1e-4, 0.5, 5.0, 9.0, 10.0, 17.0, 50.0):
        value = np.log1p(np.expm1(-2 * x) / 2) + x  # log cosh x
        found = local_exponent(R, -0.2, x)
        # Below 0.1 the oracle loses digits like eps / x^2.
        np.testing.assert_allclose(found.value, x * np.tanh(x) / value, rtol=1e-9 + 1e-15 / x**2)


@pytest.mark.parametrize(
    ("R", "a", "direction"),
    [
        (hadamard([1.0, 2.0], [0.5, -0.3]), -0.3, None),
        (closed_form(mj.Square(), mj.WeightDecay(), jnp.array([1.0, 0.5])), -0.3, [1.0, 2.0]),
        (power_difference([1.0, 0.7], [0.8, 1.2]), -0.3, [1.0, -1.0]),
        (log_difference([1.0, 1.4], [1.3, 0.9]), -0.3, [-1.0, 0.4]),
    ],
    ids=["hadamard", "square", "power difference", "log difference"],
)
def test_it_is_the_slope_of_log_R(R, a, direction):
    v = jnp.ones(2) if direction is None else jnp.array(direction)
    scale, step = 1.5, 1e-3
    minimizer = R.minimizer(a)

    def log_height(log_s):
        return jnp.log(R.value(minimizer + jnp.exp(log_s) * v, a) - R.value(minimizer, a))

    slope = (log_height(np.log(scale) + step) - log_height(np.log(scale) - step)) / (2 * step)
    # Central differences: step^2 = 1e-6 times a third derivative below one.
    np.testing.assert_allclose(local_exponent(R, a, scale, v).value, slope, atol=1e-6)


def test_single_precision():
    R = hadamard([1.0], [0.0], jnp.float32)
    for a, scale in ((0.0, 1e-6), (-1.0, 1.0), (-1e4, 1.0)):
        found = local_exponent(R, a, scale)
        assert found.value.dtype == jnp.float32
        # The integrand e^{-L(1 - tau)} carries L eps, and only 1/L of the answer depends on it: 1e-5 overall.
        np.testing.assert_allclose(found.value, hyperbolic(scale, 4 * a + np.log(0.5)), rtol=1e-5)


def test_derivative_in_a():
    R = hadamard([1.0], [0.4])

    def value(a):
        return local_exponent(R, a, 1.0).value

    difference = (value(jnp.array(-0.5 + 1e-5)) - value(jnp.array(-0.5 - 1e-5))) / 2e-5
    np.testing.assert_allclose(jax.grad(value)(jnp.array(-0.5)), difference, rtol=1e-6)


def test_decay_moves_hadamard_from_l2_to_l1():
    found = effects(hadamard([1.0, 2.0], [0.5, -0.3]), jnp.linspace(0.0, -6.0, 7), 1.0)
    assert jnp.all(found.ok)
    assert jnp.all(jnp.diff(found.local_exponent) < 0)
    assert found.local_exponent[0] > 1.7
    assert found.local_exponent[-1] < 1.06
    # argmin R_a = e^{4a} m0 w0, and J J^T there is m^2 + w^2, both factors shrunk by e^{2a}.
    shrink = np.exp(4 * np.linspace(0.0, -6.0, 7))[:, None]
    np.testing.assert_allclose(found.minimizer, shrink * np.array([0.5, -0.6]), rtol=1e-12)
    np.testing.assert_allclose(found.metric, shrink * np.array([1.25, 4.09]), rtol=1e-12)


def test_decay_moves_a_balanced_log_difference_towards_the_minimum_and_exhausts_it():
    # It ends at a = -min(u0, v0)^2 / 2 = -0.5.
    found = effects(log_difference([1.0], [1.2]), jnp.array([0.0, -0.4, -0.6]), 1.0)
    assert list(mj.status_name(found.result)) == ["successful", "successful", "range_exhausted"]
    fields = (found.minimizer, found.local_exponent, found.dual_lower, found.dual_upper, found.metric)
    assert "a = -0.4: type of bias" in repr(found)
    assert repr(found).endswith("a = -0.6: range_exhausted")
    for field in fields:
        assert jnp.all(jnp.isfinite(field[:2]))
        assert jnp.all(jnp.isnan(field[2]))
    # The interval is (-U/2, V/2) with U = u0^2 + 2a, V = v0^2 + 2a.
    np.testing.assert_allclose(found.dual_upper[:2, 0] - found.dual_lower[:2, 0], [1.22, 0.42], rtol=1e-12)


def test_range_of_the_power_difference():
    found = effects(power_difference([1.0], [1.0]), jnp.array([0.0, -1.0, -100.0]), 1.0)
    width = (found.dual_upper - found.dual_lower)[:, 0]
    # By THEORY section 3 the interval widens by 2c|a| while the metric vanishes polynomially.
    np.testing.assert_allclose(jnp.diff(width), [2.0, 198.0], rtol=1e-10)
    assert jnp.all(found.metric[1:] < 0.01 * found.metric[:-1])


def test_range_of_depth_3_with_weight_decay():
    """From (0, 1, 1) the interval of mu is (-pi/2, pi/2), and widens as e^-s, s = 2ca, while J J^T falls as e^4s."""
    R = mj.legendre(mj.Hadamard(3), mj.WeightDecay(), (jnp.zeros(1), jnp.ones(1), jnp.ones(1)))
    a = np.array([0.0, -1.0])
    found = effects(R, a, 1.0)
    np.testing.assert_allclose(found.dual_upper[:, 0], np.pi / 2 * np.exp(-2 * a), rtol=1e-13)
    np.testing.assert_allclose(found.dual_lower, -found.dual_upper, rtol=1e-13)
    np.testing.assert_allclose(found.metric[:, 0], np.exp(8 * a), rtol=1e-12)
    assert found.local_exponent[1] < 1.3 < found.local_exponent[0]
    assert "a = 0: type of bias" in repr(found)
    assert "argmin R_a = 0; range: mu from -1.571 to 1.571, J J^T = 1 at argmin R_a" in repr(found)


def test_one_strength_a_coordinate():
    """Along one axis the effects are those of the R of that coordinate, at its own a."""
    R, a = hadamard([1.0, 2.0], [0.5, -0.3]), jnp.array([[-0.1, -0.4], [0.0, -2.0]])
    found = effects(R, a, 1.0, [0.0, 1.0])
    alone = effects(hadamard([2.0], [-0.3]), a[:, 1], 1.0)
    np.testing.assert_allclose(found.local_exponent, alone.local_exponent, rtol=1e-12)
    np.testing.assert_allclose(found.minimizer[:, 1:], alone.minimizer, rtol=1e-14)
    np.testing.assert_allclose(found.metric[:, 1:], alone.metric, rtol=1e-14)
    np.testing.assert_allclose(local_exponent(R, a[0], 1.0, [0.0, 1.0]).value, alone.local_exponent[0], rtol=1e-12)


def test_a_point_outside_the_range_has_a_status():
    R = closed_form(mj.Square(), mj.WeightDecay(), jnp.array([1.0]))
    assert R is not None
    found = local_exponent(R, 0.0, 2.0, -jnp.ones(1))
    assert found.result == mj.RESULTS.outside_range
    assert jnp.isnan(found.value)


def test_explain_is_the_effects_along_a_schedule():
    R = hadamard([1.0], [0.5])
    told = explain(R, mj.SwitchOff(0.2, 2.0), jnp.array([0.0, 1.0, 2.0, 9.0]), 1.0)
    rows = told.rows()
    assert [row["alpha"] for row in rows] == [0.2, 0.2, 0.0, 0.0]
    np.testing.assert_allclose([row["a"] for row in rows], [0.0, -0.2, -0.4, -0.4])
    np.testing.assert_allclose([row["local_exponent"] for row in rows], told.effects.local_exponent)
    np.testing.assert_allclose(np.concatenate([row["minimizer"] for row in rows]), told.effects.minimizer[:, 0])
    assert {row["status"] for row in rows} == {"successful"}
    assert isinstance(told.table(), Table)
    assert told.table().row_count == 4


def test_bad_arguments():
    R = hadamard([1.0], [0.5])
    with pytest.raises(ValueError, match=r"a <= 0, .* got 1\.0"):
        local_exponent(R, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"scale must be positive .* distance"):
        local_exponent(R, -1.0, 0.0)
    with pytest.raises(ValueError, match="one axis"):
        effects(R, jnp.zeros((2, 2)), 1.0)
