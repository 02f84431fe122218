"""Every family of the registry: value, shape, derivative, structure it declares, transformations, bad arguments."""

from functools import cache

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


STEP = 1e-3
RATIOS = (0.3, 2.5)


@cache
def built(name):
    family = FAMILIES[name]
    return family.build(N), family.sample(jax.random.key(20250428), N)


@cache
def everything(name):
    """g at some weights, near them and at multiples, its derivatives there and at zero; by one program, as numpy."""
    family = FAMILIES[name]
    g, w = built(name)
    h = family.regularizer(g, N)
    flat, unravel = ravel_pytree(w)
    start = np.asarray(flat)
    steps = STEP * np.eye(flat.size)
    near = start + np.concatenate([k * steps for k in (1, -1, 2, -2)])
    others = np.abs(start + np.linspace(0.01, 0.1, 3)[:, None])
    lanes = np.concatenate([start[None], others])

    @jax.jit
    def program(flat, near, lanes):
        def value(v):
            return g(unravel(v)).ravel()

        def fields_of(v):
            return jax.jacrev(lambda v: jnp.append(g(unravel(v)).ravel(), h(unravel(v))))(v)

        w = unravel(flat)
        v = jnp.linspace(-1.0, 1.0, g(w).size).reshape(g(w).shape)
        return {
            "jacobian": jax.jacfwd(value)(flat),
            "near": jax.vmap(value)(near),
            "v": v.ravel(),
            "pull": ravel_pytree(g.pull(w, v))[0],
            "push": g.push(w, v).ravel(),
            "metric": g.metric(w),
            "value": value(flat),
            "scaled": [value(r * flat) for r in RATIOS],
            "batch": jax.vmap(value)(lanes),
            "lanes": [value(lanes[i]) for i in range(len(lanes))],
            "gradient": jax.grad(lambda flat: jnp.sum(value(flat) ** 2))(flat),
            "gradient at zero": jax.grad(lambda flat: jnp.sum(value(flat)))(jnp.zeros_like(flat)),
            "compatible": None if family.compatible is None else (g.compatible(w), Compatible(g, 0.7)(w)),
            "fields": fields_of(flat),
            "hessians": jax.jacfwd(fields_of)(flat),
        }

    return jax.tree.map(np.asarray, program(flat, near, lanes))


@names
def test_value_and_shape(name):
    reference = FAMILIES[name].reference
    if reference is None:
        pytest.skip("the registry holds no reference")
    g, w = built(name)
    g.check(w)
    x, expected = g(w), reference(jax.tree.map(np.asarray, w))
    assert x.shape == expected.shape
    # A handful of roundings of numbers of order one, some of which cancel.
    np.testing.assert_allclose(x, expected, rtol=1e-13, atol=1e-14)


@names
def test_jacobian_against_finite_differences(name):
    """Also the products with J that `pull`, `push` and `metric` give."""
    found = everything(name)
    J, v = found["jacobian"], found["v"]
    plus, minus, plus2, minus2 = np.split(found["near"], 4)
    # Fourth order: 4e-14 from the step, 1e-16/1e-3 from rounding, both times derivatives of at most 100 or so.
    np.testing.assert_allclose(J.T, (8 * (plus - minus) - plus2 + minus2) / (12 * STEP), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(found["pull"], v @ J, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found["push"], J @ (v @ J), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found["metric"], J @ J.T, rtol=1e-12, atol=1e-12)


@names
def test_declared_degree_holds(name):
    g, _ = built(name)
    value = everything(name)["value"]
    for r, scaled in zip(RATIOS, everything(name)["scaled"], strict=True):
        if g.degree is not None:
            np.testing.assert_allclose(scaled, r**g.degree * value, rtol=1e-13, atol=1e-14)
        else:
            degrees = np.log(np.abs(scaled / value)) / np.log(r)
            # The log difference has degree 0, of no use: its regularizer has none.
            homogeneous = np.ptp(degrees) <= 1e-3 and np.max(np.abs(degrees)) >= 1e-12
            assert not homogeneous, "homogeneous after all: declare the degree"


@names
def test_declared_elementwise_holds(name):
    g, _ = built(name)
    if not g.elementwise:
        pytest.skip("coordinates share weights")
    for leaf in np.split(everything(name)["jacobian"], max(FAMILIES[name].factors, 1), axis=1):
        np.testing.assert_array_equal(leaf, np.diag(np.diag(leaf)))


@names
def test_transformations(name):
    g, w = built(name)
    found = everything(name)
    # Reordered sums (fused products) may round differently, elementwise maps by one rounding of exp or log.
    np.testing.assert_allclose(found["batch"], np.stack(found["lanes"]), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(found["value"], np.asarray(g(w)).ravel(), rtol=1e-13, atol=1e-14)
    assert np.all(np.isfinite(found["gradient"]))


@names
def test_gradient_is_finite_at_zero(name):
    if name == "log":
        pytest.skip("zero is outside the domain, and refused")
    assert np.all(np.isfinite(everything(name)["gradient at zero"]))


@names
def test_compatible_is_corollary_3_12(name):
    family = FAMILIES[name]
    g, w = built(name)
    if family.compatible is None:
        with pytest.raises(ValueError, match=r"(Corollary 3.12|Theorem D.2)"):
            g.compatible(w)
        with pytest.raises(ValueError, match=r"(Corollary 3.12|Theorem D.2)"):
            Compatible(g).check(w)
    else:
        plain, scaled = everything(name)["compatible"]
        np.testing.assert_allclose(plain, family.compatible(w), rtol=1e-13)
        np.testing.assert_allclose(scaled, 0.7 * family.compatible(w), rtol=1e-13)


@names
def test_gradients_commute_where_the_registry_says_so(name):
    """`[X, Y] = DX Y - DY X = 0` for the fields grad g_i and grad h: Theorem 3.6's condition, densely."""
    family = FAMILIES[name]
    g, w = built(name)
    family.regularizer(g, N).check(w)
    fields, hessians = everything(name)["fields"], everything(name)["hessians"]
    brackets = np.einsum("iab,jb->ija", hessians, fields) - np.einsum("jab,ib->ija", hessians, fields)
    # Products of numbers up to 1e3 that must cancel.
    assert bool(np.max(np.abs(brackets)) < 1e-10) == family.exists


@names
def test_bad_weights_are_refused(name):
    family = FAMILIES[name]
    g, _ = built(name)
    for weights, words in family.bad:
        with pytest.raises(ValueError, match=words):
            g.check(weights)


@names
def test_wrong_kinds_of_weights_are_refused(name):
    family = FAMILIES[name]
    g, w = built(name)
    with pytest.raises(ValueError, match="floating point, got dtype int"):
        g.check(jax.tree.map(lambda leaf: np.ones(leaf.shape, int), w))
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
            g.check((jnp.asarray(np.asarray(w[0], np.float32)), *w[1:]))
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
    ours, theirs = jax.jit(lambda w: [(g(w), g.compatible(w)) for g in (same, PowerDifference(2))])(w)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-14)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-14)


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
    np.testing.assert_allclose(g.metric(jnp.full(2, 2.0)), 144 * np.eye(2))
    with pytest.raises(ValueError, match="names no regularizer for Cube"):
        g.admission()
    with pytest.raises(ValueError, match="Cube has no rule"):
        g.initial_weights(jnp.ones(2), jnp.ones(()))
