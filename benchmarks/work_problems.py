"""The problems of `work_precision.py`: what users integrate, small enough to be integrated hundreds of times."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import mirrorjax as mj
from mirrorjax.dynamics import AbstractFlow
from mirrorjax.experiments.theory.matrix_sensing import Size, make_data

Made = tuple[mj.Problem, Any]
TRANSIENT = jnp.array([0.02, 0.05, 0.1, 0.2, 0.5, 1.0])


class Setting(eqx.Module):
    """A problem in any dtype, and the times at which it is looked at: `settling` is how long after t_off it moves."""

    name: str = eqx.field(static=True)
    title: str = eqx.field(static=True)
    build: Callable[[Any], Made] = eqx.field(static=True)
    t_off: float
    settling: float
    t1: float
    flow: AbstractFlow = mj.PrimalFlow()

    @property
    def times(self) -> Array:
        """Six in the transient after the switch-off, and the end."""
        return jnp.append(self.t_off + self.settling * TRANSIENT, self.t1)

    def make(self, dtype: Any) -> Made:
        return self.build(dtype)


def relative_errors(x: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """`|x_t - truth_t| / |truth_t|`: at t1, and the largest before it."""
    axes = tuple(range(1, x.ndim))
    errors = np.sqrt(np.sum((x - truth) ** 2, axis=axes) / np.sum(truth**2, axis=axes))
    return {"error_final": float(errors[-1]), "error_transient": float(np.max(errors[:-1]))}


def sensing(n: int, r: int, alpha: float, t_off: float) -> Callable[[Any], Made]:
    """Section 1 of the experiments: X = U U^T from U = I, 3nr measurements."""

    def build(dtype: Any) -> Made:
        f = make_data(Size(n, r, heat=0), seed=2).objective
        f = jax.tree.map(lambda leaf: leaf.astype(dtype), f)
        return mj.Problem(mj.Gram(), mj.WeightDecay(), mj.SwitchOff(alpha, t_off), f), jnp.eye(n, dtype=dtype)

    return build


def regression(noise: float = 0.0) -> tuple[Array, Array]:
    """40 Gaussian measurements of 100 unknowns, five of them one."""
    first, second = jax.random.split(jax.random.key(0))
    Z = jax.random.normal(first, (40, 100), float)
    return Z, Z @ jnp.zeros(100).at[:5].set(1.0) + noise * jax.random.normal(second, (40,), float)


def sparse(dtype: Any) -> Made:
    """x = m w from (1, 0), weight decay 0.1 until t = 50."""
    Z, y = (array.astype(dtype) for array in regression())
    w0 = jnp.ones(100, dtype), jnp.zeros(100, dtype)
    return mj.Problem(mj.Hadamard(), mj.WeightDecay(), mj.SwitchOff(0.1, 50.0), mj.LeastSquares(Z, y)), w0


def logistic(dtype: Any) -> Made:
    """x = m w, 200 labels of 50 features of which five matter, not separable."""
    first, second = jax.random.split(jax.random.key(1))
    Z = jax.random.normal(first, (200, 50), float)
    logit = Z @ jnp.zeros(50).at[:5].set(2.0)
    y = jnp.where(jax.random.uniform(second, (200,), float) < jax.nn.sigmoid(logit), 1.0, -1.0)
    w0 = jnp.ones(50, dtype), jnp.zeros(50, dtype)
    f = mj.Logistic(Z.astype(dtype), y.astype(dtype))
    return mj.Problem(mj.Hadamard(), mj.WeightDecay(), mj.SwitchOff(0.02, 100.0), f), w0


def product(dtype: Any) -> Made:
    """X = K^T Q, 12 x 12 of rank 2, from small random factors, 80 measurements."""
    keys = jax.random.split(jax.random.key(2), 5)
    target = jax.random.normal(keys[0], (12, 2), float) @ jax.random.normal(keys[1], (2, 12), float)
    target = target / jnp.linalg.norm(target, "nuc")
    A = jax.random.normal(keys[2], (80, 12, 12), float)
    f = mj.MatrixSensing(A.astype(dtype), jnp.einsum("mij,ij->m", A, target).astype(dtype))
    w0 = tuple((0.5 * jax.random.normal(key, (12, 12), float)).astype(dtype) for key in keys[3:])
    return mj.Problem(mj.MatrixProduct(), mj.WeightDecay(), mj.SwitchOff(0.2, 25.0), f), w0


def power(dtype: Any) -> Made:
    """x = u^4 - v^4 from 0.9, its compatible h, 0.1 until t = 5."""
    Z, y = (array.astype(dtype) for array in regression())
    g, start = mj.PowerDifference(2), jnp.full(100, 0.9, dtype)
    return mj.Problem(g, mj.Compatible(g), mj.SwitchOff(0.1, 5.0), mj.LeastSquares(Z, y)), (start, start)


ALL = (
    Setting("sensing14", "Matrix sensing, n = 14, alpha 0.2", sensing(14, 2, 0.2, 62.5), 62.5, 200.0, 1250.0),
    Setting("sensing20", "Matrix sensing, n = 20, alpha 0.2", sensing(20, 2, 0.2, 62.5), 62.5, 200.0, 1250.0),
    Setting("sensing50", "Matrix sensing, n = 50, alpha 0.2", sensing(50, 5, 0.2, 62.5), 62.5, 200.0, 1250.0),
    Setting("sensing50-late", "Matrix sensing, n = 50, alpha 0.02", sensing(50, 5, 0.02, 625.0), 625.0, 200.0, 1250.0),
    Setting("sensing50-early", "Matrix sensing, n = 50, alpha 20", sensing(50, 5, 20.0, 0.625), 0.625, 200.0, 1250.0),
    Setting("hadamard", "Sparse regression, x = m w", sparse, 50.0, 50.0, 550.0),
    Setting("mirror", "The same, mirror flow", sparse, 50.0, 50.0, 550.0, mj.MirrorFlow()),
    Setting("logistic", "Logistic regression, x = m w", logistic, 100.0, 100.0, 1000.0),
    Setting("product", "Matrix product X = K^T Q", product, 25.0, 50.0, 500.0),
    Setting("power", "x = u^4 - v^4, compatible h", power, 5.0, 10.0, 100.0),
)
PROBLEMS = {setting.name: setting for setting in ALL}
