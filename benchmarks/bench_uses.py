"""What users do beside sweeps: gradients through a flow, limits, and lanes of a training, each beside the usual way.

The sizes are those of the record; `BENCH_SHARE=0.01` makes all of them smaller, to try the benchmark. In each group the
plain way runs first, and `times_plain` is its seconds over those of the row. Each way is compiled apart.

The gradients of the plain way in W7 are wrong in the times. `times_right` is the seconds of the plain way whose
gradients are right, in pieces, over those of the row: the ratio that counts there.
"""

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix
import pytest
from jax import Array
from workloads import data

import mirrorjax as mj
from mirrorjax.nn.training import train

SHARE = float(os.environ.get("BENCH_SHARE", "1"))
SECONDS: dict[str, float] = {}
ROUNDS = 5  # of which the shortest counts


def count(of_record: int) -> int:
    return max(int(SHARE * of_record), 2)


def compare(benchmark: Any, measure_once: Callable, group: str, way: str, make: Callable[[], tuple]) -> Any:
    """Times a compiled function, `make() -> (function, arguments)`, and returns its results."""
    compiled = []

    def build() -> None:
        fn, arguments = make()
        compiled.extend((jax.jit(fn).lower(*arguments).compile(), arguments))

    results = measure_once(build, lambda: jax.block_until_ready(compiled[0](*compiled[1])), ROUNDS)
    note(benchmark, group, way)
    return results


def note(benchmark: Any, group: str, way: str) -> None:
    seconds = SECONDS[f"{group} {way}"] = benchmark.stats.stats.min
    benchmark.extra_info["workload"] = group
    for ratio, other in {"times_plain": "plain", "times_right": "pieces"}.items():
        if theirs := SECONDS.get(f"{group} {other}"):
            benchmark.extra_info[ratio] = theirs / seconds


# W7: the gradient of the distance to the truth in ten strengths and the times between them.

PIECES, T1, RTOL = 10, 55.0, 1e-6


def schedules(lanes: int) -> tuple[Array, Array]:
    strengths = jnp.linspace(0.02, 0.2, lanes)[:, None] * jnp.linspace(1.0, 0.1, PIECES)
    return jnp.tile(jnp.linspace(2.0, 20.0, PIECES), (lanes, 1)), jnp.concatenate([strengths, 0 * strengths[:, :1]], 1)


def distance_by_diffrax(times: Array, strengths: Array) -> Array:
    Z, y = data(40, 100, float)

    def velocity(t: Any, w: Any, args: Any) -> Any:
        m, v = w
        slope = Z.T @ (Z @ (m * v) - y) / 40
        alpha = strengths[jnp.searchsorted(times, t, side="right")]
        return -slope * v - 2 * alpha * m, -slope * m - 2 * alpha * v

    control = diffrax.PIDController(rtol=RTOL, atol=RTOL / 100)
    m, v = diffrax.diffeqsolve(
        diffrax.ODETerm(velocity),
        diffrax.Tsit5(),
        t0=0.0,
        t1=T1,
        dt0=None,
        y0=(jnp.ones(100), jnp.zeros(100)),
        stepsize_controller=diffrax.ClipStepSizeController(control, jump_ts=times),
        max_steps=4096,
    ).ys  # pyright: ignore[reportGeneralTypeIssues]
    return jnp.sum((m[-1] * v[-1] - jnp.zeros(100).at[:5].set(1.0)) ** 2)


def distance_by_pieces(times: Array, strengths: Array) -> Array:
    """A solve of diffrax for each piece, so that the times enter as its ends: their derivatives are right."""
    Z, y = data(40, 100, float)

    def velocity(t: Any, w: Any, alpha: Any) -> Any:
        m, v = w
        slope = Z.T @ (Z @ (m * v) - y) / 40
        return -slope * v - 2 * alpha * m, -slope * m - 2 * alpha * v

    def piece(w: Any, each: Any) -> Any:
        start, stop, alpha = each
        ends = diffrax.diffeqsolve(
            diffrax.ODETerm(velocity),
            diffrax.Tsit5(),
            t0=start,
            t1=stop,
            dt0=None,
            y0=w,
            args=alpha,
            stepsize_controller=diffrax.PIDController(rtol=RTOL, atol=RTOL / 100),
            max_steps=4096,
        ).ys
        return jax.tree.map(lambda leaf: leaf[-1], ends), None

    pieces = jnp.append(0.0, times), jnp.append(times, T1), strengths
    (m, v), _ = jax.lax.scan(piece, (jnp.ones(100), jnp.zeros(100)), pieces)
    return jnp.sum((m * v - jnp.zeros(100).at[:5].set(1.0)) ** 2)


def distance_by_solve(flow: Any, solver: Any, times: Array, strengths: Array) -> Array:
    Z, y = data(40, 100, float)
    problem = mj.Problem(mj.Hadamard(), mj.WeightDecay(), mj.Piecewise(times, strengths), mj.LeastSquares(Z, y))
    start = jnp.ones(100), jnp.zeros(100)
    how = {"flow": flow, "solver": solver, "rtol": RTOL, "max_steps": 4096}
    x = mj.solve(problem, start, t1=T1, throw=False, **how).x[-1]
    return jnp.sum((x - jnp.zeros(100).at[:5].set(1.0)) ** 2)


GRADIENTS: dict[str, Callable] = {
    "plain": distance_by_diffrax,
    "pieces": distance_by_pieces,
    "solve": lambda *p: distance_by_solve(None, None, *p),
    "mirror": lambda *p: distance_by_solve(mj.MirrorFlow(), None, *p),
    "dual": lambda *p: distance_by_solve(mj.DualFlow(), diffrax.Tsit5(), *p),
}


@pytest.mark.parametrize("way", GRADIENTS)
def test_gradient(benchmark: Any, measure_once: Callable, way: str) -> None:
    lanes = count(64)
    gradient = jax.vmap(jax.grad(GRADIENTS[way], argnums=(0, 1)))
    slopes = compare(benchmark, measure_once, "W7", way, lambda: (gradient, schedules(lanes)))
    exact = expected_slopes(lanes)
    # Those of plain diffrax in the times are wrong: all steps after a jump move with it, lengths included.
    times, strengths = [
        float(np.linalg.norm(got - right) / np.linalg.norm(right)) for got, right in zip(slopes, exact, strict=True)
    ]
    benchmark.extra_info.update(lanes=lanes, error_in_times=times, error_in_strengths=strengths)


@cache
def expected_slopes(lanes: int) -> tuple[Array, Array]:
    """By the flow of the measurements at a tight tolerance."""

    def distance(times: Array, strengths: Array) -> Array:
        Z, y = data(40, 100, float)
        problem = mj.Problem(mj.Hadamard(), mj.WeightDecay(), mj.Piecewise(times, strengths), mj.LeastSquares(Z, y))
        how = {"flow": mj.DualFlow(), "solver": diffrax.Tsit5(), "rtol": 1e-9, "max_steps": 16**4}
        x = mj.solve(problem, (jnp.ones(100), jnp.zeros(100)), t1=T1, throw=False, **how).x[-1]
        return jnp.sum((x - jnp.zeros(100).at[:5].set(1.0)) ** 2)

    return jax.jit(jax.vmap(jax.grad(distance, argnums=(0, 1))))(*schedules(lanes))


# W8: limits of x = m w from (1, 0), 10 measurements of 30 unknowns, at many strengths.


def limit_by_optimistix(a: Array) -> tuple[Array, Array]:
    """BFGS on the dual that the theory gives, `min_nu sum A cosh(2 Z^T nu)/2 - <nu, y>`, `A = e^{4a}/2`."""
    Z, y = data(10, 30, float)
    A = jnp.exp(4 * a) / 2

    def dual(nu: Array, args: Any) -> Array:
        return jnp.sum(A * jnp.cosh(2 * (Z.T @ nu))) / 2 - nu @ y

    solver = optimistix.BFGS(rtol=1e-12, atol=1e-12)
    found = optimistix.minimise(dual, solver, jnp.zeros(10), max_steps=1000, throw=False)
    x = A * jnp.sinh(2 * (Z.T @ found.value))
    return x, jnp.linalg.norm(Z @ x - y) / jnp.linalg.norm(y)


def limit_by_theory(a: Array) -> tuple[Array, Array]:
    Z, y = data(10, 30, float)
    R = mj.legendre(mj.Hadamard(), mj.WeightDecay(), (jnp.ones(30), jnp.zeros(30)))
    x = mj.predict_limit(R, mj.LeastSquares(Z, y), a).x
    return x, jnp.linalg.norm(Z @ x - y) / jnp.linalg.norm(y)


LIMITS = {"plain": limit_by_optimistix, "predict_limit": limit_by_theory}


@pytest.mark.parametrize("way", LIMITS)
def test_limits(benchmark: Any, measure_once: Callable, way: str) -> None:
    strengths = jnp.linspace(-3.0, 0.0, count(100_000))

    def all_limits(strengths: Array) -> tuple[Array, Array]:
        return jax.lax.map(LIMITS[way], strengths, batch_size=1000)

    x, misfit = compare(benchmark, measure_once, "W8", way, lambda: (all_limits, (strengths,)))
    solved = np.asarray(misfit) < 1e-8
    benchmark.extra_info.update(lanes=len(x), solved=float(np.mean(solved)), error=float(np.max(misfit[solved])))


# W9: lanes of a small network: one hidden layer, AdamW of many strengths.

WIDTH, BATCH, STEPS = 16, 32, 500


def network_loss(weights: dict[str, Array], batch: tuple[Array, Array]) -> Array:
    inputs, targets = batch
    return jnp.mean((jnp.tanh(inputs @ weights["in"]) @ weights["out"] - targets) ** 2)


def network_batch(key: Array) -> tuple[Array, Array]:
    inputs = jax.random.normal(key, (BATCH, 8))
    return inputs, jnp.sin(inputs[:, :1])


def network_lane(weight_decay: Array) -> tuple[optax.GradientTransformation, dict[str, Array], Array]:
    first, second, third = jax.random.split(jax.random.key(0), 3)
    weights = {"in": jax.random.normal(first, (8, WIDTH)) / 3, "out": jax.random.normal(second, (WIDTH, 1)) / 4}
    return optax.adamw(1e-2, weight_decay=weight_decay), weights, third


def train_by_optax(weight_decay: Array) -> Array:
    """The mean loss of the last hundred steps."""
    optimizer, weights, key = network_lane(weight_decay)

    def step(carry: tuple, key: Array) -> tuple[tuple, Array]:
        weights, state = carry
        loss, slope = jax.value_and_grad(network_loss)(weights, network_batch(key))
        updates, state = optimizer.update(slope, state, weights)
        return (optax.apply_updates(weights, updates), state), loss

    _, losses = jax.lax.scan(step, (weights, optimizer.init(weights)), jax.random.split(key, STEPS))
    return jnp.mean(losses[-100:])


@pytest.mark.parametrize("way", ["plain", "train"])
def test_training(benchmark: Any, measure_once: Callable, way: str) -> None:
    decays = np.geomspace(1e-4, 1.0, count(256))
    if way == "plain":
        losses = compare(benchmark, measure_once, "W9", way, lambda: (jax.vmap(train_by_optax), (jnp.asarray(decays),)))
    else:

        def run() -> Any:
            how = {"loss": network_loss, "batch": network_batch, "steps": STEPS, "every": 100, "progress": False}
            return train(network_lane, {"weight_decay": decays}, **how)

        losses = measure_once(lambda: run().loss.values, run, ROUNDS).loss.values[:, -1]
        note(benchmark, "W9", way)
    benchmark.extra_info.update(lanes=len(losses), loss=float(np.mean(losses)))
