"""PILoT from end to end on sparse regression: what it converges to is what R_a says, and the bias moves L2 -> L1."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array
from training import train

import mirrorjax as mj
from mirrorjax import nn, optim

BALANCE, T_OFF, T_END, STEPS = 1.0, 10.0, 200.0, 8000
N, D, SPARSE = 20, 50, 3
WIDTHS = (0.02, 0.5, 0.05, 0.005)  # the first for the limit, the others from wide to narrow


@pytest.fixture(scope="module")
def regression() -> tuple[mj.LeastSquares, Array]:
    rng = np.random.default_rng(5)
    truth = np.zeros(D)
    truth[:SPARSE] = [1.0, -1.5, 0.8]
    Z = rng.normal(size=(N, D)) / N**0.5
    return mj.LeastSquares(jnp.asarray(Z), jnp.asarray(Z @ truth)), jnp.asarray(truth)


@pytest.fixture(scope="module")
def found(regression) -> Array:
    """The trained tensor for each of the widths, as lanes of one program."""
    return jax.jit(jax.vmap(lambda width: trained(regression[0], width)))(jnp.asarray(WIDTHS))


def trained(f: mj.LeastSquares, width: Array) -> Array:
    start = {"kernel": jnp.zeros(D)}
    split, weights = nn.reparameterize(start, {"kernel": nn.Factored(mj.Hadamard(), BALANCE)})
    eta = T_END / STEPS
    optimizer = optim.pilot(
        optax.sgd(eta), balance=BALANCE, width=width, t_off=T_OFF, step_size=eta, mask=split.factored
    )
    end, _ = train(optimizer, lambda w: 2 * N * f(split.merge(w)["kernel"]), weights, STEPS)
    return split.merge(end)["kernel"]


def test_it_converges_to_the_limit_that_the_width_selects(regression, found):
    f, _ = regression
    width = WIDTHS[0]
    a = 0.0 - optim.pilot_schedule(BALANCE, width, T_OFF).integral(jnp.asarray(T_OFF))
    limit = mj.predict_limit(mj.legendre(mj.Hadamard(), mj.WeightDecay(), (jnp.ones(D), jnp.zeros(D))), f, a)
    # First order in the step, 1/40, with a constant below one; the truth is ten times as far from the limit.
    np.testing.assert_allclose(found[0], limit.x, atol=0.01)


def test_a_narrower_width_is_sparser_and_nearer_to_the_truth(regression, found):
    _, truth = regression
    found = found[1:]
    shares = [float(nn.sparsity({"kernel": x}, 0.05)) for x in found]
    errors = [float(jnp.max(jnp.abs(x - truth))) for x in found]
    assert shares == sorted(shares)
    assert shares[-1] > 0.8 > 0.5 > shares[0]
    assert errors == sorted(errors, reverse=True)
    pruned = nn.prune({"kernel": found[-1]}, 1 - SPARSE / D)["kernel"]
    np.testing.assert_array_equal(pruned != 0, truth != 0)
