"""The tasks and schedules of `schedules.py`: noisy recovery, hand-made schedules of one total, a learned schedule."""

import abc
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

from ...dynamics import solve
from ...geometry import legendre, predict_limit
from ...problem import (
    AbstractMeasured,
    AbstractReparameterization,
    AbstractSchedule,
    Constant,
    CosineDecay,
    FromOptax,
    Gram,
    Hadamard,
    LeastSquares,
    LinearDecay,
    MatrixSensing,
    Piecewise,
    Problem,
    Sum,
    SwitchOff,
    WeightDecay,
)
from ...results import RESULTS

RTOL = 1e-8  # of the solver: finite differences of what it gives must be worth comparing with
SPLIT = (1, 5, 25)  # data for training, validation and test, in units of the first


class Sample(eqx.Module):
    """One draw of a task: the objective trained on, two that are not, and where the weights start."""

    train: AbstractMeasured
    validation: AbstractMeasured
    test: AbstractMeasured
    w0: PyTree[Float[Array, "..."]]


class Errors(eqx.Module):
    """Mean squared prediction errors of one end point on data not trained on; and whether it was reached."""

    validation: Float[Array, "..."]
    test: Float[Array, "..."]
    ok: Bool[Array, "..."]


def errors(sample: Sample, x: Float[Array, "..."], ok: Bool[Array, ""]) -> Errors:
    """Both errors at x, NaN where the flow failed; objectives are half the mean square."""
    validation, test = (jnp.where(ok, 2 * f(x), jnp.nan) for f in (sample.validation, sample.test))
    return Errors(validation, test, ok)


class AbstractTask(eqx.Module):
    """Noisy linear measurements of a planted x*, and the flow that is to recover it by t1.

    `noise` is the standard deviation of a measurement's error, `totals` are those that hand-made schedules may spend.
    """

    g: eqx.AbstractVar[AbstractReparameterization]
    noise: eqx.AbstractVar[float]
    t1: eqx.AbstractVar[float]
    totals: eqx.AbstractVar[tuple[float, ...]]

    @abc.abstractmethod
    def draw(self, seed: ArrayLike) -> Sample:
        """Data and start for one seed."""

    def problem(self, schedule: AbstractSchedule, sample: Sample) -> Problem:
        return Problem(self.g, WeightDecay(), schedule, sample.train)

    def end(self, schedule: AbstractSchedule, sample: Sample) -> Errors:
        """Errors where the flow is at t1; differentiable in the schedule."""
        options: Any = {"t1": self.t1, "rtol": RTOL, "max_steps": 4096, "throw": False}
        solution = solve(self.problem(schedule, sample), sample.w0, **options)
        return errors(sample, solution.last.x, solution.result == RESULTS.successful)


class SparseRegression(AbstractTask):
    """x = m w from (1, 0); n Gaussian measurements of d numbers, five of them +1 or -1."""

    n: int = eqx.field(static=True)  # static: sizes
    d: int = eqx.field(static=True)
    noise: float = 0.4
    t1: float = 30.0
    totals: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
    g: AbstractReparameterization = Hadamard()

    def draw(self, seed: ArrayLike) -> Sample:
        signs, of_Z, of_noise = jax.random.split(jax.random.key(seed), 3)
        target = jnp.zeros(self.d).at[:5].set(jax.random.rademacher(signs, (5,), float))
        Z = jax.random.normal(of_Z, (sum(SPLIT) * self.n, self.d))
        y = Z @ target + self.noise * jax.random.normal(of_noise, Z.shape[:1])
        w0 = (jnp.ones(self.d), jnp.zeros(self.d))
        train, validation, test = map(LeastSquares, _split(Z, self.n), _split(y, self.n))
        return Sample(train, validation, test, w0)


class Sensing(AbstractTask):
    """X = U U^T from U = I; m symmetric Gaussian measurements of an n x n matrix of rank 1 and nuclear norm 1."""

    n: int = eqx.field(static=True)  # static: sizes
    m: int = eqx.field(static=True)
    noise: float = 0.3
    t1: float = 30.0
    totals: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 6.0, 8.0)
    g: AbstractReparameterization = Gram()

    def draw(self, seed: ArrayLike) -> Sample:
        factor, of_A, of_noise = jax.random.split(jax.random.key(seed), 3)
        u = jax.random.normal(factor, (self.n,))
        target = jnp.outer(u, u) / jnp.sum(u**2)
        B = jax.random.normal(of_A, (sum(SPLIT) * self.m, self.n, self.n))
        A = (B + jnp.swapaxes(B, 1, 2)) / 2
        y = jnp.einsum("mij,ij->m", A, target) + self.noise * jax.random.normal(of_noise, A.shape[:1])
        parts = zip(_split(A, self.m), _split(y, self.m), strict=True)
        train, validation, test = (MatrixSensing(*part, symmetric=True) for part in parts)
        return Sample(train, validation, test, jnp.eye(self.n))


def _split(rows: Float[Array, "n ..."], n: int) -> list[Float[Array, "m ..."]]:
    """The rows for training, validation and test."""
    return jnp.split(rows, n * np.cumsum(SPLIT)[:-1])


def limit(task: AbstractTask, log_total: Float[Array, ""], sample: Sample) -> Errors:
    """Errors of the point the flow tends to for t -> infinity once it has spent the total: no schedule matters there.

    Source: the paper's Theorem 3.11.
    """
    R = legendre(task.g, WeightDecay(), sample.w0)
    predicted = predict_limit(R, sample.train, -jnp.exp(log_total))
    return errors(sample, predicted.x, predicted.result == RESULTS.successful)


SHAPES = ("constant, never off", "constant, off", "linear", "cosine", "exponential", "warm-up, off")


def _scaled(schedule: Any, strength: Float[Array, ""], count: Float[Array, ""]) -> Float[Array, ""]:
    return strength * schedule(count)


EXPONENTIAL = functools.partial(_scaled, optax.exponential_decay(1.0, transition_steps=1, decay_rate=float(np.exp(-3))))
WARM_UP = functools.partial(
    _scaled,
    optax.join_schedules(
        [optax.linear_schedule(0.0, 1.0, 1), optax.constant_schedule(1.0), optax.constant_schedule(0.0)], [1, 4]
    ),
)


def mixed(strengths: Float[Array, "6"], t_off: Float[Array, ""]) -> Sum:
    """All shapes at once, in the order of `SHAPES`: with one strength above 0, that one; one class for all of them.

    The exponential falls by e^3 up to t_off and is never off; warm-up takes a quarter of t_off. What optax calls a step
    is t_off for the one, and a quarter of it for the other.
    """
    never, off, linear, cosine, exponential, warm_up = strengths
    with_strength = jax.tree_util.Partial  # a function whose strength is a leaf
    return Sum(
        Constant(never),
        SwitchOff(off, t_off),
        LinearDecay(linear, t_off),
        CosineDecay(cosine, t_off),
        FromOptax(with_strength(EXPONENTIAL, exponential), t_off),
        FromOptax(with_strength(WARM_UP, warm_up), t_off / 4, boundaries=[1, 4]),
    )


def hand_made(shape: ArrayLike, total: ArrayLike, t_off: ArrayLike, t1: float) -> Sum:
    """The shape of that number in `SHAPES`, spending `total` by t1."""
    chosen, t_off = jax.nn.one_hot(shape, len(SHAPES), dtype=float), jnp.asarray(t_off, float)
    return mixed(chosen * (total / mixed(chosen, t_off).integral(t1)), t_off)


class Learned(eqx.Module):
    """alpha(t) = exp(log_values_i) on equal pieces of [0, t_off), 0 after: positive by construction, t_off included."""

    log_values: Float[Array, "*batch pieces"]
    log_t_off: Float[Array, "*batch"]

    @property
    def schedule(self) -> Piecewise:
        count = self.log_values.size
        times = jnp.exp(self.log_t_off) * jnp.arange(1, count + 1, dtype=float) / count
        return Piecewise(times, jnp.append(jnp.exp(self.log_values), 0.0))


def on_pieces(schedule: AbstractSchedule, t_off: ArrayLike, pieces: int) -> Learned:
    """The means of a schedule over equal pieces of [0, t_off): each spends the same; none below 1e-3 of their mean."""
    edges = jnp.asarray(t_off, float) * jnp.arange(pieces + 1, dtype=float) / pieces
    means = jnp.diff(jax.vmap(schedule.integral)(edges)) / edges[1]
    return Learned(jnp.log(jnp.maximum(means, 1e-3 * jnp.mean(means))), jnp.log(edges[-1]))
