"""Coordinates: the same velocity as the weights have, at any scale, with derivatives also where weights are zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from registry import FAMILIES, objective_for

from mirrorjax.dynamics.coordinates import LogScale, Plain, choose_coordinates
from mirrorjax.problem import Compatible, Gram, Hadamard, PowerDifference, Problem, WeightDecay

N = 3


def started(name, key):
    family = FAMILIES[name]
    g = family.build(N)
    w = family.sample(key, N)
    problem = Problem(g, family.regularizer(g, N), 0.3, objective_for(g, family.sample(jax.random.key(7), N)))
    return problem, w, choose_coordinates(problem, w)


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_move_as_they_should(name, key):
    """The chain rule: d/dt of the weights read from (s, V) is `-grad_w [f(g(w)) + alpha h(w)]`."""
    problem, w, y = started(name, key)
    homogeneous = all((part.degree or 0) >= 2 for part in (problem.g, problem.h))
    assert isinstance(y, LogScale if homogeneous else Plain)
    np.testing.assert_allclose(ravel_pytree(y.weights())[0], ravel_pytree(w)[0], rtol=1e-14)
    np.testing.assert_allclose(y.parameters(problem), problem.g(w), rtol=1e-12, atol=1e-13)
    slope = problem.objective.gradient(problem.g(w))
    velocity = y.velocity(problem, slope, jnp.array(0.3))
    moved = jax.jvp(lambda y: y.weights(), (y,), (velocity,))[1]
    expected = jax.grad(lambda w: -problem.objective(problem.g(w)) - 0.3 * problem.h(w))(w)
    # A few dozen roundings of numbers up to 1e3.
    np.testing.assert_allclose(ravel_pytree(moved)[0], ravel_pytree(expected)[0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("linear", "log", "exp", "separable")])
def test_the_direction_keeps_its_length(name, key):
    problem, w, y = started(name, key)
    velocity = y.velocity(problem, problem.objective.gradient(problem.g(w)), jnp.array(0.3))
    assert isinstance(y, LogScale)
    assert isinstance(velocity, LogScale)
    V, dV = ravel_pytree(y.direction)[0], ravel_pytree(velocity.direction)[0]
    if y.log_scale.ndim:
        products = sum(
            v * d for v, d in zip(jax.tree.leaves(y.direction), jax.tree.leaves(velocity.direction), strict=True)
        )
        np.testing.assert_allclose(products, 0.0, atol=1e-11)
    np.testing.assert_allclose(jnp.sum(V * dV), 0.0, atol=1e-11)
    np.testing.assert_allclose(jnp.sum(V**2), V.size, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("size", [1e-30, 1e-10, 1.0, 1e10])
def test_any_size_of_weights_starts_at_order_one(size, dtype):
    """Also where squares of the weights underflow."""
    w = (jnp.array([size, 2 * size], dtype), jnp.array([0.5 * size, size], dtype))
    problem = FAMILIES["hadamard2"]
    y = choose_coordinates(
        Problem(Hadamard(), WeightDecay(), 0.1, objective_for(Hadamard(), problem.sample(jax.random.key(0), 2))), w
    )
    assert isinstance(y, LogScale)
    np.testing.assert_allclose(y.direction[0] ** 2 + y.direction[1] ** 2, 2.0, rtol=1e-6)
    np.testing.assert_allclose(y.weights()[0], w[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("g", "h", "w"),
    [
        (Hadamard(), WeightDecay(), (jnp.array([1.0, 0.0]), jnp.array([0.5, 0.0]))),
        (PowerDifference(2), Compatible(PowerDifference(2)), (jnp.zeros(2), jnp.zeros(2))),
        (Gram(), WeightDecay(), jnp.zeros((2, 2))),
    ],
    ids=["hadamard", "power2", "gram"],
)
def test_zero_weights_stay_and_have_derivatives(g, h, w):
    problem = Problem(g, h, 0.1, objective_for(g, jax.tree.map(jnp.ones_like, w)))

    def move(w):
        y = choose_coordinates(problem, w)
        velocity = y.velocity(problem, problem.objective.gradient(y.parameters(problem)), jnp.array(0.1))
        return jax.jvp(lambda y: y.weights(), (y,), (velocity,))[1]

    expected = jax.jacobian(jax.grad(lambda w: -problem.objective(g(w)) - 0.1 * h(w)))(w)
    actual = jax.jacobian(move)(w)
    for leaf, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, other, atol=1e-12)
