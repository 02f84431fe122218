"""read_bias: psi(mu, a) gives any trained weights back; the flow's a; products of factors; statuses; derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.integrate import solve_ivp

import mirrorjax as mj

C = 0.7
HADAMARD, DECAY = mj.Hadamard(), mj.WeightDecay(C)
D = 12
RNG = np.random.default_rng(0)
Z = RNG.normal(size=(5, D))
F = mj.LeastSquares(Z, Z @ (np.arange(D) < 3))
START = jnp.asarray(RNG.uniform(0.8, 1.2, D)), jnp.asarray(RNG.uniform(-0.3, 0.3, D))


def of(g):
    return g, mj.Compatible(g, C)


# Each pair with two weights a coordinate.
PAIRS = {
    "hadamard": (HADAMARD, DECAY),
    "power1": (mj.PowerDifference(1), DECAY),
    "power2": of(mj.PowerDifference(2)),
    "power2, weight decay": (mj.PowerDifference(2), DECAY),
    "power3, weight decay": (mj.PowerDifference(3), DECAY),
    "log": of(mj.LogDifference()),
    "exp": of(mj.ExpDifference()),
    "separable": of(mj.Separable(jnp.sinh, lambda v: v + v**3)),
}


def psi(g, h, w0, mu, a, leaks):
    """psi(mu, a) by scipy: both flows at once where they commute, first that of g and then that of h where mu leaks."""

    @jax.jit
    def velocity(w, mu, a):
        pull, decay = g.pull((w[0], w[1]), mu), jax.grad(h)((w[0], w[1]))
        return jnp.stack(pull) + a * jnp.stack(decay)

    def flow(w, mu, a):
        rate = lambda s, flat: np.asarray(velocity(flat.reshape(w.shape), mu, a[None])).ravel()  # noqa: E731
        return solve_ivp(rate, (0, 1), w.ravel(), rtol=1e-11, atol=1e-13).y[:, -1].reshape(w.shape)

    w = np.stack(w0)
    return flow(flow(w, mu, 0 * a), 0 * mu, a) if leaks else flow(w, mu, a)


@pytest.mark.parametrize("name", PAIRS)
def test_flowing_by_mu_and_a_gives_the_weights_back(name):
    g, h = PAIRS[name]
    rng = np.random.default_rng(1)
    u0, v0, u, v = (jnp.asarray(values) for values in rng.uniform(0.5, 1.6, (4, 6)))
    w0, w = ((u0 + v0, u0 - v0), (u + v, u - v)) if name == "hadamard" else ((u0, v0), (u, v))
    bias = mj.read_bias(g, h, w0, w)
    assert bool(jnp.all(bias.ok))
    leaks = "weight decay" in name
    mu = np.asarray(bias.mu)
    if leaks:  # mu counts after the decay: nu = e^((p - 2) s) mu with s = 2ca
        mu = mu * np.exp((g.degree - 2) * 2 * C * np.asarray(bias.a))
    back = psi(g, h, w0, mu, np.asarray(bias.a), leaks)
    # The integration's tolerance, over times of order one.
    np.testing.assert_allclose(back, np.stack(w), rtol=1e-8)


@pytest.fixture(scope="module")
def runs():
    """Weights after 400 steps of each optimizer; SGD on one random row of the data a step."""

    def loss(w, n):
        row = jax.random.permutation(jax.random.key(n), 5)[:2]
        return jnp.sum((F.Z[row] @ (w[0] * w[1]) - F.y[row]) ** 2) / 4

    sgd = optax.chain(optax.add_decayed_weights(0.02), optax.sgd(0.1))
    optimizers = {"sgd": sgd, "adam": optax.adam(0.01), "adamw": optax.adamw(0.01, weight_decay=0.5)}
    with jax.numpy_dtype_promotion("standard"):
        return {name: run(optimizer, loss) for name, optimizer in optimizers.items()}


def run(optimizer, loss):
    @jax.jit
    def trained():
        def step(carry, n):
            w, state = carry
            updates, state = optimizer.update(jax.grad(loss)(w, n), state, w)
            return (optax.apply_updates(w, updates), state), None

        return jax.lax.scan(step, (START, optimizer.init(START)), jnp.arange(400))[0][0]

    return trained()


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_psi_gives_the_weights_of_any_optimizer_back(runs, name):
    bias = mj.read_bias(HADAMARD, DECAY, START, runs[name])
    assert bool(jnp.all(bias.ok))
    psi_of = lambda w0, mu, a: mj.legendre(HADAMARD, DECAY, w0).weights_at(mu, a)  # noqa: E731
    back = jax.vmap(psi_of)(START, bias.mu, bias.a)
    np.testing.assert_allclose(np.stack(back), np.stack(runs[name]), rtol=1e-12, atol=1e-13)
    # The definition, in numpy.
    (m0, w0), (m, w) = (np.asarray(START), np.asarray(runs[name]))
    np.testing.assert_allclose(4 * C * bias.a, np.log(np.abs((m**2 - w**2) / (m0**2 - w0**2))), rtol=1e-10)


def test_the_flow_has_one_a_in_all_coordinates():
    problem = mj.Problem(HADAMARD, DECAY, mj.SwitchOff(0.5, 2.0), F)
    sol = mj.solve(problem, START, t1=5.0, rtol=1e-11, atol=1e-13)
    bias = mj.read_bias(HADAMARD, DECAY, START, jax.tree.map(lambda leaf: leaf[-1], sol.w))
    # The tolerance of the flow times the number of its steps.
    np.testing.assert_allclose(bias.a, -1.0, atol=1e-8)
    np.testing.assert_allclose(bias.mu, sol.mu[-1], atol=1e-8)
    back = Z.T @ np.linalg.lstsq(Z.T, np.asarray(bias.mu))[0]
    np.testing.assert_allclose(back, bias.mu, atol=1e-8)


def test_every_coordinate_has_its_own_status():
    m0, w0 = jnp.array([1.0, 1.0, 1.0, 1.0, 1.0, 1.0]), jnp.array([0.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    m, w = jnp.array([0.5, 0.1, 0.4, 0.5, jnp.nan, 1e-200]), jnp.array([0.1, 0.3, 0.4, 0.1, 0.1, 0.0])
    bias = mj.read_bias(HADAMARD, DECAY, (m0, w0), (m, w))
    wanted = ["successful", "other_orthant", "balanced", "balanced", "diverged", "successful"]
    assert list(mj.status_name(bias.result)) == wanted
    np.testing.assert_array_equal(np.isnan(bias.a), [name != "successful" for name in wanted])
    np.testing.assert_array_equal(np.isnan(bias.mu), np.isnan(bias.a))
    np.testing.assert_allclose(bias.a[np.array([0, 5])] * 4 * C, [np.log(0.24), -400 * np.log(10)], rtol=1e-14)
    text = repr(bias)
    assert "1 diverged, 1 other_orthant, 2 successful" in text
    assert f"a: {np.nanmin(bias.a):.4g} to {np.nanmax(bias.a):.4g}" in text
    flat = mj.read_bias(*of(mj.PowerDifference(2)), (m0, w0 + 1.0 - 2.0 * w0), (m, m))
    assert list(mj.status_name(flat.result))[3:5] == ["balanced", "diverged"]


def test_a_time_that_the_quadrature_misses_has_a_status():
    # int du / (4 u^3) from 1 to 1e-6 needs nodes near 0; from 1 to 2 it does not.
    g = mj.Separable(lambda u: u**4, lambda v: v)
    bias = mj.read_bias(*of(g), (jnp.ones(2), jnp.ones(2)), (jnp.array([1e-6, 2.0]), jnp.ones(2)))
    assert list(mj.status_name(bias.result)) == ["not_converged", "successful"]
    np.testing.assert_allclose(bias.a[1] * 2 * C, (1 - 2**-2) / 8, rtol=1e-14)


def test_a_bad_coordinate_leaves_the_derivatives_of_the_others():
    m, w = START[0], START[1].at[0].set(5.0)

    @jax.jit
    def derivatives(m, w):
        total = lambda m, w: jnp.nansum(mj.read_bias(HADAMARD, DECAY, START, (m, w)).a)  # noqa: E731
        return jax.grad(total)(m, w), jax.vmap(lambda w: mj.read_bias(HADAMARD, DECAY, START, (m, w)).a)(
            jnp.stack([w, w])
        )

    slope, lanes = derivatives(m, w)
    exact = m / (2 * C * (m**2 - w**2))  # of log|m^2 - w^2| / (4c)
    np.testing.assert_allclose(slope[1:], exact[1:], rtol=1e-12)
    assert slope[0] == 0
    np.testing.assert_array_equal(np.isnan(lanes), np.arange(2 * D).reshape(2, D) % D == 0)


def test_single_precision_keeps_what_the_weights_hold():
    near = jnp.asarray(1 + 1e-4 * RNG.uniform(size=D), "float32")
    w0, w = (jnp.ones(D, "float32"), jnp.zeros(D, "float32")), (near, jnp.full(D, 0.5, "float32"))
    wide = [np.asarray(leaf, "float64") for leaf in w]
    exact = np.log(wide[0] ** 2 - wide[1] ** 2) / (4 * C)
    bias = mj.read_bias(HADAMARD, DECAY, w0, w)
    assert bias.a.dtype == jnp.float32
    # m + w and m - w are rounded once, logarithms of order one once.
    np.testing.assert_allclose(bias.a, exact, atol=4 * float(np.finfo(np.float32).eps) / C)
    half = mj.read_bias(HADAMARD, DECAY, w0, jax.tree.map(lambda leaf: leaf.astype("bfloat16"), w))
    assert half.a.dtype == jnp.float32
