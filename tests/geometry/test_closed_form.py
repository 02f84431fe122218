"""Every closed form against the parameter flow itself, and the identities a Legendre pair obeys."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.integrate import solve_ivp

import mirrorjax.problem as mj
from mirrorjax.geometry.base import AbstractLegendre
from mirrorjax.geometry.registry import closed_form
from mirrorjax.results import status_name

U = jnp.array([1.3, 0.9, 1.1, 0.8])
MIXED = jnp.array([1.0, 0.5, -0.3, 2.0])
V = jnp.array([0.8, 1.2, 1.1, 0.95])
_rng = np.random.default_rng(3)
_basis = np.linalg.qr(_rng.normal(size=(5, 5)))[0]
_stack = np.einsum("ij,kj,lj->kil", _basis, _rng.uniform(-1, 1, size=(5, 5)), _basis)
_stack = jnp.asarray((_stack + np.swapaxes(_stack, 1, 2)) / 2)
G, G0 = _stack[:4], _stack[4] @ _stack[4]
W5 = jnp.asarray(_rng.uniform(0.5, 1.0, size=5))


class Case(NamedTuple):
    g: mj.AbstractReparameterization
    h: mj.AbstractRegularizer
    w0: Any

    def legendre(self) -> AbstractLegendre:
        R = closed_form(self.g, self.h, self.w0)
        assert R is not None
        return R


def compatible(g: mj.AbstractReparameterization, w0: Any) -> Case:
    return Case(g, mj.Compatible(g, 0.7), w0)


SEPARABLE = {
    "hadamard": Case(
        mj.Hadamard(), mj.WeightDecay(0.7), (jnp.array([1.0, 0.5, -0.3, 2.0]), jnp.array([0, -0.9, 0.4, 0.1]))
    ),
    "square": Case(mj.Square(), mj.WeightDecay(0.7), U),
    "square_difference": Case(mj.PowerDifference(), mj.WeightDecay(1.3), (U, V)),
    "power_2": compatible(mj.PowerDifference(2), (U, V)),
    "power_5": compatible(mj.PowerDifference(5), (U, V)),
    "log": compatible(mj.LogDifference(), (U + 1, V + 1)),
    "exp": compatible(mj.ExpDifference(), (U - 1, V - 1)),
}
CASES = {
    **SEPARABLE,
    "quadratic": Case(mj.Quadratic(G), mj.QuadraticForm(G0), W5),
    "quadratic_decay": Case(mj.Quadratic(G), mj.WeightDecay(0.7), W5),
}
# Each schedule with its strength in plain Python, which the integrator asks for some thousand times.
SCHEDULES = (
    (mj.Constant(0.4), lambda t: 0.4),
    (mj.SwitchOff(0.9, 0.5), lambda t: 0.9 if t < 0.5 else 0.0),
    (mj.CosineDecay(1.0, 0.8), lambda t: (1 + np.cos(np.pi * t / 0.8)) / 2 if t < 0.8 else 0.0),
)
# A point of each case well inside the dual interval, different in every coordinate and 0 in one.
MU, A = jnp.array([0.03, -0.02, 0.0, 0.01]), -0.3

# One case a class of formulas: the others differ from these in constants only.
CLASSES = {name: CASES[name] for name in ("hadamard", "square", "power_2", "log", "exp", "quadratic")}
classes = pytest.mark.parametrize("case", CLASSES.values(), ids=CLASSES.keys())
separable = pytest.mark.parametrize("case", SEPARABLE.values(), ids=SEPARABLE.keys())


@functools.cache
def parameter_field(name: str) -> tuple[Callable, Callable]:
    """(w, mu) flattened, its velocity as a function of (alpha, flat), and the way back; f is a small least squares."""
    case, rng = CASES[name], np.random.default_rng(0)
    Z, y = jnp.asarray(rng.normal(size=(3, 4))), jnp.asarray(rng.normal(size=3))
    _, unravel = ravel_pytree((case.w0, jnp.zeros_like(case.g(case.w0))))

    @jax.jit
    def field(alpha, flat):
        w, _ = unravel(flat)
        x, pull = jax.vjp(case.g, w)
        slope = Z.T @ (Z @ x - y) / 3
        dw = jax.tree.map(lambda f, h: -f - alpha * h, pull(slope)[0], jax.grad(case.h)(w))
        return ravel_pytree((dw, -slope))[0]

    return field, unravel


@pytest.mark.parametrize("name", CASES)
def test_identity_with_the_parameter_flow(name):
    """grad R_{a_t}(x_t) = -int grad f and psi(mu_t, a_t) = w_t, before and after the switch-off (THEORY, section 2).

    The flow is integrated by SciPy's order-8 method, with mu carried along.
    """
    case = CASES[name]
    R, (field, unravel) = case.legendre(), parameter_field(name)

    @jax.jit
    def recover(flat, a):
        w, mu = unravel(flat)
        return (R.mirror_map(case.g(w), a), R.weights(mu, a)), (mu, w)

    for schedule, strength in SCHEDULES:
        flat, start = np.asarray(ravel_pytree((case.w0, jnp.zeros(4)))[0]), 0.0
        for t in (0.2, 0.5, 1.0):  # the jump is one of the times, and no step crosses it or sees the value after it
            span = (start, np.nextafter(t, 0.0))

            def rhs(t, flat, last=span[1], strength=strength):
                return np.asarray(field(strength(min(t, last)), flat))

            flat, start = solve_ivp(rhs, span, flat, method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1], t
            recovered, expected = recover(flat, -schedule.integral(t))
            # The integrator's 1e-12 a step over some tens of steps, times the condition of grad R (below 1e2 here).
            for ours, flowed in zip(jax.tree.leaves(recovered), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(ours, flowed, rtol=0, atol=1e-9)


@classes
def test_identities_of_the_pair(case):
    """All in one program: compiling is what they cost."""
    R = case.legendre()

    @jax.jit
    def everything(mu, a):
        x = R.inverse_mirror_map(mu, a)
        w = R.weights(mu, a)
        flat, unravel = ravel_pytree(w)
        (potential, slope_Q), (value, slope_R) = (
            jax.value_and_grad(function, (0, 1))(point, a) for function, point in ((R.potential, mu), (R.value, x))
        )
        maps, slopes = (R.mirror_map(x, a), value, potential, case.g(w), case.h(w)), (slope_Q, slope_R)
        hessians = R.hessian(x, a), jax.jacfwd(R.mirror_map)(x, a), jax.jacrev(R.mirror_map)(x, a)
        second = jax.hessian(R.value)(x, a), jax.hessian(R.potential)(mu, a)
        metric = jax.vmap(lambda v: R.metric_vector(mu, v, a))(jnp.eye(4))
        lowest = R.minimizer(a)
        start = (
            R.mirror_map(case.g(case.w0), 0 * a),
            lowest,
            R.inverse_mirror_map(0 * mu, a),
            jax.grad(R.value)(lowest, a),
        )
        J = jax.jacobian(lambda w: case.g(unravel(w)))(flat)
        return x, maps, slopes, hessians, second, metric, J, start

    x, (mu, value, potential, image, h), slopes, (hessian, *jacobians), second, metric, J, start = everything(MU, A)
    # The two maps invert each other. Rounding times the condition of grad R, which reaches 1e4 in the quadratic case.
    np.testing.assert_allclose(x, image, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(mu, MU, rtol=0, atol=1e-11)
    np.testing.assert_allclose(value + potential, jnp.sum(MU * x), rtol=0, atol=1e-13)
    # Gradients are the maps.
    (slope_Q, rise_Q), (slope_R, rise_R) = slopes
    np.testing.assert_allclose(slope_Q, x, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(slope_R, MU, rtol=0, atol=1e-11)  # as mu above
    # dR/da = -h(psi), dQ/da = h(psi): the envelope theorem, which also fixes the constant of Q_a for every a.
    np.testing.assert_allclose(rise_R, -h, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(rise_Q, h, rtol=1e-11, atol=1e-14)
    # The Hessian is the Jacobian of the mirror map, and the inverse of the metric.
    for other in (*jacobians, second[0]):
        np.testing.assert_allclose(hessian, other, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(metric @ hessian, jnp.eye(4), atol=1e-11)
    np.testing.assert_allclose(metric, second[1], rtol=1e-11, atol=1e-13)
    # J J^T at psi, with J by autodiff of g.
    J = np.asarray(J)
    np.testing.assert_allclose(metric, J @ J.T, rtol=1e-11, atol=1e-13)
    # The mirror map is 0 at x0 before any decay, and at the minimizer, the positional bias, after it.
    at_start, minimizer, image, slope = start
    np.testing.assert_allclose(at_start, np.zeros(4), atol=1e-12)
    np.testing.assert_allclose(minimizer, image, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(slope, np.zeros(4), atol=1e-12)


@classes
def test_derivatives_in_weights_and_a_agree_with_finite_differences(case):
    def dual(w0, a):
        R = closed_form(case.g, case.h, w0)
        assert R is not None
        return R.dual(x, a).value

    x = case.legendre().inverse_mirror_map(MU, A)
    flat, unravel = ravel_pytree(case.w0)
    direction = jnp.asarray(np.random.default_rng(1).normal(size=flat.shape))

    def along(s):
        return dual(unravel(flat + s * direction), A + s)

    step = 1e-5  # truncation step^2, rounding 1e-15/step: 1e-10 together, times a third derivative of order 1e2
    exact, reverse, plus, minus = jax.jit(
        lambda s: (jax.jvp(along, (0 * s,), (jnp.ones(()),))[1], jax.jacrev(along)(0 * s), along(s), along(-s))
    )(step)
    np.testing.assert_allclose(exact, (plus - minus) / (2 * step), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(exact, reverse, rtol=1e-11, atol=1e-12)


@classes
def test_built_and_evaluated_under_vmap(case):
    """Lanes with weights and strengths of their own, against each lane alone."""

    def everything(scale, a):
        R = closed_form(case.g, case.h, jax.tree.map(lambda leaf: scale * leaf, case.w0))
        assert R is not None
        x = R.inverse_mirror_map(MU, a)
        mu = R.mirror_map(x, a)
        return x, mu, R.value(x, a), R.hessian(x, a), R.metric_vector(mu, mu, a), R.minimizer(a), R.weights(mu, a)

    scales, strengths = np.array([1.0, 1.1, 1.05]), np.array([-0.2, -0.25, A])
    batched, alone = jax.jit(jax.vmap(everything))(scales, strengths), jax.jit(everything)
    for i in range(3):
        single = alone(scales[i], strengths[i])
        for left, right in zip(jax.tree.leaves(batched), jax.tree.leaves(single), strict=True):
            # Rounding times the condition of grad R, which reaches 1e4 in the quadratic case.
            np.testing.assert_allclose(left[i], right, rtol=1e-11, atol=1e-11)


@separable
def test_scale_zero_does_not_depend_on_a(case):
    R = closed_form(case.g, mj.WeightDecay(0.0), case.w0)
    assert R is not None
    x = case.g(case.w0) + 0.05
    both = jax.jit(lambda a: (R.mirror_map(x, a), R.value(x, a)))
    for before, after in zip(both(0.0), both(-50.0), strict=True):
        np.testing.assert_array_equal(before, after)


EXTREME = ("hadamard", "square", "power_2", "exp")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", EXTREME)
def test_extremes_are_finite_and_consistent(name, dtype):
    """a down to -1e4 and |x| up to 1e6 (Log has used up its range by then)."""
    case = SEPARABLE[name]
    R = closed_form(case.g, case.h, jax.tree.map(lambda leaf: leaf.astype(dtype), case.w0))
    assert R is not None
    x = jnp.array([1e-6, 1.0, 40.0, 1e6], dtype)
    x = x if name == "square" else x * jnp.array([1, -1, 1, 1], dtype)

    @jax.jit
    def everything(a):
        mu = R.dual(x, a).value
        diagonals = jnp.diag(R.hessian(x, a)), jnp.diag(jax.jacfwd(R.mirror_map)(x, a))
        rates = jax.grad(R.value, 1)(x, a), jax.jacfwd(R.mirror_map, 1)(x, a)
        metric = R.metric_vector(mu, jnp.ones_like(x), a)
        return R.dual(x, a).ok, mu, jax.grad(R.value)(x, a), R.value(x, a), diagonals, rates, metric

    eps = float(jnp.finfo(dtype).eps)
    for a in (0.0, -1.0, -100.0, -1e4):
        ok, mu, slope, value, (hessian, jacobian), rates, metric = everything(a)
        assert mu.dtype == dtype
        lower, upper = R.dual_interval(a)
        # The slope of R also carries the residual of mu, a few roundings of x; mu near 0 has those of its interval.
        span = float(jnp.max(jnp.where(jnp.isfinite(upper - lower), upper - lower, 0)))
        np.testing.assert_allclose(slope, mu, rtol=20 * eps, atol=2 * eps * span)
        np.testing.assert_allclose(hessian, jacobian, rtol=200 * eps)
        assert all(jnp.all(jnp.isfinite(part)) for part in (mu, value, *rates))
        # Also at x = 1e6 in float32, where a level is within an ulp of 0: mu never rounds onto the end of its interval.
        assert jnp.all(ok & (mu > lower) & (mu < upper))
        assert jnp.all(jnp.isfinite(metric))


@pytest.mark.parametrize("name", ["hadamard", "square_difference"])
def test_round_trip_far_along_is_limited_by_the_digits_of_mu_alone(name):
    R = SEPARABLE[name].legendre()
    x = jnp.array([1e-3, -1.0, 40.0, 1e6])
    for a in (-1.0, -100.0, -1e4):
        mu = R.mirror_map(x, a)
        # x depends on mu through e^{p mu}: an ulp of an exponent p |mu| + |log A| is that relative change of x.
        exponent = 16 * (jnp.abs(mu) + abs(a))
        np.testing.assert_array_less(jnp.abs(R.inverse_mirror_map(mu, a) / x - 1), 1e-15 * (10 + exponent))


def test_metric_at_zero_is_finite_where_the_hessian_is_infinite():
    R = SEPARABLE["hadamard"].legendre()
    x = jnp.zeros(4)
    mu = R.mirror_map(x, -1e4)
    np.testing.assert_array_equal(jnp.diag(R.hessian(x, -1e4)), jnp.inf)
    np.testing.assert_array_equal(R.metric_vector(mu, jnp.ones(4), -1e4), 0.0)
    assert not jnp.any(jnp.isnan(R.hessian(x, -1e4)))
    assert jnp.all(jnp.isfinite(jax.jacfwd(R.mirror_map)(x, -1e4)))


@pytest.mark.parametrize(
    ("name", "mu", "status"),
    [
        ("power_2", 1e3, "outside_dual_interval"),
        ("power_2", -1e3, "outside_dual_interval"),
        ("log", 1e3, "outside_dual_interval"),
        ("exp", jnp.nan, "outside_dual_interval"),
        ("hadamard", jnp.inf, "outside_dual_interval"),
        ("hadamard", 1e3, "diverged"),
    ],
)
def test_a_bad_mu_gets_a_status_and_spoils_no_neighbour(name, mu, status):
    R = SEPARABLE[name].legendre()
    points = MU.at[1].set(mu)
    recovered = R.primal(points, A)
    assert list(status_name(recovered.result)) == ["successful", status, "successful", "successful"]
    assert not jnp.isfinite(recovered.value[1])
    good = jnp.array([0, 2, 3])
    np.testing.assert_array_equal(recovered.value[good], R.primal(MU, A).value[good])
    gradient = jax.grad(lambda mu: jnp.sum(R.primal(mu, A).value[good]))(points)
    assert jnp.all(jnp.isfinite(gradient))
    assert not jnp.isfinite(R.potential(points, A))
    with pytest.raises(RuntimeError if np.isfinite(mu) else ValueError, match=r"mu\[1\] = "):
        R.inverse_mirror_map(points, A)
    with pytest.raises(RuntimeError):
        eqx.filter_jit(R.inverse_mirror_map)(points, A)


@pytest.mark.parametrize("bad", [0.0, -1.0, jnp.nan, jnp.inf])
def test_x_outside_the_range(bad):
    R = SEPARABLE["square"].legendre()
    x = jnp.array([1.0, bad, 2.0, 3.0])
    assert list(status_name(R.dual(x, A).result)) == ["successful", "outside_range", "successful", "successful"]
    assert jnp.isnan(R.dual(x, A).value[1])
    gradient = jax.grad(lambda x: R.dual(x, A).value[0])(x)
    np.testing.assert_allclose(gradient, jnp.array([0.25, 0, 0, 0]))
    for method in (R.mirror_map, R.value, R.hessian):
        with pytest.raises(RuntimeError if np.isfinite(bad) else ValueError, match=r"x\[1\] = "):
            method(x, A)
    with pytest.raises(RuntimeError):
        eqx.filter_jit(R.value)(x, A)


def test_log_difference_runs_out_of_range():
    u0, v0 = jnp.array([1.0, 2.0]), jnp.array([2.0, 3.0])
    R = closed_form(mj.LogDifference(), mj.Compatible(mj.LogDifference(), 0.5), (u0, v0))
    assert R is not None
    x = jnp.array([0.1, 0.1])
    assert jnp.all(R.dual(x, -0.999).ok)  # the first coordinate ends at a = -1, the second at -4
    for a, statuses in ((-1.001, ["range_exhausted", "successful"]), (-4.001, ["range_exhausted"] * 2)):
        assert list(status_name(R.dual(x, a).result)) == statuses
        assert list(status_name(R.primal(0 * x, a).result)) == statuses
    assert jnp.isnan(R.dual(x, -1.001).value[0])
    gradient = jax.jacfwd(lambda a: R.dual(x, a).value[1])(-1.001)
    assert jnp.isfinite(gradient)


def test_traced_weights_that_cannot_be_read_get_a_status():
    def dual(m0, w0):
        R = closed_form(mj.Hadamard(), mj.WeightDecay(), (m0, w0))
        assert R is not None
        return R.dual(jnp.ones(2), -0.1)

    m0, w0 = jnp.array([1.0, 1.0]), jnp.array([0.0, -1.0])
    recovered = jax.jit(dual)(m0, w0)
    assert list(status_name(recovered.result)) == ["successful", "invalid_weights"]
    assert jnp.isnan(recovered.value[1])
    assert jnp.isfinite(jax.grad(lambda m0: dual(m0, w0).value[0])(m0)).all()


@pytest.mark.parametrize(
    ("g", "w0", "message"),
    [
        (mj.Hadamard(), (jnp.array([1.0, -1.0]), jnp.array([0.0, 1.0])), r"m0 = -1.0 and w0 = 1.0.*entry \(1,\)"),
        (mj.Square(), jnp.array([1.0, 0.0]), "w0 > 0, but it is 0.0"),
        (mj.PowerDifference(), (jnp.ones(2), jnp.array([1.0, -2.0])), "v0 > 0, but it is -2.0"),
        (mj.PowerDifference(3), (jnp.array([-0.5, 1.0]), jnp.ones(2)), "u0 > 0, but it is -0.5"),
        (mj.LogDifference(), (jnp.array([-0.5, 1.0]), jnp.ones(2)), "u > 0"),
        (mj.Hadamard(), (jnp.ones(2),), "tuple of 2"),
    ],
)
def test_weights_that_a_family_does_not_admit(g, w0, message):
    with pytest.raises(ValueError, match=message):
        closed_form(g, mj.Compatible(g), w0)


def test_known_weights_are_checked_inside_an_outer_jit():
    """Where jax would stage the comparison: known weights are read, and the good ones pass."""
    g, h, w0 = mj.Hadamard(), mj.WeightDecay(), (jnp.ones(2), jnp.array([0.0, 0.5]))
    x = jnp.array([0.1, 0.2])

    def dual_of(w0, x):
        R = closed_form(g, h, w0)
        assert R is not None
        return R.dual(x, -0.1).value

    traced = jax.jit(lambda x: dual_of(w0, x))(x)
    np.testing.assert_allclose(traced, dual_of(w0, x), rtol=1e-14)
    balanced = jnp.ones(2), jnp.ones(2)
    with pytest.raises(ValueError, match="perturb one factor"):
        jax.jit(lambda x: dual_of(balanced, x))(x)
