"""The predicted limit against the flow itself, linear programming, an independent optimiser, and finite differences."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.flatten_util import ravel_pytree
from scipy.linalg import null_space
from scipy.optimize import linprog, minimize

import mirrorjax as mj
from mirrorjax.geometry.families.spectral import SpectralGram
from mirrorjax.geometry.legendre import legendre
from mirrorjax.geometry.limit import Limit, kkt_residual, predict_limit
from mirrorjax.results import RESULTS, status_name

N, D = 4, 9


def data(key: Array, n: int = N, d: int = D) -> tuple[Array, Array]:
    first, second = jax.random.split(key)
    return jax.random.normal(first, (n, d)) / jnp.sqrt(n), jax.random.normal(second, (n,))


def factors(key: Array, d: int = D) -> tuple[Array, Array]:
    """Unequal positive factors: admissible in every family, and with |m0| != |w0|."""
    first, second = jax.random.split(key)
    return jax.random.uniform(first, (d,), minval=0.9, maxval=1.3), jax.random.uniform(second, (d,), maxval=0.7) + 0.1


def hadamard(w0: tuple[Array, Array]):
    return legendre(mj.Hadamard(), mj.WeightDecay(), w0)


def basis_pursuit(Z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`argmin |x|_1` s.t. `Z x = y`, as a linear program."""
    d = Z.shape[1]
    solution = linprog(np.ones(2 * d), A_eq=np.hstack([Z, -Z]), b_eq=y, bounds=(0, None), method="highs")
    return solution.x[:d] - solution.x[d:]


def successful(limit: Limit) -> bool:
    return bool(jnp.all(limit.result == RESULTS.successful))


# (g, a): LogDifference runs out of range at a = -0.2^2/2 for these factors, so it is asked for a little only.
FAMILIES = {
    "hadamard": (mj.Hadamard(), -1.0),
    "power_2": (mj.PowerDifference(2), -1.0),
    "exp": (mj.ExpDifference(), -1.0),
    "log": (mj.LogDifference(), -0.003),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_both_conditions_hold(name: str, key: Array):
    g, weak = FAMILIES[name]
    w0, (Z, y) = factors(key), data(key)
    R, objective = legendre(g, mj.Compatible(g), w0), mj.LeastSquares(Z, y)
    for a in (weak,) if name == "log" else (weak, -50.0):
        limit = predict_limit(R, objective, a)
        assert successful(limit)
        # Rounding of mu is worth eps |mu| M in x: M ~ 4 x and |mu| ~ 100 at a = -50 for the stiffest: 1e-12 and 1e-11.
        assert limit.fit_residual < 1e-11
        np.testing.assert_allclose(Z @ limit.x, y, atol=1e-10 * float(jnp.linalg.norm(limit.x)))
        assert limit.kkt_residual < 1e-12
        assert kkt_residual(R, objective, limit.x, a) < 1e-12
        np.testing.assert_allclose(limit.mu, Z.T @ limit.nu, rtol=1e-12, atol=1e-12)


def test_limit_of_a_long_flow(key: Array):
    Z, y = data(key, 2, 5)
    w0, g, h = factors(key, 5), mj.Hadamard(), mj.WeightDecay()
    problem = mj.Problem(g, h, mj.SwitchOff(0.5, 1.0), mj.LeastSquares(Z, y))
    R = legendre(g, h, w0)
    # A loss of 1e-24 is where steps of rtol 1e-10 leave it; x is integrated to about a hundred times rtol.
    flow = mj.solve(problem, w0, t1=400.0, flow=mj.MirrorFlow(R=R), rtol=1e-10)
    limit = predict_limit(R, problem.objective, float(flow.a[-1]))
    assert flow.a[-1] == -0.5
    np.testing.assert_allclose(limit.x, flow.x[-1], rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(limit.mu, flow.mu[-1], rtol=1e-7, atol=1e-8)
    # The flow moves mu by multiples of grad f, all in range(Z^T): its KKT residual is rounding at every time.
    assert kkt_residual(R, problem.objective, flow.x[-1], flow.a[-1]) < 1e-8


def hyperbolic_entropy(x: np.ndarray, m0: np.ndarray, w0: np.ndarray, a: float) -> float:
    """`R_a` of Hadamard as THEORY writes it, in numpy."""
    u0, v0 = (m0 + w0) / np.sqrt(2), (m0 - w0) / np.sqrt(2)
    A, tilt = np.abs(u0 * v0) * np.exp(4 * a), np.log(np.abs(u0 / v0))
    return float(np.sum(x * np.arcsinh(x / A) - np.sqrt(x**2 + A**2) - tilt * x) / 2)


@pytest.mark.parametrize("a", [0.0, -0.4])
def test_an_independent_optimiser_finds_no_less(a: float, key: Array):
    (m0, w0), (Z, y) = factors(key), data(key)
    limit = predict_limit(hadamard((m0, w0)), mj.LeastSquares(Z, y), a)
    particular, free = np.linalg.lstsq(np.asarray(Z), np.asarray(y), rcond=None)[0], null_space(np.asarray(Z))
    found = minimize(
        lambda q: hyperbolic_entropy(particular + free @ q, np.asarray(m0), np.asarray(w0), a),
        np.zeros(D - N),
        method="BFGS",
        options={"gtol": 1e-6},
    )
    # Its gradient is by finite differences, good to 1e-8: values agree to its square, points to itself over curvature.
    np.testing.assert_allclose(limit.x, particular + free @ found.x, atol=1e-5)
    assert hyperbolic_entropy(np.asarray(limit.x), np.asarray(m0), np.asarray(w0), a) <= found.fun + 1e-12


@pytest.mark.parametrize("a", [-50.0, -1e3, -1e4])
@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
def test_strong_decay_is_basis_pursuit(a: float, sparse: bool):
    rng = np.random.default_rng(2)
    n, d = 20, 50
    Z = rng.standard_normal((n, d)) / np.sqrt(n)
    y = Z @ np.where(np.arange(d) < 4, [1.0, -2.0] * (d // 2), 0.0) if sparse else rng.standard_normal(n)
    R = hadamard((jnp.ones(d), jnp.zeros(d)))
    limit = predict_limit(R, mj.LeastSquares(Z, y), a)
    assert successful(limit)
    assert limit.kkt_residual < 1e-12
    # R_a is |x|_1 up to entropy, which moves entries beyond the support by e^{-4|a| slack}: a dense y has slacks of a
    # few percent, so a = -50 is not yet strong. Then rounding of mu, 2 eps |mu| = 4e-12 at a = -1e4, some n times.
    size = np.abs(limit.x).sum()
    optimum = basis_pursuit(Z, y)
    np.testing.assert_allclose(size, np.abs(optimum).sum(), rtol=1e-8 if a < -50 or sparse else 0.02)
    if a < -50 or sparse:
        np.testing.assert_allclose(limit.x, optimum, atol=1e-8)


def test_square_keeps_to_positive_solutions(key: Array):
    Z, _ = data(key)
    truth = jnp.where(jnp.arange(D) < 2, 1.0, 0.0)
    R = legendre(mj.Square(), mj.WeightDecay(), factors(key)[0])
    limit = predict_limit(R, mj.LeastSquares(Z, Z @ truth), -50.0)
    assert successful(limit)
    assert jnp.all(limit.x >= 0)
    cheapest = linprog(np.ones(D), A_eq=np.asarray(Z), b_eq=np.asarray(Z @ truth), bounds=(0, None))
    np.testing.assert_allclose(limit.x, cheapest.x, atol=1e-9)


def test_spectral_gram_follows_square(key: Array):
    Z, _ = data(key)
    V, _ = jnp.linalg.qr(jax.random.normal(key, (D, D)))
    A = jnp.einsum("ij,mj,kj->mik", V, Z, V)
    y = Z @ jnp.linspace(0.1, 1.0, D)
    expected = predict_limit(legendre(mj.Square(), mj.WeightDecay(), jnp.full(D, 0.8)), mj.LeastSquares(Z, y), -0.3)
    R = SpectralGram(0.8 * jnp.eye(D), jnp.array(1.0))
    limit = predict_limit(R, mj.MatrixSensing((A + A.mT) / 2, y), -0.3)
    assert successful(limit)
    # Both to rtol 1e-12 of their norms.
    np.testing.assert_allclose(V.T @ limit.x @ V, jnp.diag(expected.x), atol=1e-10)
    assert limit.kkt_residual < 1e-12


def test_spectral_gram_refuses_matrices_that_do_not_commute(key: Array):
    A = jax.random.normal(key, (2, 3, 3))
    R = SpectralGram(jnp.eye(3), jnp.array(1.0))
    with pytest.raises(ValueError, match="commute pairwise"):
        predict_limit(R, mj.MatrixSensing(A + A.mT, jnp.ones(2)), -0.1)


def test_derivatives_are_those_of_finite_differences(key: Array):
    arguments = (jnp.array(-0.3), factors(key), *data(key))
    weights = jax.random.normal(key, (D,))

    def score(flat: Array) -> Array:
        a, w0, Z, y = unflatten(flat)
        return weights @ predict_limit(hadamard(w0), mj.LeastSquares(Z, y), a).x

    flat, unflatten = ravel_pytree(arguments)
    reverse, forward, evaluate = jax.jit(jax.grad(score)), jax.jit(jax.jacfwd(score)), jax.jit(jax.vmap(score))
    for point in (flat, flat.at[0].set(-3.0)):
        gradient = reverse(point)
        np.testing.assert_allclose(forward(point), gradient, rtol=1e-9, atol=1e-10)
        # Central differences of step 1e-4: truncation 1e-8 times third derivatives, 1e-12 / 1e-4 from the limit itself.
        steps = 1e-4 * jnp.eye(flat.size)
        differences = (evaluate(point[None] + steps) - evaluate(point[None] - steps)) / 2e-4
        np.testing.assert_allclose(gradient, differences, rtol=1e-5, atol=1e-5)


def test_derivatives_are_refused_where_x_is_sparser_than_the_data():
    Z = jax.random.normal(jax.random.key(0), (N, D))
    R = hadamard((jnp.ones(D), jnp.zeros(D)))
    y = 1.5 * Z[:, 0]  # x = 1.5 e_1: how it answers other changes of y is decided by entries of e^{-200 slack}

    def score(y: Array) -> Array:
        return predict_limit(R, mj.LeastSquares(Z, y), -50.0).x[1]

    assert jnp.all(jnp.isnan(jax.grad(score)(y)))


def test_many_strengths_in_one_call(key: Array):
    R, objective = hadamard(factors(key)), mj.LeastSquares(*data(key))
    strengths = jnp.array([0.0, -0.5, -5.0, -200.0])
    together = jax.jit(jax.vmap(lambda a: predict_limit(R, objective, a)))(strengths)
    assert successful(together)
    for i, a in enumerate(strengths):
        # Batched products round differently: to the fit tolerance, and rounding of mu at a = -200.
        np.testing.assert_allclose(together.x[i], predict_limit(R, objective, a).x, atol=1e-10)


def test_a_failed_lane_spoils_no_other(key: Array):
    Z, y = data(key)
    objective = mj.LeastSquares(Z, y)
    strengths = jnp.array([-0.5, 1.0, jnp.nan, -1.0])

    def total(m0: Array) -> tuple[Array, Limit]:
        R = hadamard((m0, jnp.zeros(D)))
        limit = jax.vmap(lambda a: predict_limit(R, objective, a))(strengths)
        return jnp.sum(jnp.where(limit.result == RESULTS.successful, limit.x[:, 0], 0.0)), limit

    gradient, limit = jax.grad(total, has_aux=True)(jnp.ones(D))
    assert status_name(limit.result).tolist() == ["successful", "invalid_strength", "invalid_strength", "successful"]
    for leaf in (limit.x, limit.mu, limit.nu, limit.kkt_residual, limit.fit_residual):
        assert np.isnan(leaf).reshape(4, -1).all(axis=1).tolist() == [False, True, True, False]
        assert np.isfinite(leaf[::3]).all()
    assert jnp.all(jnp.isfinite(gradient))
    assert jnp.any(gradient != 0)


def test_dependent_rows_change_nothing(key: Array):
    R, (Z, y) = hadamard(factors(key)), data(key)
    repeated = mj.LeastSquares(jnp.concatenate([Z, 2 * Z[:2]]), jnp.concatenate([y, 2 * y[:2]]))

    @jax.jit
    def pair(a: Array) -> tuple[Array, Array]:
        return predict_limit(R, repeated, a).x, predict_limit(R, mj.LeastSquares(Z, y), a).x

    values, slopes = jax.jvp(pair, (jnp.array(-0.7),), (jnp.ones(()),))
    np.testing.assert_allclose(*values, atol=1e-11)
    np.testing.assert_allclose(*slopes, atol=1e-11)


def test_problems_without_a_solution_say_so(key: Array):
    (m0, w0), (Z, y) = factors(key), data(key)
    tall = mj.LeastSquares(jax.random.normal(key, (D + 3, D)), jnp.ones(D + 3))
    positive = legendre(mj.Square(), mj.WeightDecay(), m0)
    log = mj.LogDifference()
    cases = {
        "outside_range": predict_limit(hadamard((m0, w0)), tall, -0.1),
        "not_converged": predict_limit(positive, mj.LeastSquares(jnp.abs(Z), -jnp.abs(y)), -0.1),
        "range_exhausted": predict_limit(legendre(log, mj.Compatible(log), (m0, w0)), mj.LeastSquares(Z, y), -5.0),
    }
    for status, limit in cases.items():
        assert limit.result == getattr(RESULTS, status)
        assert jnp.all(jnp.isnan(limit.x))
        assert jnp.isnan(limit.kkt_residual)
    balanced = jax.jit(lambda w: predict_limit(hadamard((w, w)), mj.LeastSquares(Z, y), -0.1))(m0)
    assert balanced.result == RESULTS.invalid_weights
    few = predict_limit(hadamard((m0, w0)), mj.LeastSquares(Z, y), -5.0, max_steps=2)
    assert few.result == RESULTS.not_converged


def test_zero_targets_and_underflow():
    Z = jax.random.normal(jax.random.key(1), (N, D))
    limit = predict_limit(hadamard((jnp.ones(D), jnp.full(D, 0.3))), mj.LeastSquares(Z, jnp.zeros(N)), -1e3)
    assert successful(limit)
    np.testing.assert_array_equal(limit.x, 0.0)  # |x| ~ e^{-4000}


def test_single_precision(key: Array):
    w0, (Z, y) = factors(key), data(key)
    objective = mj.LeastSquares(Z.astype(jnp.float32), y.astype(jnp.float32))
    R = hadamard((w0[0].astype(jnp.float32), w0[1].astype(jnp.float32)))
    for a in (-0.5, -50.0):
        single, double = predict_limit(R, objective, a), predict_limit(hadamard(w0), mj.LeastSquares(Z, y), a)
        assert single.x.dtype == jnp.float32
        assert successful(single)
        # eps |2 mu| = 1.2e-7 * 200 at a = -50, times the condition of Z.
        np.testing.assert_allclose(single.x, double.x, atol=1e-3 * float(jnp.linalg.norm(double.x)))
        assert single.kkt_residual < 1e-5


def test_new_numbers_do_not_recompile(key: Array):
    w0, (Z, y) = factors(key), data(key)

    @eqx.filter_jit
    @eqx.debug.assert_max_traces(max_traces=1)
    def run(w0: tuple[Array, Array], y: Array, a: Array) -> Limit:
        return predict_limit(hadamard(w0), mj.LeastSquares(Z, y), a)

    for scale in (1.0, 2.0):
        assert successful(run((scale * w0[0], w0[1]), scale * y, jnp.array(-scale)))


def test_kkt_residual_tells_other_points_apart(key: Array):
    R, (Z, y) = hadamard(factors(key)), data(key)
    objective = mj.LeastSquares(Z, y)
    x = jnp.asarray(np.linalg.lstsq(np.asarray(Z), np.asarray(y), rcond=None)[0])
    mu = np.asarray(R.mirror_map(x, -1.0))
    nu = np.linalg.lstsq(np.asarray(Z.T), mu, rcond=None)[0]
    expected = np.linalg.norm(mu - np.asarray(Z.T) @ nu) / np.linalg.norm(mu)
    assert expected > 0.01
    np.testing.assert_allclose(kkt_residual(R, objective, x, -1.0), expected, rtol=1e-10)
    np.testing.assert_allclose(kkt_residual(R, mj.Logistic(Z, jnp.sign(y)), x, -1.0), expected, rtol=1e-10)
    # grad R_a vanishes at argmin R_a: to rounding nothing is left of mu, and any ratio of roundings is not an error.
    assert kkt_residual(R, objective, R.minimizer(-1.0), -1.0) <= 1.0


def test_bad_arguments(key: Array):
    R, (Z, y) = hadamard(factors(key)), data(key)
    objective = mj.LeastSquares(Z, y)
    with pytest.raises(ValueError, match="Logistic has no interpolation point"):
        predict_limit(R, mj.Logistic(Z, jnp.sign(y)), -1.0)
    with pytest.raises(ValueError, match="linear measurements"):
        predict_limit(R, mj.CustomObjective(lambda x: jnp.sum(x**2)), -1.0)
    with pytest.raises(ValueError, match="linear measurements"):
        kkt_residual(R, mj.CustomObjective(lambda x: jnp.sum(x**2)), jnp.ones(D), -1.0)
    with pytest.raises(ValueError, match=r"got 0\.5"):
        predict_limit(R, objective, 0.5)
    with pytest.raises(ValueError, match="finite"):
        predict_limit(R, objective, -jnp.inf)
    with pytest.raises(ValueError, match="scalar"):
        predict_limit(R, objective, jnp.array([-1.0, -2.0]))
    with pytest.raises(ValueError, match="built for x of shape"):
        predict_limit(R, mj.LeastSquares(Z[:, :3], y), -1.0)
    with pytest.raises(ValueError, match="rtol"):
        predict_limit(R, objective, -1.0, rtol=-1e-3)
    with pytest.raises(ValueError, match="max_steps"):
        predict_limit(R, objective, -1.0, max_steps=0)


def test_implicit_derivatives_equal_those_of_unrolled_newton_steps(key):
    """From the limit itself, so that a few plain Newton steps stay there and carry the derivative through."""
    Z, y = data(key)
    R, a = hadamard(factors(jax.random.key(3))), jnp.array(-0.3)
    nu = predict_limit(R, mj.LeastSquares(Z, y), a).nu

    def implicit(Z, y, a):
        return predict_limit(R, mj.LeastSquares(Z, y), a).x

    def unrolled(Z, y, a):
        def gap(z):
            return Z @ R.primal(Z.T @ z, a).value - y

        z = nu
        for _ in range(3):
            z = z - jnp.linalg.solve(jax.jacfwd(gap)(z), gap(z))
        return R.primal(Z.T @ z, a).value

    both = jax.jit(lambda *point: [jax.jacfwd(function, (0, 1, 2))(*point) for function in (implicit, unrolled)])
    for ours, theirs in zip(*both(Z, y, a), strict=True):
        # Both solve the same linear system at the same point: rounding times its conditioning, about 1e3.
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)
