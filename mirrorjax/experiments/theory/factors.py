"""x = w_1 .. w_p of depth p = 1, 2, 3 on sparse regression: the models of the paper's Figs. 8 and 9."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from ...dynamics import AbstractFlow, Descent, PrimalFlow, ProximalDescent
from ...problem import (
    L1,
    AbstractRegularizer,
    AbstractReparameterization,
    Hadamard,
    Linear,
    Problem,
    SwitchOff,
    WeightDecay,
)
from ...problem.reparam import Weights
from ...runs.dataset import Dataset
from ...sweeps import sweep
from .planted import COORDINATES, PLANTED, sparse_regression

Values = Float[np.ndarray, "..."] | float  # numpy makes a number of one value

STRENGTHS = np.array([0.0, 0.01, 0.05, 0.1, 0.3, 1.0])
OFF, HORIZON = 50.0, 550.0
TIMES = np.unique(np.concatenate([np.arange(0, 20), np.arange(20, 100, 2), np.arange(100, 551, 10)])).astype(float)
STEP = 0.1  # well below 2 / curvature of every model here; the paper's is not printed


@dataclass(frozen=True)
class Model:
    """A parameterization of some depth with its regularizer; its weights start with one factor 0, the others 1."""

    name: str
    depth: int
    g: AbstractReparameterization
    h: AbstractRegularizer

    def start(self, size: int) -> Weights:
        factors = (jnp.zeros(size), *(jnp.ones(size) for _ in range(self.depth - 1)))
        return factors[0] if self.depth == 1 else factors

    @property
    def methods(self) -> dict[str, AbstractFlow]:
        """L1 has no gradient flow; proximal descent takes its differential inclusion as it is."""
        if self.depth == 1:
            return {"proximal descent": ProximalDescent(STEP)}
        return {"flow": PrimalFlow(), "descent": Descent(optax.sgd(1.0), STEP)}


MODELS = (
    Model("x = w, L1", 1, Linear(), L1()),
    Model("x = m w", 2, Hadamard(), WeightDecay()),
    Model("x = m w v", 3, Hadamard(3), WeightDecay()),
)


def solve(model: Model, flow: AbstractFlow, seeds: Int[np.ndarray, " seeds"]) -> Dataset:
    """All seeds and strengths; `weight_size` and `metric` are those of the planted coordinates."""
    target = sparse_regression(0).target  # the same for all seeds

    def lane(seed, alpha):
        problem = Problem(model.g, model.h, SwitchOff(alpha, OFF), sparse_regression(seed).objective)
        return problem, model.start(COORDINATES)

    def metrics(t, x, w):
        norm = jnp.linalg.norm(x)
        return {
            "parameters": x,
            "distance": jnp.linalg.norm(x - target),
            "ratio": jnp.where(norm > 0, jnp.sum(jnp.abs(x)) / jnp.where(norm > 0, norm, 1.0), jnp.nan),
            "weight_size": weight_size(w)[:PLANTED],
            "metric": metric(model.g, w)[:PLANTED],
        }

    grid = {"seed": seeds, "alpha": STRENGTHS}
    return sweep(lane, grid, t1=HORIZON, saveat=TIMES, metrics=metrics, flow=flow)


def weight_size(w: Weights) -> Float[Array, " d"]:
    """`s`, the root mean square of the factors of each coordinate."""
    factors = jax.tree.leaves(w)
    return jnp.linalg.norm(jnp.stack(factors), axis=0) / len(factors) ** 0.5


def metric(g: AbstractReparameterization, w: Weights) -> Float[Array, " d"]:
    """The diagonal of `J J^T` for an elementwise g; the off-diagonal is 0."""
    x, pull = jax.vjp(g, w)
    return sum((leaf**2 for leaf in jax.tree.leaves(pull(jnp.ones_like(x))[0])), jnp.zeros_like(x))


def least_time(size: Values, slope: Values, depth: int) -> Values:
    """`int_s^1 ds' / (s'^{p-1} |slope|)`: no flow of x = w_1 .. w_p takes weights of size s to size 1 any sooner.

    Without decay `s ds/dt = -x df/dx <= s^p |df/dx|`, by the arithmetic and geometric means. For p = 2 it grows like
    log 1/s, for p = 3 like 1/s: where depth 2 is late, depth 3 is stuck.

    **Arguments:** `size`: s, in (0, 1]; `slope`: a bound on |df/dx_i| on the way; `depth`: p.
    """
    far = -np.log(size) if depth == 2 else (size ** (2.0 - depth) - 1) / (depth - 2)
    return far / slope
