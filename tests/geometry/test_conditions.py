"""check(g, h, w): verdicts for pairs whose answer the theory gives, and their numbers against dense oracles."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.table import Table
from scipy.integrate import solve_ivp

import mirrorjax as mj
from mirrorjax.geometry.conditions import VERDICT, check

RNG = np.random.default_rng(7)
SIDE = 4
ROTATION = np.linalg.qr(RNG.normal(size=(SIDE, SIDE)))[0]


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape))


def positive(*shape):
    return jnp.asarray(RNG.uniform(0.5, 2.0, size=shape))


def aligned(count, low=-1.0):
    """Symmetric matrices that commute with one another, eigenvalues in [low, 1]."""
    matrices = ROTATION * RNG.uniform(low, 1.0, size=(count, 1, SIDE)) @ ROTATION.T
    return jnp.asarray((matrices + matrices.transpose(0, 2, 1)) / 2)


def symmetric():
    matrix = RNG.normal(size=(SIDE, SIDE))
    return jnp.asarray(matrix + matrix.T)


G = aligned(3)
UV = (positive(5), positive(5))
POWER, LOG = mj.PowerDifference(2), mj.LogDifference()
MIXED = mj.Quadratic(jnp.concatenate([G, symmetric()[None]]))
MEASURED = mj.Custom(lambda U: jnp.einsum("mij,ik,jk->m", G, U, U))
SQUARES = mj.Custom(lambda w: w["plus"] ** 2 - w["minus"] ** 2)
WEIGHTS = {"plus": normal(3), "minus": normal(3)}

PAIRS = {
    "hadamard, decay": (mj.Hadamard(), mj.WeightDecay(0.3), (normal(5), normal(5)), "commuting"),
    "hadamard at w = 0, decay": (mj.Hadamard(), mj.WeightDecay(), (jnp.ones(5), jnp.zeros(5)), "commuting"),
    # Theorem D.2: coordinates share no weights, so g itself commutes at any depth; h does not, but normalises it.
    "hadamard of depth 3, decay": (
        mj.Hadamard(3),
        mj.WeightDecay(0.3),
        (normal(5), normal(5), normal(5)),
        "normalising",
    ),
    "power difference, compatible": (POWER, mj.Compatible(POWER), UV, "commuting"),
    "power difference, decay": (POWER, mj.WeightDecay(), UV, "normalising"),
    "log difference, compatible": (LOG, mj.Compatible(LOG), UV, "commuting"),
    # Corollary D.1. Away from 0 the bracket with L1 is 0; h is not smooth, and the verdict must not hide that.
    "linear, L1": (mj.Linear(), mj.L1(), normal(5), "g_only"),
    "linear, decay": (mj.Linear(), mj.WeightDecay(0.3), normal(5), "normalising"),
    "linear, affine": (mj.Linear(), mj.CustomRegularizer(lambda w: jnp.sum(w)), normal(5), "commuting"),
    "quadratic, aligned form": (mj.Quadratic(G), mj.QuadraticForm(aligned(1)[0]), normal(SIDE), "commuting"),
    "quadratic, decay": (mj.Quadratic(G), mj.WeightDecay(), normal(SIDE), "commuting"),
    "quadratic with one stranger": (MIXED, mj.QuadraticForm(aligned(1)[0]), normal(SIDE), "neither"),
    "quadratic, other form": (mj.Quadratic(G), mj.QuadraticForm(symmetric()), normal(SIDE), "g_only"),
    "gram, decay": (mj.Gram(), mj.WeightDecay(), normal(3, 3), "neither"),
    "gram measured, decay": (MEASURED, mj.WeightDecay(), normal(SIDE, SIDE), "commuting"),
    "own pair": (
        SQUARES,
        mj.CustomRegularizer(lambda w: jnp.sum(w["plus"] ** 2 + w["minus"] ** 2)),
        WEIGHTS,
        "commuting",
    ),
}


# -2c(p - 2) for weight decay of scale c and g of degree p.
LEAKS = {
    "hadamard of depth 3, decay": -0.6,
    "power difference, decay": -4.0,
    "linear, decay": 0.6,
}


@pytest.mark.parametrize("name", PAIRS)
def test_verdicts(name):
    g, h, w, expected = PAIRS[name]
    report = check(g, h, w)
    assert report.verdict == getattr(VERDICT, expected), str(report)
    # Nothing is near the threshold: what commutes does so to rounding, what does not fails by percents.
    for bracket in (report.brackets.g_g, report.brackets.g_h):
        assert bracket <= report.tolerance / 10 or bracket > 0.02
    if expected in ("commuting", "normalising"):
        np.testing.assert_allclose(report.leak, LEAKS.get(name, 0.0), rtol=1e-13)
        assert report.leak_residual <= report.tolerance
    # Q exists exactly where everything commutes; 1e-7 is ten times the integration error, 1e-5 far above it.
    everything = max(report.brackets.g_g, report.brackets.g_h) <= report.tolerance
    assert report.hessian_error < 1e-7 if everything else report.hessian_error > 1e-5
    if report.wronskian is not None:
        assert report.separable
        assert (report.wronskian <= report.tolerance) == (expected == "commuting")


def test_the_nonsmooth_and_the_linear_pair_are_explained():
    report = check(mj.Linear(), mj.L1(), normal(5))
    assert report.brackets.g_h == 0
    assert not report.theorem_3_10
    assert "orthant" in str(report)
    assert "affine" in str(report)
    # grad g_i = e_i: the bracket with decay is all of -Hess h e_i, nothing cancels.
    np.testing.assert_allclose(check(mj.Linear(), mj.WeightDecay(), normal(5)).brackets.g_h, 1.0, rtol=1e-12)


def test_brackets_and_rank_agree_with_dense_hessians():
    def fn(w):
        return jnp.stack([jnp.sin(w[0]) * w[1] + w[2], w[0] * w[2] ** 2, jnp.sum(w**3)])

    w = normal(3)
    h = mj.CustomRegularizer(lambda w: w[0] * w[1] ** 2 + jnp.cos(w[2]))
    report = check(mj.Custom(fn), h, w, points=1)

    @jax.jit
    def derivatives(w):
        return jax.jacfwd(fn)(w), jax.grad(h)(w)[None], jax.hessian(fn)(w), jax.hessian(h)(w)[None]

    of_fn, of_h, *seconds = map(np.asarray, derivatives(w))
    gradients, hessians = np.vstack([of_fn, of_h]), np.concatenate(seconds)
    sizes = np.linalg.norm(hessians, ord=2, axis=(1, 2))
    dense = np.zeros((4, 4))
    for i in range(4):
        for j in range(4):
            scale = sizes[i] * np.linalg.norm(gradients[j]) + sizes[j] * np.linalg.norm(gradients[i])
            dense[i, j] = np.linalg.norm(hessians[i] @ gradients[j] - hessians[j] @ gradients[i]) / scale
    for measured, exact in ((report.brackets.g_g, dense[:3, :3].max()), (report.brackets.g_h, dense[:3, 3].max())):
        # The spectral norms in the scale come from five power iterations: from below, and within a factor of two.
        assert exact * (1 - 1e-12) <= measured <= 2 * exact
    singular = np.linalg.svd(gradients[:3], compute_uv=False)
    np.testing.assert_allclose(report.condition_number, singular[0] / singular[-1], rtol=1e-10)
    assert report.rank == 3


def test_commutators_of_the_matrices():
    G0 = symmetric()
    report = check(MIXED, mj.QuadraticForm(G0), normal(SIDE))

    def exact(A, B):
        return np.linalg.norm(A @ B - B @ A, 2) / (2 * np.linalg.norm(A, 2) * np.linalg.norm(B, 2))

    matrices = [np.asarray(A) for A in MIXED.G]
    among = max(exact(A, B) for A in matrices for B in matrices)
    assert report.commutators is not None
    np.testing.assert_allclose(report.commutators.g_g, among, rtol=1e-10)
    np.testing.assert_allclose(report.commutators.g_h, max(exact(A, np.asarray(G0)) for A in matrices), rtol=1e-10)


def test_the_verdict_of_matrices_needs_no_lucky_point():
    # The commutator of these two maps e_3 to 0: no bracket at multiples of e_3 shows it, the matrices do.
    swap = jnp.zeros((3, 3)).at[0, 1].set(1.0).at[1, 0].set(1.0)
    g = mj.Quadratic(jnp.stack([swap, jnp.diag(jnp.array([1.0, 2.0, 0.0]))]))
    report = check(g, mj.WeightDecay(), jnp.array([0.0, 0.0, 1.0]), points=1)
    assert report.brackets.g_g == 0
    assert report.verdict == VERDICT.neither


def test_a_regularizer_that_couples_variables_has_no_wronskian():
    report = check(POWER, mj.CustomRegularizer(lambda w: jnp.sum(w[0] * w[1])), UV)
    assert not report.separable
    assert "not separable" in str(report)
    assert report.verdict == VERDICT.g_only


def test_a_deficient_jacobian_is_shown_with_its_rank():
    dead = jnp.array([1.0, 1.0, 0.0, 1.0, 1.0])
    report = check(mj.Hadamard(), mj.WeightDecay(), (dead, dead / 2))
    assert report.rank == 4
    assert jnp.isinf(report.condition_number)
    assert report.verdict == VERDICT.commuting
    assert not report.theorem_3_6
    assert not report.theorem_3_10
    assert "4 of 5, NOT regular" in str(report)
    gram = check(mj.Gram(), mj.WeightDecay(), normal(3, 3))
    assert gram.rank == 6  # n(n+1)/2 of n^2: X is symmetric


def test_tiny_weights_do_not_count_as_deficient_and_do_not_underflow():
    tiny = tuple(factor.at[1].set(1e-60) for factor in UV)
    compatible, decay = check(POWER, mj.Compatible(POWER), tiny), check(POWER, mj.WeightDecay(), tiny)
    assert compatible.regular
    assert compatible.verdict == VERDICT.commuting
    assert decay.verdict == VERDICT.normalising


def test_a_large_jacobian_gets_bounds_and_says_so():
    sizes = jnp.concatenate([jnp.full(1, 1e-2), jnp.linspace(1.0, 2.0, 1099)])
    report = check(mj.Custom(lambda w: sizes * w), mj.WeightDecay(), jnp.ones(1100), points=1)
    assert not report.rank_exact
    assert "at most 1100" in str(report)
    assert "at least" in str(report)
    assert not report.brackets.complete
    # A bound from below; the smallest singular value stands apart, so the iteration finds it.
    assert 199.0 < report.condition_number < 200.0 * (1 + 1e-6)
    gram = check(mj.Gram(), mj.WeightDecay(), normal(34, 34), points=1)
    assert 34 * 35 // 2 <= gram.rank < 34**2


def test_contracting():
    semidefinite = aligned(1, low=0.0)[0]
    semidefinite = semidefinite - jnp.linalg.eigvalsh(semidefinite)[0] * jnp.eye(SIDE)
    assert check(mj.Quadratic(G), mj.QuadraticForm(semidefinite), normal(SIDE)).theorem_3_10
    # Positive wherever it was looked at, and yet not a positive form.
    indefinite = check(mj.Quadratic(G), mj.QuadraticForm(jnp.diag(jnp.array([1.0, 1.0, 1.0, -1e-3]))), jnp.ones(SIDE))
    assert indefinite.lowest_h > 0
    assert not indefinite.contracting
    below_one = check(LOG, mj.Compatible(LOG), (jnp.full(5, 0.3), jnp.full(5, 0.5)))
    assert below_one.theorem_3_6
    assert not below_one.contracting
    assert not below_one.theorem_3_10


def test_log_differences_contract_down_to_some_a_and_fail_definition_3_7():
    """`h = log u + log v` falls as the weights do: it is positive at w, negative where u^2 = u0^2 + 2a < 1.

    D(1, y) stays finite as y goes to infinity, so that Theorem 3.10 is not claimed even where h >= 0.
    """
    w = (jnp.full(5, 2.0), jnp.full(5, 2.0))
    near, low, ended = (check(LOG, mj.Compatible(LOG), w, a=a, points=1) for a in (-1.0, -1.6, -4.0))
    np.testing.assert_allclose(near.lowest_h, 5 * np.log(2.0), rtol=1e-7)
    assert near.theorem_3_6
    assert near.contracting
    assert not near.theorem_3_10
    assert "sublevel sets of D(x, .) are not bounded" in str(near)
    assert near.flows_end_at_infinity is False
    assert not low.contracting
    assert not ended.contracting  # the flow of h ends at a = -2, before it gets there
    assert ended.lowest_h == -jnp.inf
    R = mj.legendre(LOG, mj.Compatible(LOG), (w[0][:1], w[1][:1]))
    np.testing.assert_allclose(R.bregman(jnp.ones(1), jnp.full(1, 40.0), 0.0), 0.2539, atol=1e-4)


def test_points_keep_their_sign_and_depend_on_the_key_only(key):
    w = (jnp.array([1.0, 1e-3, 4.0, -1.0, 0.0]), jnp.array([-2.0, 5.0, 1.0, 1.0, 0.0]))
    report = check(mj.Hadamard(), mj.WeightDecay(), w, radius=0.9, key=key)
    again = check(mj.Hadamard(), mj.WeightDecay(), w, radius=0.9, key=key)
    for sampled, repeated, leaf in zip(report.points, again.points, w, strict=True):
        assert sampled.shape == (8, 5)
        assert jnp.all(sampled[0] == leaf)
        assert jnp.all(jnp.sign(sampled[:, :4]) == jnp.broadcast_to(jnp.sign(leaf[:4]), (8, 4)))
        assert jnp.all(sampled[1:, 4] != 0)
        assert jnp.all(sampled == repeated)


def test_many_coordinates_that_mix_are_tested_in_combinations():
    report = check(mj.Custom(lambda w: w[0] * w[1]), mj.WeightDecay(), (normal(20), normal(20)))
    assert report.verdict == VERDICT.commuting
    assert report.brackets.pairs == 28
    assert "not all pairs" in str(report)


def test_single_precision():
    w = (positive(50).astype(jnp.float32), positive(50).astype(jnp.float32))
    assert check(POWER, mj.Compatible(POWER), w).verdict == VERDICT.commuting
    assert check(POWER, mj.WeightDecay(), w).verdict == VERDICT.normalising


def test_under_jit_and_vmap():
    @eqx.filter_jit
    def decay(u, v):
        report = check(POWER, mj.WeightDecay(), (u, v), points=2)
        return report.verdict == VERDICT.normalising

    many = jax.vmap(decay)(positive(3, 2), positive(3, 2))
    assert many.shape == (3,)
    assert jnp.all(many)


def test_the_report_is_a_table():
    report = check(POWER, mj.Compatible(POWER), UV)
    table = report.table()
    assert isinstance(table, Table)
    assert table.row_count == len(report.rows()) == len(str(report).splitlines())
    assert "Theorem 3.6 applies" in str(report)


def test_bad_arguments():
    w = (normal(2), normal(2))
    with pytest.raises(ValueError, match="radius must lie between 0 and 1"):
        check(mj.Hadamard(), mj.WeightDecay(), w, radius=1.5)
    with pytest.raises(ValueError, match="points must be"):
        check(mj.Hadamard(), mj.WeightDecay(), w, points=0)
    with pytest.raises(ValueError, match="LogDifference needs u > 0"):
        check(LOG, mj.Compatible(LOG), (jnp.array([-1.0]), jnp.array([1.0])))
    with pytest.raises(ValueError, match=r"not finite .* smaller radius"):
        check(mj.Custom(lambda w: jnp.sqrt(w - 0.99)), mj.WeightDecay(), jnp.ones(3))


FLOWS = {
    "w1 w2": (mj.Hadamard(), (0.7, 1.1)),
    "w1 w2 w3": (mj.Hadamard(3), (0.3, -0.6, 1.1)),
    "u^2 - v^2": (mj.PowerDifference(1), (0.8, 1.2)),
    "u^4 - v^4": (mj.PowerDifference(2), (0.8, 1.2)),
    "log u - log v": (mj.LogDifference(), (0.8, 1.2)),
    "e^u - e^v": (mj.ExpDifference(), (0.8, -1.2)),
}


@pytest.mark.parametrize("name", FLOWS)
def test_where_the_flows_of_g_end(name):
    """scipy follows dw/dt = +-grad g(w) until a weight is infinite, the velocity is, or t = 20.

    The fact of the family is that no flow ends with finite weights: log u does, as u = sqrt(u0^2 - 2t).
    """
    g, start = FLOWS[name]
    slope = jax.jit(jax.grad(lambda w: g(tuple(w))))
    ends_in_the_middle = False
    for sign in (1.0, -1.0):

        def fast(t, w):
            return 1e6 - np.max(np.abs(np.asarray(slope(w))))

        fast.terminal = True

        def rate(t, w, sign=sign):
            return sign * np.asarray(slope(w))

        flow = solve_ivp(rate, (0.0, 20.0), start, events=fast, rtol=1e-8)
        ends_in_the_middle |= flow.status == 1 and bool(np.max(np.abs(flow.y[:, -1])) < 10)
    assert g.smooth_everywhere is not ends_in_the_middle
    assert mj.Blocks(mj.Linear(), g).smooth_everywhere is not ends_in_the_middle
