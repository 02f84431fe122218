"""One table a kind of part: every entry gets every generic test. A new family is one line in `FAMILIES`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from mirrorjax.problem import (
    L1,
    AbstractObjective,
    AbstractRegularizer,
    AbstractReparameterization,
    AbstractSchedule,
    Compatible,
    Constant,
    CosineDecay,
    Custom,
    CustomObjective,
    CustomRegularizer,
    CustomSchedule,
    ExpDifference,
    FromOptax,
    Gram,
    Hadamard,
    LeastSquares,
    Linear,
    LinearDecay,
    LogDifference,
    Logistic,
    MatrixProduct,
    MatrixSensing,
    Piecewise,
    PowerDifference,
    Quadratic,
    QuadraticForm,
    Separable,
    Square,
    Sum,
    SwitchOff,
    WeightDecay,
)

Weights = Any
Bad = tuple[Weights, str]


@dataclass(frozen=True)
class Family:
    """A reparameterization with what the generic tests need to know of it.

    `build(n)` is g at size n, `regularizer(g, n)` a regularizer that commutes with it where there is one,
    `sample(key, n)` weights in its domain, `exists` True if R_a exists for that pair, `compatible` the regularizer of
    Corollary 3.12 in numpy (`None` where the theory names none), `bad` weights at size 3 that are refused, each with
    words of the message, `factors` the number of arrays in w (0 for any pytree), `reference` g in numpy, as a function
    of the weights at size 3 (`None`: only what g states about itself is tested).
    """

    build: Callable[[int], AbstractReparameterization]
    sample: Callable[[Array, int], Weights]
    regularizer: Callable[[AbstractReparameterization, int], AbstractRegularizer]
    exists: bool
    compatible: Callable[[Weights], float] | None = None
    bad: tuple[Bad, ...] = ()
    factors: int = 2
    reference: Callable[[Weights], np.ndarray] | None = None


def uniform(key: Array, *shapes: tuple[int, ...]) -> Weights:
    """One array a shape, entries in [0.5, 1.2]; a tuple where there are several."""
    keys = jax.random.split(key, len(shapes))
    arrays = tuple(jax.random.uniform(k, shape, minval=0.5, maxval=1.2) for k, shape in zip(keys, shapes, strict=True))
    return arrays[0] if len(shapes) == 1 else arrays


def lone(key: Array, n: int) -> Array:
    return uniform(key, (n,))


def pair(key: Array, n: int) -> tuple[Array, Array]:
    return uniform(key, (n,), (n,))


def named(key: Array, n: int) -> dict[str, Array]:
    return dict(zip(("m", "w"), pair(key, n), strict=True))


def matrix_pair(key: Array, n: int, transpose: bool) -> tuple[Array, Array]:
    first = (2, n) if transpose else (n, 2)
    one, other = jax.random.split(key)
    return jax.random.normal(one, first), jax.random.normal(other, (2, n + 1))


def commuting(n: int) -> np.ndarray:
    """n + 1 symmetric matrices (n, n) with common eigenvectors: the last is positive semidefinite."""
    rng = np.random.default_rng(n)
    vectors = np.linalg.qr(rng.normal(size=(n, n)))[0]
    values = np.concatenate([rng.normal(size=(n, n)), rng.uniform(0.2, 1.0, (1, n))])
    matrices = np.einsum("ij,kj,lj->kil", vectors, values, vectors)
    return (matrices + matrices.transpose(0, 2, 1)) / 2


def decay(g: AbstractReparameterization, n: int) -> AbstractRegularizer:
    return WeightDecay(0.7)


def corollary(g: AbstractReparameterization, n: int) -> AbstractRegularizer:
    return Compatible(g, 0.7)


def squares(w: Weights) -> float:
    return sum(float(np.sum(np.asarray(leaf) ** 2)) for leaf in jax.tree.leaves(w))


def of_each(plus: Callable, minus: Callable) -> Callable[[Weights], float]:
    return lambda w: float(np.sum(plus(np.asarray(w[0]))) + np.sum(minus(np.asarray(w[1]))))


def power(k: int) -> Callable[[Weights], float]:
    return of_each(lambda u: u ** (2 * k), lambda v: v ** (2 * k))


def powers(k: int) -> Callable[[Weights], np.ndarray]:
    return lambda w: w[0] ** (2 * k) - w[1] ** (2 * k)


def cube(u: Array) -> Array:
    return u + u**3


def ones(*shape: int) -> Array:
    return jnp.ones(shape)


def product(w: dict[str, Array]) -> Array:
    return w["m"] * w["w"]


UNEQUAL: tuple[Bad, ...] = (((ones(3), ones(4)), r"shapes must agree, got \(3,\), \(4,\)"),)
NONPOSITIVE: Bad = ((ones(3), jnp.array([1.0, -0.5, 1.0])), "needs v > 0, its smallest entry is -0.5")
UNALIGNED: Bad = ((ones(3, 2), ones(4, 2)), r"got \(3, 2\) and \(4, 2\)")
FLAT: Bad = ((ones(3), ones(3)), r"got \(3,\) and \(3,\)")

FAMILIES: dict[str, Family] = {
    "linear": Family(lambda n: Linear(), lone, decay, exists=False, factors=1, reference=lambda w: w),
    "hadamard2": Family(lambda n: Hadamard(), pair, decay, True, squares, UNEQUAL, reference=lambda w: w[0] * w[1]),
    "hadamard3": Family(
        lambda n: Hadamard(3),
        lambda k, n: uniform(k, *3 * [(n,)]),
        decay,
        exists=False,
        factors=3,
        reference=lambda w: w[0] * w[1] * w[2],
    ),
    "square": Family(lambda n: Square(), lone, decay, True, squares, factors=1, reference=lambda w: w**2),
    "power1": Family(lambda n: PowerDifference(1), pair, decay, True, power(1), UNEQUAL, reference=powers(1)),
    "power2": Family(
        lambda n: PowerDifference(2),
        pair,
        corollary,
        True,
        power(2),
        UNEQUAL,
        reference=powers(2),
    ),
    "power3": Family(
        lambda n: PowerDifference(3),
        pair,
        corollary,
        True,
        power(3),
        UNEQUAL,
        reference=powers(3),
    ),
    "log": Family(
        lambda n: LogDifference(),
        pair,
        corollary,
        exists=True,
        compatible=of_each(np.log, np.log),
        bad=(*UNEQUAL, NONPOSITIVE),
        reference=lambda w: np.log(w[0] / w[1]),
    ),
    "exp": Family(
        lambda n: ExpDifference(),
        pair,
        corollary,
        exists=True,
        compatible=of_each(np.exp, np.exp),
        bad=UNEQUAL,
        reference=lambda w: np.exp(w[0]) - np.exp(w[1]),
    ),
    "separable": Family(
        lambda n: Separable(jnp.sinh, cube),
        pair,
        corollary,
        exists=True,
        compatible=of_each(np.sinh, lambda v: v + v**3),
        bad=UNEQUAL,
        reference=lambda w: np.sinh(w[0]) - w[1] - w[1] ** 3,
    ),
    "quadratic": Family(
        lambda n: Quadratic(commuting(n)[:n]),
        lone,
        lambda g, n: QuadraticForm(commuting(n)[n]),
        exists=True,
        bad=((ones(4), r"takes w of shape \(3,\), got \(4,\)"), (jnp.ones(3, jnp.float32), "float32")),
        factors=1,
        reference=lambda w: np.einsum("i,dij,j->d", w, commuting(3)[:3], w) / 2,
    ),
    "gram": Family(
        lambda n: Gram(),
        lambda k, n: jax.random.normal(k, (n, 2)),
        decay,
        exists=False,
        compatible=squares,
        bad=((ones(3), r"takes a matrix U \(n, r\), got shape \(3,\)"),),
        factors=1,
        reference=lambda w: np.einsum("ir,jr->ij", w, w),
    ),
    "attention": Family(
        lambda n: MatrixProduct(),
        partial(matrix_pair, transpose=True),
        decay,
        exists=False,
        compatible=squares,
        bad=(UNALIGNED, FLAT),
        reference=lambda w: np.einsum("ri,rj->ij", *w),
    ),
    "lora": Family(
        lambda n: MatrixProduct(transpose=False),
        partial(matrix_pair, transpose=False),
        decay,
        exists=False,
        compatible=squares,
        bad=(((ones(3, 2), ones(3, 2)), r"got \(3, 2\) and \(3, 2\)"), FLAT),
        reference=lambda w: np.einsum("ir,rj->ij", *w),
    ),
    "custom": Family(
        lambda n: Custom(product, homogeneity=2),
        named,
        decay,
        exists=True,
        bad=(({}, "without leaves"),),
        factors=0,
        reference=lambda w: w["m"] * w["w"],
    ),
}


def with_legendre() -> list[str]:
    """The names of the families for which R_a exists."""
    return [name for name, family in FAMILIES.items() if family.exists]


# Regularizers by name, for the weights of `pair` (`QuadraticForm`: of `lone`) at size n.
REGULARIZERS: dict[str, tuple[Callable[[int], AbstractRegularizer], Callable[[Array, int], Weights]]] = {
    "weight_decay": (lambda n: WeightDecay(0.3), pair),
    "l1": (lambda n: L1(0.3), pair),
    "compatible_hadamard": (lambda n: Compatible(Hadamard(), 0.3), pair),
    "compatible_power2": (lambda n: Compatible(PowerDifference(2), 0.3), pair),
    "compatible_log": (lambda n: Compatible(LogDifference(), 0.3), pair),
    "quadratic_form": (lambda n: QuadraticForm(commuting(n)[n]), lone),
    "custom": (lambda n: CustomRegularizer(lambda w: jnp.sum(w[0] ** 2 * w[1] ** 2), homogeneity=4), pair),
}


@dataclass(frozen=True)
class Schedule:
    """`build(alpha)` is the schedule at strength alpha, `strength` alpha(t)/alpha, `t_kinks` its breakpoints."""

    build: Callable[..., AbstractSchedule]
    strength: Callable[[float], float]
    t_kinks: tuple[float, ...] = ()


def cosine(t: float) -> float:
    return (1 + np.cos(np.pi * t / 1.7)) / 2 if t < 1.7 else 0.0


def steps(t: float) -> float:
    return (2.0, 0.0, 0.5, 1.0)[int(np.searchsorted((0.4, 1.0, 1.9), t, side="right"))]


def optax_cosine(alpha: float) -> FromOptax:
    return FromOptax(optax.cosine_decay_schedule(alpha, decay_steps=17), 0.1, boundaries=[17])


def optax_exponential(alpha: float) -> FromOptax:
    return FromOptax(optax.exponential_decay(alpha, transition_steps=10, decay_rate=0.5), 0.1)


def optax_joined(alpha: float) -> FromOptax:
    parts = [optax.linear_schedule(0.0, alpha, 5), optax.constant_schedule(alpha), optax.constant_schedule(0.0)]
    return FromOptax(optax.join_schedules(parts, [5, 12]), 0.1, boundaries=[12, 5])


class Ramp(eqx.Module):
    """`alpha t / 1.7`, until t = 1.7."""

    alpha: Array

    def __call__(self, t):
        return jnp.where(t < 1.7, self.alpha * t / 1.7, 0.0)


SCHEDULES: dict[str, Schedule] = {
    "constant": Schedule(Constant, lambda t: 1.0),
    "switch_off": Schedule(lambda alpha: SwitchOff(alpha, 1.7), lambda t: float(t < 1.7), (1.7,)),
    "never_off": Schedule(lambda alpha: SwitchOff(alpha, jnp.inf), lambda t: 1.0),
    "off_at_once": Schedule(lambda alpha: SwitchOff(alpha, 0.0), lambda t: 0.0),
    "linear": Schedule(lambda alpha: LinearDecay(alpha, 1.7), lambda t: max(1 - t / 1.7, 0.0), (1.7,)),
    "linear_never": Schedule(lambda alpha: LinearDecay(alpha, jnp.inf), lambda t: 1.0),
    "linear_at_once": Schedule(lambda alpha: LinearDecay(alpha, 0.0), lambda t: 0.0),
    "cosine": Schedule(lambda alpha: CosineDecay(alpha, 1.7), cosine, (1.7,)),
    "cosine_never": Schedule(lambda alpha: CosineDecay(alpha, jnp.inf), lambda t: 1.0),
    "cosine_at_once": Schedule(lambda alpha: CosineDecay(alpha, 0.0), lambda t: 0.0),
    "piecewise": Schedule(
        lambda alpha: Piecewise([0.4, 1.0, 1.9], alpha * jnp.array([2.0, 0.0, 0.5, 1.0])), steps, (0.4, 1.0, 1.9)
    ),
    "sum": Schedule(
        lambda alpha: Sum(SwitchOff(alpha, 1.7), LinearDecay(0.5 * alpha, 1.0)),
        lambda t: float(t < 1.7) + 0.5 * max(1 - t, 0.0),
        (1.0, 1.7),
    ),
    "custom": Schedule(
        lambda alpha: CustomSchedule(Ramp(jnp.asarray(alpha)), [1.7]), lambda t: t / 1.7 * float(t < 1.7), (1.7,)
    ),
    "optax_cosine": Schedule(optax_cosine, cosine, (1.7,)),
    "optax_exponential": Schedule(optax_exponential, lambda t: 0.5 ** float(t)),
    "optax_joined": Schedule(optax_joined, lambda t: min(t / 0.5, 1.0) * float(t < 1.2), (0.5, 1.2)),
}


def design(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n + d)
    return rng.normal(size=(n, d)), rng.normal(size=n)


def sensing(m: int, n1: int, n2: int, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(m + n1)
    A = rng.normal(size=(m, n1, n2))
    return ((A + A.transpose(0, 2, 1)) / 2 if symmetric else A), rng.normal(size=m)


def least_squares(x: Array, Z: np.ndarray, y: np.ndarray) -> float:
    return float(np.sum((np.tensordot(Z, x, x.ndim) - y) ** 2) / (2 * y.size))


def logistic(x: Array, Z: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(np.log1p(np.exp(-y * (Z @ x)))))


@dataclass(frozen=True)
class Objective:
    """An objective, the data it is built from, the same function in numpy (of x and the data), and the shape of x."""

    build: Callable[..., AbstractObjective]
    data: tuple[np.ndarray, ...]
    reference: Callable[..., float]
    shape: tuple[int, ...]


OBJECTIVES: dict[str, Objective] = {
    "least_squares": Objective(LeastSquares, design(7, 4), least_squares, (4,)),
    "logistic": Objective(
        lambda Z, y: Logistic(Z, np.sign(y)), (design(7, 4)[0], np.sign(design(7, 4)[1])), logistic, (4,)
    ),
    "sensing_symmetric": Objective(MatrixSensing, sensing(6, 4, 4, True), least_squares, (4, 4)),
    "sensing_general": Objective(MatrixSensing, sensing(6, 4, 4, False), least_squares, (4, 4)),
    "sensing_rectangular": Objective(MatrixSensing, sensing(6, 3, 5, False), least_squares, (3, 5)),
    "custom": Objective(
        lambda c: CustomObjective(lambda x: jnp.sum(jnp.cosh(x - c))),
        (np.linspace(0, 1, 4),),
        lambda x, c: float(np.sum(np.cosh(x - c))),
        (4,),
    ),
}


def objective_for(g: AbstractReparameterization, target: Weights) -> AbstractObjective:
    """Underdetermined linear measurements of g(target), which some weights in the domain therefore fit."""
    x = np.asarray(g(target))
    Z = np.random.default_rng(x.size).normal(size=(max(x.size // 2, 2), *x.shape))
    y = np.tensordot(Z, x, x.ndim)
    return LeastSquares(Z, y) if x.ndim == 1 else MatrixSensing(Z, y)
