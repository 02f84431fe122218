"""Reverse mode through the kept steps of explicit solves, against forward mode through all that a solve computes."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mirrorjax as mj
from mirrorjax.dynamics import blocks, stored

Z = np.random.default_rng(3).normal(size=(3, 5))
# The flow of x = w is the cheapest to compile; what is tested is how its steps are taken back.
W0 = jnp.linspace(-0.4, 0.6, 5)
INPUTS = {
    "alpha": jnp.array([0.3, 0.1, 0.2]),
    "times": jnp.array([0.7, 1.1]),
    "saveat": jnp.array([0.2, 0.5, 0.7, 1.9]),
    "t1": jnp.array(2.0),
    "scale": jnp.array(1.5),
}


def loss(p, adjoint=None, saves=True, rtol=1e-8, max_steps=400):
    """A number made of what is saved on the way, of the end, and of a number that the metrics close over."""
    problem = mj.Problem(
        mj.Linear(), mj.WeightDecay(), mj.Piecewise(p["times"], p["alpha"]), mj.LeastSquares(Z, Z[:, 0])
    )

    def metrics(t, x, w):
        return {"sum": p["scale"] * jnp.sum(jnp.sin(x)), "t": t**2}

    how = {"saveat": p["saveat"], "metrics": metrics} if saves else {}
    sol = mj.solve(problem, W0, t1=p["t1"], rtol=rtol, max_steps=max_steps, adjoint=adjoint, throw=False, **how)
    kept = jnp.sum(sol.metrics["sum"] * sol.metrics["t"]) + sol.loss @ jnp.arange(4.0) if saves else 0.0
    return kept + jnp.sum(jnp.cos(sol.x[-1]))


@functools.cache
def forward(saves):
    """The gradient by forward mode, which needs no state of a step again."""
    return jax.jit(jax.jacfwd(lambda p: loss(p, diffrax.ForwardMode(), saves)))(INPUTS)


def assert_same(ours, expected):
    for key, slope in expected.items():
        # The same steps differentiated both ways; another loop over the stages rounds differently.
        np.testing.assert_allclose(ours[key], slope, rtol=1e-8, atol=1e-10, err_msg=key)


# All states stored; three of them, then every nineteenth or so, which steps of about fifty in all pass often.
@pytest.mark.parametrize("most", [1024, 3])
def test_reverse_mode_is_forward_mode(monkeypatch, most):
    """In strengths, breakpoints, save times, of which one is a breakpoint, the end, and numbers of the metrics."""
    monkeypatch.setattr(stored, "MOST_STORED", most)
    # Other numbers of steps, or JAX would take the program of the other case.
    assert_same(jax.jit(jax.grad(functools.partial(loss, max_steps=300 + most)))(INPUTS), forward(True))


def test_lanes_with_states_taken_again(monkeypatch):
    """Lanes that take other numbers of steps, two in a block, of whose states few are stored."""
    monkeypatch.setattr(stored, "MOST_STORED", 3)
    monkeypatch.setattr(blocks, "CACHED", 1)
    monkeypatch.setattr(blocks, "SMALLEST", 2)
    ends = jnp.array([2.0, 0.4, 9.0])

    def lanes(max_steps):
        gradient = jax.grad(functools.partial(loss, saves=False, max_steps=max_steps))
        return jax.jit(jax.vmap(lambda t1: gradient({**INPUTS, "t1": t1})))(ends)

    few = lanes(400)
    assert_same(jax.tree.map(lambda leaf: leaf[0], few), forward(False))
    monkeypatch.undo()
    assert_same(few, lanes(401))


def test_memory_grows_as_the_root_of_the_steps():
    """A long solve of a large state has room for two roots of its steps, a short one of a small state for all."""
    large, small = jnp.zeros(10**6), jnp.zeros(40)
    places = stored.Places(16**4, large)
    assert (places.dense, places.count, places.stride) == (0, 256, 256)
    places = stored.Places(1000, small)
    assert (places.dense, places.count) == (1000, 1000)
    for most in (1, 2, 3, 1025, 4096, 100_000):
        places = stored.Places(most, small)
        last, held = jax.vmap(places.of)(jnp.arange(most))
        assert int(jnp.max(jnp.where(held, last, 0))) == places.count - 1
        assert int(jnp.sum(held)) == places.count
