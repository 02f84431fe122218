"""Pairs in which h normalises g: the leaking mirror flow against scipy, and the rules of derivatives."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import expm

import mirrorjax as mj
from mirrorjax.geometry.numeric import NumericLegendre
from mirrorjax.geometry.report import VERDICT

RNG = np.random.default_rng(3)
C = 0.7  # the scale of h, so that a factor of c in the wrong place shows
OFF, END = 1.0, 2.5
# alpha(t) before the switch-off at OFF; 0 after it.
SCHEDULES = {
    "constant": lambda t: 0.3,
    "to zero": lambda t: 0.5 * (1 - t),
    "oscillating": lambda t: 0.3 + 0.3 * np.cos(7 * t),
}
G0 = np.array([[1.0, 0.3], [0.3, 2.0]])


class Case(NamedTuple):
    """A pair with its maps in numpy: `pull(w, v)` is J^T v as a list like w, `decay(w)` is grad h."""

    g: Any
    h: Any
    w0: Any
    x: Callable
    pull: Callable
    decay: Callable
    Lambda: np.ndarray


def weights(*shapes):
    return [jnp.asarray(RNG.uniform(0.4, 1.2, shape)) for shape in shapes]


def product(w):
    return np.prod(np.stack(w), axis=0)


def pull_product(w, v):
    return [v * np.prod(np.stack(w[:j] + w[j + 1 :]), axis=0) if len(w) > 1 else v for j in range(len(w))]


def squares(c):
    return lambda w: [2 * c * leaf for leaf in w]


class Part(NamedTuple):
    """A family with the number of its factors, its degree, and g and J^T v of one list of factors."""

    g: Any
    factors: int
    degree: int
    x: Callable
    pull: Callable


def depth(p):
    return Part(mj.Hadamard(p) if p > 1 else mj.Linear(), p, p, product, pull_product)


def power_part(k):
    return Part(
        mj.PowerDifference(k),
        2,
        2 * k,
        lambda w: w[0] ** (2 * k) - w[1] ** (2 * k),
        lambda w, v: [2 * k * w[0] ** (2 * k - 1) * v, -2 * k * w[1] ** (2 * k - 1) * v],
    )


def power(k):
    part = power_part(k)
    Lambda = np.full(3, -2 * C * (part.degree - 2))
    return Case(part.g, mj.WeightDecay(C), tuple(weights(3, 3)), part.x, part.pull, squares(C), Lambda)


def blocks(parts, sizes, strengths):
    """The families side by side, each with its own size and strength of decay."""
    w0 = [weights(*part.factors * [size]) for part, size in zip(parts, sizes, strict=True)]
    ends = np.cumsum([part.factors for part in parts])

    def split(w):
        return [w[end - part.factors : end] for end, part in zip(ends, parts, strict=True)]

    def pull(w, v):
        shares = np.split(v, np.cumsum(sizes)[:-1])
        return [leaf for part, own, v in zip(parts, split(w), shares, strict=True) for leaf in part.pull(own, v)]

    scales = np.repeat(strengths, [part.factors for part in parts])
    equal = len(set(strengths)) == 1
    return Case(
        mj.Blocks(*(part.g for part in parts)),
        mj.WeightDecay(strengths[0]) if equal else mj.Blockwise(*map(mj.WeightDecay, strengths)),
        tuple(own[0] if len(own) == 1 else tuple(own) for own in w0),
        lambda w: np.concatenate([part.x(own) for part, own in zip(parts, split(w), strict=True)]),
        pull,
        lambda w: [2 * c * leaf for c, leaf in zip(scales, w, strict=True)],
        np.repeat([-2 * c * (part.degree - 2) for c, part in zip(strengths, parts, strict=True)], sizes),
    )


LINEAR = weights(3)
CASES = {
    "x = w": Case(mj.Linear(), mj.WeightDecay(C), LINEAR[0], product, pull_product, squares(C), np.full(3, 2 * C)),
    "u^4 - v^4": power(2),
    "u^6 - v^6": power(3),
    "every depth": blocks([*map(depth, (1, 2, 3, 4, 5)), power_part(3)], 6 * (1,), 6 * (C,)),
    "depths and strengths": blocks([*map(depth, (1, 2, 3))], (2, 1, 2), (C, 0.4, 1.1)),
    "a matrix": Case(
        mj.Linear(), mj.QuadraticForm(G0), weights(2)[0], product, pull_product, lambda w: [G0 @ w[0]], G0
    ),
}
NUMERIC = ["u^4 - v^4", "depths and strengths", "a matrix"]
CLOSED = [name for name in CASES if name != "a matrix"]


def flowed(case):
    """`(w, nu, a)` at OFF and at END: `dw = -(J^T grad f + alpha grad h)`, `dnu = -exp(-a Lambda^T) grad f`.

    The schedules are columns of one system, since the steps of SciPy's integrator are what this test costs.
    """
    columns = len(SCHEDULES)
    leaves = [np.repeat(np.asarray(leaf)[:, None], columns, axis=1) for leaf in jax.tree.leaves(case.w0)]
    ends, size = np.cumsum([len(leaf) for leaf in leaves]), len(case.x(leaves))
    rates, frame = np.linalg.eigh(case.Lambda if case.Lambda.ndim == 2 else np.diag(case.Lambda))
    rng = np.random.default_rng(size)
    Z = rng.normal(size=(2, size))
    y = Z @ case.x(leaves) + rng.uniform(0.2, 0.5, 2)[:, None]

    def rhs(t, state, on):
        state = state.reshape(-1, columns)
        w, a = np.split(state[: ends[-1]], ends[:-1]), state[-1]
        alpha = np.array([strength(t) for strength in SCHEDULES.values()]) if on else np.zeros(columns)
        slope = Z.T @ (Z @ case.x(w) - y) / 2
        pulled, decay = case.pull(w, slope), case.decay(w)
        by_rate = frame @ (np.exp(-a * rates[:, None]) * (frame.T @ slope))
        return np.concatenate(
            [*(-p - alpha * h for p, h in zip(pulled, decay, strict=True)), -by_rate, -alpha[None]]
        ).ravel()

    state, found = np.concatenate([*leaves, np.zeros((size + 1, columns))]).ravel(), []
    for span, on in (((0.0, OFF), True), ((OFF, END), False)):
        state = solve_ivp(rhs, span, state, args=(on,), method="DOP853", rtol=1e-11, atol=1e-13).y[:, -1]
        for column in state.reshape(-1, columns).T:
            found.append((np.split(column[: ends[-1]], ends[:-1]), column[ends[-1] : -1], column[-1]))
    return found


def drained(case, nu, a):
    """`mu = exp(a Lambda^T) nu`."""
    return expm(a * case.Lambda.T) @ nu if case.Lambda.ndim == 2 else np.exp(a * case.Lambda) * nu


@pytest.fixture(scope="module")
def runs():
    """The flows of the weights, each integrated once."""
    return {name: flowed(case) for name, case in CASES.items()}


@pytest.mark.parametrize("name", CLOSED)
def test_the_closed_form_is_the_flow_of_the_weights(name, runs):
    case = CASES[name]
    R = mj.legendre(case.g, case.h, case.w0)
    np.testing.assert_allclose(np.broadcast_to(R.leak, case.Lambda.shape), case.Lambda, rtol=1e-14)
    everything = jax.jit(lambda mu, x, a: (R.primal(mu, a), R.weights(mu, a), R.dual(x, a)))
    for w, nu, a in runs[name]:
        mu, x = drained(case, nu, a), case.x(w)
        primal, psi, dual = everything(jnp.asarray(mu), jnp.asarray(x), jnp.asarray(a))
        np.testing.assert_allclose(primal.value, x, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(dual.value, mu, rtol=1e-8, atol=1e-8)
        for leaf, expected in zip(jax.tree.leaves(psi), w, strict=True):
            np.testing.assert_allclose(leaf, expected, rtol=1e-8, atol=1e-8)


@pytest.fixture(scope="module")
def numeric():
    """The numeric R of the pairs, two with the leak of the closed form and one with that which `check` measures.

    Beside each is a function: `(mu, a) -> x, Q, dx/da, dQ/da, dQ/dmu`. It is not compiled: the integration is one
    program of the library, which a program around it would hold three times.
    """

    def program(R):
        def at(mu, a):
            return R.primal(mu, a).value, R.potential(mu, a)

        def everything(mu, a):
            (x, Q), (dx, dQ) = jax.jvp(lambda a: at(mu, a), (a,), (jnp.ones_like(a),))
            return x, Q, dx, dQ, jax.grad(lambda mu: at(mu, a)[1])(mu)

        return everything

    found = {name: mj.legendre(*CASES[name][:3], method="numeric") for name in NUMERIC}
    return {name: (R, program(R)) for name, R in found.items()}


@pytest.mark.parametrize("name", NUMERIC)
def test_the_numeric_path_is_the_flow_of_the_weights(name, runs, numeric):
    case, (R, at) = CASES[name], numeric[name]
    assert isinstance(R, NumericLegendre)
    np.testing.assert_allclose(np.broadcast_to(R.leak, case.Lambda.shape), case.Lambda, rtol=1e-12)
    for w, nu, a in runs[name][len(SCHEDULES) :]:  # at END
        x, *_, slope = at(jnp.asarray(drained(case, nu, a)), jnp.asarray(a))
        np.testing.assert_allclose(x, case.x(w), rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(slope, x, rtol=1e-12)


@pytest.mark.parametrize("name", NUMERIC)
def test_derivatives_in_a_are_those_of_differences(name, numeric):
    """`dx`, by dpsi, and dQ with the integral E in it."""
    (R, at), a, step = numeric[name], jnp.asarray(np.float64(-0.2)), 1e-4  # not weakly typed: no second program
    mu = jnp.asarray(np.random.default_rng(0).uniform(-0.05, 0.05, R.point_like().shape))
    _, _, dx, dQ, _ = at(mu, a)
    (ahead, Q_ahead, *_), (behind, Q_behind, *_) = at(mu, a + step), at(mu, a - step)
    # Central differences: 1e-8 times third derivatives of order 1 to 10, and rounding of 1e-12 over the step.
    np.testing.assert_allclose(dx, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(dQ, (Q_ahead - Q_behind) / (2 * step), rtol=1e-6, atol=1e-7)


def test_the_numeric_mirror_map_inverts_and_moves_with_a(numeric):
    """`mu = grad R_a(x)` and `dmu/da`, with the leak in it, where blocks leak at rates of their own."""
    case, (R, at) = CASES["depths and strengths"], numeric["depths and strengths"]
    x, a, step = case.g(case.w0) * 1.1, jnp.asarray(np.float64(-0.2)), 1e-4

    def of(a):
        return jax.jvp(lambda a: R.mirror_map(x, a), (a,), (jnp.ones_like(a),))

    (mu, dmu), (ahead, _), (behind, _) = of(a), of(a + step), of(a - step)
    np.testing.assert_allclose(at(mu, a)[0], x, rtol=1e-9)
    np.testing.assert_allclose(dmu, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-7)  # as above


def test_the_identities_of_blocks():
    g, w0 = mj.Blocks(mj.Linear(), mj.PowerDifference(2)), (weights(2)[0], tuple(weights(2, 2)))
    R = mj.legendre(g, mj.WeightDecay(C), w0)
    mu, a = jnp.linspace(-0.1, 0.1, 4), jnp.asarray(-0.3)

    @jax.jit
    def of(mu):
        x = R.primal(mu, a).value
        return {
            "x": x,
            "slope": jax.grad(lambda mu: R.potential(mu, a))(mu),
            "conjugate": R.value(x, a) + R.potential(mu, a),
            "inverse": R.hessian(x, a) @ R.metric_vector(mu, jnp.arange(4.0), a),
            "divergence": R.bregman(x, 0.9 * x, a),
            "difference": R.value(x, a) - R.value(0.9 * x, a) - jnp.sum(R.mirror_map(0.9 * x, a) * 0.1 * x),
        }

    found = of(mu)
    np.testing.assert_allclose(found["slope"], found["x"], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found["conjugate"], jnp.sum(mu * found["x"]), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found["inverse"], np.arange(4.0), rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(found["divergence"], found["difference"], rtol=1e-9)


def test_blocks_of_one_degree_leak_at_one_rate():
    g, w0 = mj.Blocks(mj.Hadamard(3), mj.Hadamard(3)), (tuple(weights(2, 2, 2)), tuple(weights(1, 1, 1)))
    assert mj.legendre(g, mj.WeightDecay(C), w0).leak.shape == ()
    assert jax.eval_shape(lambda w0, c: mj.legendre(g, mj.WeightDecay(c), w0).leak, w0, C).shape == ()
    unequal = mj.Blockwise(mj.WeightDecay(C), mj.WeightDecay(2 * C))
    np.testing.assert_allclose(mj.legendre(g, unequal, w0).leak, [-2 * C, -2 * C, -4 * C])


QUARTIC = mj.CustomRegularizer(lambda w: jnp.sum(w**4))
UNEQUAL = mj.CustomRegularizer(lambda w: jnp.sum(w[0] ** 2 + 2 * w[1] ** 2))


def test_check_names_a_lambda_that_varies():
    """Hess h of `sum w^4` is Lambda for x = w; the factors of one product with strengths of their own have none."""
    varying = mj.check(mj.Linear(), QUARTIC, LINEAR[0])
    assert varying.verdict == VERDICT.g_only
    assert varying.leak_residual <= varying.tolerance
    assert varying.leak_spread > 0.1
    assert f"spread {float(varying.leak_spread):.2e} between points" in str(varying)
    unequal = mj.check(mj.Hadamard(), UNEQUAL, tuple(weights(3, 3)))
    assert unequal.verdict == VERDICT.g_only
    assert unequal.leak_residual > 0.1


def test_legendre_refuses_what_h_does_not_normalise():
    with pytest.raises(ValueError, match=r"(?s)no R_a for Linear with CustomRegularizer.*spread 5|spread [1-9]"):
        mj.legendre(mj.Linear(), QUARTIC, LINEAR[0])
    with pytest.raises(ValueError, match=r"leak must have one of the shapes \(\), \(3,\), \(3, 3\), got \(2,\)"):
        NumericLegendre(mj.Linear(), QUARTIC, LINEAR[0], leak=[1.0, 2.0])


def test_a_second_derivative_in_a_is_refused_where_it_would_be_wrong(numeric):
    R = numeric["u^4 - v^4"][0]
    with pytest.raises(ValueError, match="only one derivative of its value and potential in a"):
        jax.eval_shape(jax.grad(jax.grad(lambda a: R.potential(jnp.zeros(3), a))), -0.2)


def test_velocities_of_blocks_in_mu_and_in_x_are_one_flow():
    """`dmu/dt = -grad f - alpha Lambda^T mu`, and dx/dt is what it makes of `x = grad Q_a(mu)`; depths 1 and 2."""
    g, w0 = mj.Blocks(mj.Linear(), mj.Hadamard()), (weights(2)[0], tuple(weights(3, 3)))
    f = mj.LeastSquares(np.random.default_rng(1).normal(size=(3, 5)), np.array([0.5, -0.2, 0.3]))
    p = mj.Problem(g, mj.WeightDecay(C), mj.SwitchOff(0.3, 1.0), f)
    R = mj.legendre(g, mj.WeightDecay(C), w0)
    mu, t, a = jnp.linspace(-0.3, 0.2, 5), jnp.asarray(0.4), jnp.asarray(-0.12)

    @jax.jit
    def of(mu, t, a):
        rate = mj.MirrorFlow(R).prepare(p, w0).velocity(t, mu)
        x, along = jax.jvp(lambda mu, a: R.primal(mu, a).value, (mu, a), (rate, jnp.full_like(a, -0.3)))
        return x, rate, along, mj.RiemannianFlow(R).prepare(p, w0).velocity(t, x)

    x, rate, along, velocity = of(mu, t, a)
    np.testing.assert_allclose(rate, -f.gradient(x) - 0.3 * np.array([2 * C, 2 * C, 0, 0, 0]) * mu, rtol=1e-12)
    np.testing.assert_allclose(velocity, along, rtol=1e-10)
