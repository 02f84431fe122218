"""A small sweep that the tests of this folder share."""

import jax
import jax.numpy as jnp
import numpy as np

import mirrorjax as mj

Z = jax.random.normal(jax.random.key(3), (6, 10))
OBJECTIVE = mj.LeastSquares(Z, Z @ jnp.zeros(10).at[:2].set(1.0))
ALPHAS, T_OFFS = np.array([0.05, 0.5, 5.0]), np.array([1.0, 4.0])


def lane(alpha, t_off):
    start = (jnp.ones(10), jnp.zeros(10))
    return mj.Problem(mj.Hadamard(), mj.WeightDecay(), mj.SwitchOff(alpha, t_off), OBJECTIVE), start


def norm(t, x, w):
    return {"norm": jnp.sum(jnp.abs(x))}
