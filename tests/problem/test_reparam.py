"""Every family of the registry: value, shape, derivative, structure it declares, transformations, bad arguments."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from registry import FAMILIES

from mirrorjax.problem import (
    AbstractReparameterization,
    Compatible,
    Custom,
    Hadamard,
    PowerDifference,
    Quadratic,
    Separable,
    families_by_name,
)

N = 3
names = pytest.mark.parametrize("name", FAMILIES)


def built(name, key):
    family = FAMILIES[name]
    return family.build(N), family.sample(key, N)


@names
def test_value_and_shape(name, key):
    reference = FAMILIES[name].reference
    if reference is None:
        pytest.skip("the registry holds no reference")
    g, w = built(name, key)
    g.check(w)
    x, expected = g(w), reference(jax.tree.map(np.asarray, w))
    assert x.shape == expected.shape
    # A handful of roundings of numbers of order one, some of which cancel.
    np.testing.assert_allclose(x, expected, rtol=1e-13, atol=1e-14)


@names
def test_jacobian_against_finite_differences(name, key):
    """Also the products with J that `pull`, `push` and `metric` give."""
    g, w = built(name, key)
    flat, unravel = ravel_pytree(w)
    step = 1e-3
    steps = step * jnp.eye(flat.size)

    @jax.jit  # one program: compiling is all that this test costs
    def everything(flat):
        def value(v):
            return g(unravel(v)).ravel()

        w = unravel(flat)
        v = jnp.linspace(-1.0, 1.0, g(w).size).reshape(g(w).shape)
        near = jax.vmap(value)(flat[None] + jnp.concatenate([k * steps for k in (1, -1, 2, -2)]))
        return (
            jax.jacfwd(value)(flat),
            near,
            v.ravel(),
            ravel_pytree(g.pull(w, v))[0],
            g.push(w, v).ravel(),
            g.metric(w),
        )

    J, near, v, pulled, pushed, metric = everything(flat)
    plus, minus, plus2, minus2 = jnp.split(near, 4)
    # Fourth order: 4e-14 from the step, 1e-16/1e-3 from rounding, both times derivatives of at most 100 or so.
    np.testing.assert_allclose(J.T, (8 * (plus - minus) - plus2 + minus2) / (12 * step), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(pulled, v @ J, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(pushed, J @ (v @ J), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(metric, J @ J.T, rtol=1e-12, atol=1e-12)


@names
def test_declared_degree_holds(name, key):
    g, w = built(name, key)
    for r in (0.3, 2.5):
        check_degree_at(g, w, r)


def check_degree_at(g, w, r):
    scaled = g(jax.tree.map(lambda leaf: r * leaf, w))
    if g.degree is not None:
        np.testing.assert_allclose(scaled, r**g.degree * g(w), rtol=1e-13, atol=1e-14)
    else:
        degrees = jnp.log(jnp.abs(scaled / g(w))) / jnp.log(r)
        # The log difference has degree 0, of no use: its regularizer has none.
        assert jnp.ptp(degrees) > 1e-3 or jnp.max(jnp.abs(degrees)) < 1e-12, "homogeneous after all: declare the degree"


@names
def test_declared_elementwise_holds(name, key):
    g, w = built(name, key)
    if not g.elementwise:
        pytest.skip("coordinates share weights")
    J = jax.jacobian(g)(w)
    for leaf in jax.tree.leaves(J):
        np.testing.assert_array_equal(leaf, jnp.diag(jnp.diag(leaf)))


@names
def test_transformations(name, key):
    family = FAMILIES[name]
    g = family.build(N)
    batch = jax.vmap(lambda k: family.sample(k, N))(jax.random.split(key, 4))
    lanes = [jax.tree.map(lambda leaf, i=i: leaf[i], batch) for i in range(4)]
    loop = jnp.stack([g(w) for w in lanes])
    # Reordered sums (fused products) may round differently, elementwise maps by one rounding of exp or log.
    np.testing.assert_allclose(jax.vmap(g)(batch), loop, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(eqx.filter_jit(g)(lanes[0]), loop[0], rtol=1e-13, atol=1e-14)
    gradient = jax.grad(lambda w: jnp.sum(g(w) ** 2))(lanes[0])
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


@names
def test_gradient_is_finite_at_zero(name, key):
    if name == "log":
        pytest.skip("zero is outside the domain, and refused")
    g, w = built(name, key)
    zero = jax.tree.map(jnp.zeros_like, w)
    gradient = jax.grad(lambda w: jnp.sum(g(w)))(zero)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


@names
def test_compatible_is_corollary_3_12(name, key):
    family = FAMILIES[name]
    g, w = built(name, key)
    if family.compatible is None:
        with pytest.raises(ValueError, match=r"(Corollary 3.12|Theorem D.2)"):
            g.compatible(w)
        with pytest.raises(ValueError, match=r"(Corollary 3.12|Theorem D.2)"):
            Compatible(g).check(w)
    else:
        np.testing.assert_allclose(g.compatible(w), family.compatible(w), rtol=1e-13)
        np.testing.assert_allclose(Compatible(g, 0.7)(w), 0.7 * family.compatible(w), rtol=1e-13)


@names
def test_gradients_commute_where_the_registry_says_so(name, key):
    """`[X, Y] = DX Y - DY X = 0` for the fields grad g_i and grad h: Theorem 3.6's condition, densely."""
    family = FAMILIES[name]
    g, w = built(name, key)
    h = family.regularizer(g, N)
    h.check(w)
    flat, unravel = ravel_pytree(w)

    def fields_of(v):
        return jax.jacrev(lambda v: jnp.append(g(unravel(v)).ravel(), h(unravel(v))))(v)

    fields, hessians = jax.jit(lambda v: (fields_of(v), jax.jacfwd(fields_of)(v)))(flat)
    brackets = jnp.einsum("iab,jb->ija", hessians, fields) - jnp.einsum("jab,ib->ija", hessians, fields)
    # Products of numbers up to 1e3 that must cancel.
    assert bool(jnp.max(jnp.abs(brackets)) < 1e-10) == family.exists


@names
def test_bad_weights_are_refused(name, key):
    family = FAMILIES[name]
    g, _ = built(name, key)
    for weights, words in family.bad:
        with pytest.raises(ValueError, match=words):
            g.check(weights)


@names
def test_wrong_kinds_of_weights_are_refused(name, key):
    family = FAMILIES[name]
    g, w = built(name, key)
    with pytest.raises(ValueError, match="floating point, got dtype int"):
        g.check(jax.tree.map(lambda leaf: jnp.ones(leaf.shape, int), w))
    if family.factors == 1:
        with pytest.raises(ValueError, match="arrays, got tuple"):
            g.check((w,))
        with pytest.raises(ValueError, match="arrays, got NoneType"):
            g.check(None)
    if family.factors > 1:
        count = family.factors
        with pytest.raises(ValueError, match=f"a tuple of {count} arrays, got tuple of length {count + 1}"):
            g.check((*w, w[0]))
        with pytest.raises(ValueError, match=f"a tuple of {count} arrays, got dict"):
            g.check(dict(enumerate(w)))
        with pytest.raises(ValueError, match="of one dtype, got float32, float64"):
            g.check((w[0].astype(jnp.float32), *w[1:]))
        with pytest.raises(ValueError, match="arrays, got float"):
            g.check((1.0, *w[1:]))


@pytest.mark.parametrize("depth", [1, 0, -2])
def test_hadamard_refuses_depth(depth):
    with pytest.raises(ValueError, match=f"at least 2, got {depth}"):
        Hadamard(depth)


@pytest.mark.parametrize("k", [0, -1])
def test_power_difference_refuses_k(k):
    with pytest.raises(ValueError, match=f"at least 1, got {k}"):
        PowerDifference(k)


def test_quadratic_refuses_asymmetric_matrices():
    G = jnp.eye(3)[None].at[0, 0, 1].set(0.25)
    with pytest.raises(ValueError, match=r"must be symmetric, entries differ from their transposes by up to 0\.25"):
        Quadratic(G)
    with pytest.raises(ValueError, match=r"shape \(d, D, D\), got \(3, 3\)"):
        Quadratic(jnp.eye(3))
    with pytest.raises(ValueError, match=r"square in its last two axes, got shape \(2, 3\)"):
        Quadratic(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="G must be finite"):
        Quadratic(jnp.full((1, 2, 2), jnp.nan))


def test_custom_refuses_what_is_not_one_array():
    with pytest.raises(ValueError, match="must return one floating-point array"):
        Custom(lambda w: (w, w)).check(jnp.ones(3))
    with pytest.raises(ValueError, match="must return one floating-point array"):
        Custom(lambda w: w.astype(int)).check(jnp.ones(3))


def test_custom_refuses_a_degree_that_does_not_hold():
    """A wrong degree would give a plausible wrong trajectory: the flow follows the scale by it."""
    Custom(lambda w: w**3, homogeneity=3).check(jnp.ones(3))
    with pytest.raises(ValueError, match="homogeneity=2"):
        Custom(lambda w: w**3, homogeneity=2).check(jnp.ones(3))


def test_separable_of_powers_is_the_power_difference(key):
    w = FAMILIES["power2"].sample(key, N)
    same = Separable(lambda u: u**4, lambda v: v**4)
    np.testing.assert_allclose(same(w), PowerDifference(2)(w), rtol=1e-14)
    np.testing.assert_allclose(same.compatible(w), PowerDifference(2).compatible(w), rtol=1e-14)


def test_families_by_name_builds_each_and_a_new_family_needs_four_members(key):
    built = {name: build() for name, build in families_by_name().items()}
    powers = [built[name].degree for name in ("square-difference", "power-difference-2", "power-difference-3")]
    assert powers == [2, 4, 6]
    assert {"hadamard", "square", "log-difference", "exp-difference"} < set(built)

    class Cube(AbstractReparameterization):
        degree = property(lambda self: 3)
        elementwise = property(lambda self: True)

        def __call__(self, w):
            return w**3

        def check(self, w):
            pass

    g = Cube()
    assert g.notes() == ()
    assert g.quadratic_forms is None
    np.testing.assert_allclose(g.metric(jnp.full(2, 2.0)), 144 * jnp.eye(2))
    with pytest.raises(ValueError, match="names no regularizer for Cube"):
        g.admission()
    with pytest.raises(ValueError, match="Cube has no rule"):
        g.initial_weights(jnp.ones(2), jnp.ones(()))
