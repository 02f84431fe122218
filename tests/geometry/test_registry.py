"""Registering closed forms: exact on the types of g and h, once, and with three methods for an elementwise one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

import mirrorjax.problem as mj
from mirrorjax.geometry import legendre, register_legendre
from mirrorjax.geometry.families.hyperbolic import SquareLegendre
from mirrorjax.geometry.families.separable import AbstractSeparableLegendre, scaled_strength
from mirrorjax.geometry.numeric import NumericLegendre
from mirrorjax.geometry.registry import closed_form
from mirrorjax.results import status_name

W0 = jnp.array([0.7, 1.2, 1.0])
C, A = 0.7, -0.3
U, V = jnp.array([1.3, 0.9, 1.1, 0.8]), jnp.array([0.8, 1.2, 1.1, 0.95])


class Halved(mj.AbstractReparameterization):
    """`x = w^2 / 2`: no closed form in this package."""

    degree = property(lambda self: 2)
    elementwise = property(lambda self: True)

    def __call__(self, w):
        return w**2 / 2

    def check(self, w):
        pass


class HalvedLegendre(AbstractSeparableLegendre):
    """The three methods of a closed form: psi, the summands of Q_a, and the interval of mu."""

    w0: Float[Array, "..."]
    scale: Float[Array, ""]

    def flow(self, mu, a):
        return self.w0 * jnp.exp(mu + 2 * scaled_strength(self.scale, a, mu))

    def potential_terms(self, mu, a):
        return self.flow(mu, a) ** 2 / 4

    def dual_interval_at(self, a):
        return jnp.full_like(self.w0, -jnp.inf), jnp.full_like(self.w0, jnp.inf)


def build(g, h, w0):
    return HalvedLegendre(w0, h.scale)


register_legendre(Halved, mj.WeightDecay, build)


def test_three_methods_are_a_closed_form_and_agree_with_the_numeric_path():
    g, h = Halved(), mj.WeightDecay(C)
    R = legendre(g, h, W0)
    assert isinstance(R, HalvedLegendre)
    mu = jnp.array([0.3, -0.2, 0.0])
    numeric = NumericLegendre(g, h, W0)
    x = numeric.inverse_mirror_map(mu, A)
    # The contract of the numeric path: integrators at 1e-12, Newton to 2e-11.
    np.testing.assert_allclose(R.inverse_mirror_map(mu, A), x, rtol=1e-9)
    np.testing.assert_allclose(R.mirror_map(x, A), numeric.mirror_map(x, A), rtol=1e-9, atol=1e-9)
    rise = numeric.value(x, A) - numeric.value(g(W0), 0.0)
    np.testing.assert_allclose(R.value(x, A) - R.value(g(W0), 0.0), rise, rtol=1e-9, atol=1e-9)


def test_defaults_are_the_formulas_that_another_closed_form_overrides():
    """x = w^2/2 is Square with half the x and twice the mu: R(x) = Square's R of 2x."""
    R, square = HalvedLegendre(W0, jnp.asarray(C)), SquareLegendre(W0, jnp.asarray(C))
    x = jnp.array([0.05, 1.0, 30.0])

    @jax.jit
    def ours(x, a):
        slope = jax.grad(R.value)(x, a)
        return R.mirror_map(x, a), R.value(x, a), R.hessian(x, a), slope, jax.grad(R.value, 1)(x, a), R.minimizer(a)

    @jax.jit
    def theirs(x, a):
        slope, fall = jax.grad(square.value)(2 * x, a), jax.grad(square.value, 1)(2 * x, a)
        hessian = 4 * square.hessian(2 * x, a)
        return (
            2 * square.mirror_map(2 * x, a),
            square.value(2 * x, a),
            hessian,
            2 * slope,
            fall,
            square.minimizer(a) / 2,
        )

    for a in (0.0, A, -20.0):
        for mine, other in zip(ours(x, a), theirs(x, a), strict=True):
            # The root is found to rounding of x, which mu carries: the condition of grad R times a few eps.
            np.testing.assert_allclose(mine, other, rtol=1e-12, atol=1e-12)
    recovered = R.dual(x.at[1].set(-1.0), A)
    assert list(status_name(recovered.result)) == ["successful", "outside_range", "successful"]
    assert np.array_equal(np.isnan(recovered.value), [False, True, False])


class Shifted(mj.Hadamard):
    """A subclass that computes something else."""

    def __call__(self, w):
        return w[0] * w[1] + 1.0


class Heavy(mj.WeightDecay):
    def __call__(self, w):
        return 2 * self.scale * (jnp.sum(w[0] ** 2) + jnp.sum(w[1] ** 2))


def test_a_subclass_does_not_inherit_a_closed_form():
    w0 = (jnp.array([1.0, 0.5]), jnp.array([0.2, -0.1]))
    assert closed_form(mj.Hadamard(), mj.WeightDecay(), w0) is not None
    assert closed_form(Shifted(), mj.WeightDecay(), w0) is None
    assert closed_form(mj.Hadamard(), Heavy(), w0) is None
    assert isinstance(legendre(Shifted(), mj.WeightDecay(), w0, unchecked=True), NumericLegendre)


def test_registering_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match="Halved with WeightDecay has a closed form already"):
        register_legendre(Halved, mj.WeightDecay, build)
    with pytest.raises(ValueError, match="G must be a subclass of AbstractReparameterization"):
        register_legendre(mj.L1, mj.L1, build)
    with pytest.raises(ValueError, match="H must be a subclass of AbstractRegularizer"):
        register_legendre(Halved, Halved, build)


@pytest.mark.parametrize(
    ("g", "h", "w0"),
    [
        (mj.Hadamard(3), mj.CustomRegularizer(lambda w: jnp.sum(w[0] ** 2)), (U, V, V)),
        (mj.PowerDifference(2), mj.Compatible(mj.PowerDifference(3)), (U, V)),
        (mj.LogDifference(), mj.WeightDecay(), (U, V)),
        (mj.Hadamard(), mj.L1(), (U, V)),
        (mj.Separable(jnp.exp, jnp.exp), mj.Compatible(mj.Separable(jnp.exp, jnp.exp)), (U, V)),
        (mj.Gram(), mj.WeightDecay(), jnp.eye(2)),
    ],
)
def test_pairs_without_a_closed_form(g, h, w0):
    assert closed_form(g, h, w0) is None
