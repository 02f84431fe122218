"""x = w_1 .. w_p of depth p = 1, 2, 3 on sparse regression: the models of the paper's Figs. 8 and 9.

`forecast` predicts from the data alone which planted coordinates are lost; `needed_times` bounds the time that their
recovery takes, from the state at the switch-off.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from ...dynamics import AbstractFlow, Descent, PrimalFlow, ProximalDescent
from ...geometry import critical_strength, legendre, remaining_time
from ...problem import (
    L1,
    AbstractRegularizer,
    AbstractReparameterization,
    Hadamard,
    LeastSquares,
    Linear,
    Problem,
    SwitchOff,
    WeightDecay,
)
from ...problem.reparam import Weights
from ...runs.dataset import Dataset
from ...sweeps import sweep
from .planted import COORDINATES, PLANTED, sparse_regression

STRENGTHS = np.array([0.0, 0.01, 0.05, 0.1, 0.3, 1.0])
OFF, HORIZON = 50.0, 550.0
EQUAL = 2 * OFF  # as long without decay as with it, after the early switch-off
HALF = HORIZON / 2  # the paper's split: as many steps without decay as with it, up to the end
TIMES = np.unique([*range(20), *range(20, 100, 2), *range(100, 551, 10), HALF]).astype(float)
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
    """All seeds, strengths and both switch-off times; `metric` is that of the planted coordinates."""
    target = sparse_regression(0).target  # the same for all seeds

    def lane(seed, alpha, t_off):
        problem = Problem(model.g, model.h, SwitchOff(alpha, t_off), sparse_regression(seed).objective)
        return problem, model.start(COORDINATES)

    def metrics(t, x, w):
        norm = jnp.linalg.norm(x)
        return {
            "parameters": x,
            "distance": jnp.linalg.norm(x - target),
            "ratio": jnp.where(norm > 0, jnp.sum(jnp.abs(x)) / jnp.where(norm > 0, norm, 1.0), jnp.nan),
            "metric": metric(model.g, w)[:PLANTED],
        }

    grid = {"seed": seeds, "alpha": STRENGTHS, "t_off": np.array([OFF, HALF])}
    return sweep(lane, grid, t1=HORIZON, saveat=TIMES, metrics=metrics, flow=flow)


def metric(g: AbstractReparameterization, w: Weights) -> Float[Array, " d"]:
    """The diagonal of `J J^T` for an elementwise g; the off-diagonal is 0."""
    x, pull = jax.vjp(g, w)
    return sum((leaf**2 for leaf in jax.tree.leaves(pull(jnp.ones_like(x))[0])), jnp.zeros_like(x))


class Forecast(NamedTuple):
    """Predictions for lanes that are not integrated yet, for each planted coordinate (the last axis).

    `critical`: the strength beyond which decay takes the coordinate to 0 if the others are left out; `way`: the least
    time that it needs after the switch-off from grad R_a = 0 to 1, at the largest slope it can feel.
    """

    critical: Float[Array | np.ndarray, "*lanes planted"]
    way: Float[Array | np.ndarray, "*lanes planted"]

    def is_stuck(self, alpha: Float[np.ndarray, "*lanes"], left: float) -> Bool[np.ndarray, "*lanes"]:
        """True for a lane with a planted coordinate that dies at this strength and cannot come back in time."""
        return np.any((self.critical < np.asarray(alpha)[..., None]) & (self.way > left), axis=-1)


def forecast(model: Model, seeds: Int[np.ndarray, " seeds"]) -> Forecast:
    """The forecast of a model of depth 2 or more, from Z, y and the strength alone: lanes are (seed, strength)."""
    critical, way = zip(*(_forecast_of_seed(model, int(seed)) for seed in seeds), strict=True)
    return Forecast(np.stack(critical), np.stack(way))


def _forecast_of_seed(model: Model, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`critical` and `way` of all strengths. In numpy, and by the program of `needed_times`: grad R_a = 0 at x = 0."""
    objective = sparse_regression(seed).objective
    Z, y = np.asarray(objective.Z), np.asarray(objective.y)
    planted, nothing = Z[:, :PLANTED], np.zeros((len(STRENGTHS), PLANTED), Z.dtype)
    slope, curvature = planted.T @ y / len(y), np.sum(planted**2, axis=0) / len(y)
    critical = np.asarray(critical_strength(model.depth, slope / curvature, curvature))
    height = np.full(len(STRENGTHS), y @ y / (2 * len(y)), Z.dtype)
    return np.broadcast_to(critical, nothing.shape), needed_times(model, seed, nothing, height)


def needed_times(
    model: Model,
    seed: int,
    x: Float[np.ndarray, "strengths planted"],
    loss: Float[np.ndarray, " strengths"],
    t_off: float = OFF,
) -> Float[np.ndarray, "strengths planted"]:
    """The least time that each planted coordinate needs from x and f at the switch-off to 1, of depth 2 or more."""
    spent = -t_off * jnp.asarray(STRENGTHS)
    return np.asarray(_needed(model.name, jnp.asarray(seed), jnp.asarray(x), jnp.asarray(loss), spent))


@functools.partial(jax.jit, static_argnums=0)  # one program a model: flow and descent, and both splits, share it
def _needed(name: str, seed: Array, x: Array, loss: Array, a: Array) -> Float[Array, "strengths planted"]:
    model = next(each for each in MODELS if each.name == name)
    objective = sparse_regression(seed).objective
    R = legendre(model.g, model.h, model.start(PLANTED))

    def lane(x, loss, a):
        return _least_time(model, objective, R.dual(x, a).value, loss, a)

    return jax.vmap(lane)(x, loss, a)


def _least_time(model: Model, objective: LeastSquares, mu: Array, loss: Array, a: Array) -> Float[Array, " planted"]:
    """`remaining_time` from mu to x = 1 with `|df/dx_i| <= |Z e_i| sqrt(2 f / n)`: f does not rise without decay."""
    R = legendre(model.g, model.h, model.start(PLANTED))
    steepest = jnp.linalg.norm(objective.Z[:, :PLANTED], axis=0) * jnp.sqrt(2 * loss / len(objective.Z))
    return remaining_time(R, jnp.ones(PLANTED), mu, a, steepest).value
