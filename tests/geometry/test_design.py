"""compatible_regularizers() against check(), and the dimension of the commutant against its eigenspaces."""

import jax.numpy as jnp
import numpy as np
import pytest

import mirrorjax as mj
from mirrorjax.geometry.conditions import VERDICT, check
from mirrorjax.geometry.design import compatible_regularizers

RNG = np.random.default_rng(3)
UV = (jnp.asarray(RNG.uniform(0.5, 2.0, 3)), jnp.asarray(RNG.uniform(0.5, 2.0, 3)))

FAMILIES = {
    "hadamard": (mj.Hadamard(), UV),
    "separable": (mj.Separable(jnp.sinh, jnp.exp), UV),
}


def rotated(*diagonals):
    rotation = np.linalg.qr(RNG.normal(size=(len(diagonals[0]),) * 2))[0]
    matrices = rotation * np.array(diagonals, dtype=float)[:, None] @ rotation.T
    return jnp.asarray((matrices + matrices.transpose(0, 2, 1)) / 2)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_named_commutes(name):
    g, w = FAMILIES[name]
    (found,) = compatible_regularizers(g)
    assert check(g, found.regularizer, w).verdict == VERDICT.commuting
    assert found.condition
    assert "3.12" in found.source or "Eq." in found.source


@pytest.mark.parametrize(
    ("diagonals", "dimension"),
    [
        # The joint eigenspaces have sizes m; symmetric matrices on each give sum m(m+1)/2.
        (([1, 1, 2, 3], [1, 1, 2, 2]), 3 + 1 + 1),
        (([1, 1, 1, 2, 2],), 6 + 3),
        (([0, 0],), 3),
        (([2],), 1),
    ],
)
def test_the_commutant_of_quadratic_forms(diagonals, dimension):
    G = rotated(*diagonals)
    regularizers = [admissible.regularizer for admissible in compatible_regularizers(mj.Quadratic(G))]
    found = [h.G0 for h in regularizers if isinstance(h, mj.QuadraticForm)]
    assert len(found) == dimension
    np.testing.assert_array_equal(found[0], np.eye(G.shape[-1]))
    assert np.linalg.matrix_rank(np.stack(found).reshape(dimension, -1)) == dimension
    for G0 in found:
        # Rounding of products of matrices of order one and side at most 5.
        np.testing.assert_allclose(G0 @ G, G @ G0, atol=1e-13)
        np.testing.assert_array_equal(G0, G0.T)
    for G0 in found[1:]:
        np.testing.assert_allclose(jnp.trace(G0), 0.0, atol=1e-13)


def test_the_commutant_passes_the_check():
    g = mj.Quadratic(rotated([1, 1, 2, 3], [1, 1, 2, 2]))
    for admissible in compatible_regularizers(g):
        report = check(g, admissible.regularizer, jnp.asarray(RNG.normal(size=4)))
        assert report.verdict == VERDICT.commuting
        assert "3.15" in admissible.source


def test_matrices_come_with_their_condition():
    for g in (mj.Gram(), mj.MatrixProduct()):
        (found,) = compatible_regularizers(g)
        assert "commute" in found.condition or "aligned" in found.condition


def test_where_the_theory_names_none_it_says_why():
    with pytest.raises(ValueError, match="affine"):
        compatible_regularizers(mj.Linear())
    with pytest.raises(ValueError, match=r"Theorem D\.2"):
        compatible_regularizers(mj.Hadamard(3))
    with pytest.raises(ValueError, match=r"mirrorjax\.check"):
        compatible_regularizers(mj.Custom(lambda w: w))
    stranger = jnp.asarray([[0.0, 1.0], [1.0, 0.0]])
    with pytest.raises(ValueError, match="do not commute"):
        compatible_regularizers(mj.Quadratic(jnp.stack([jnp.diag(jnp.array([1.0, 2.0])), stranger])))
    with pytest.raises(ValueError, match="up to 64 rows, got 65"):
        compatible_regularizers(mj.Quadratic(jnp.eye(65)[None]))
