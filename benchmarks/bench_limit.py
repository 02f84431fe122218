"""The predicted limit against the flow it predicts, and a thousand strengths at once.

Beside the times, `extra_info` keeps the residuals that say what each way achieved.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import Array

import mirrorjax as mj
from mirrorjax.geometry.base import AbstractLegendre
from mirrorjax.geometry.legendre import legendre
from mirrorjax.geometry.limit import kkt_residual, predict_limit
from mirrorjax.results import RESULTS

N, D = 40, 100
T_OFF = 1.0


def setting(a: float) -> tuple[mj.Problem, mj.LeastSquares, tuple[Array, Array], AbstractLegendre]:
    """x = m w from m = 1, w = 0, decayed up to t = 1 to the strength a, and 40 measurements of 100 unknowns."""
    first, second = jax.random.split(jax.random.key(0))
    Z, y = jax.random.normal(first, (N, D)) / jnp.sqrt(N), jax.random.normal(second, (N,))
    g, h, w0 = mj.Hadamard(), mj.WeightDecay(), (jnp.ones(D), jnp.zeros(D))
    fit = mj.LeastSquares(Z, y)
    return mj.Problem(g, h, mj.SwitchOff(-a / T_OFF, T_OFF), fit), fit, w0, legendre(g, h, w0)


def timed(fn: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    value = jax.block_until_ready(fn())
    return time.perf_counter() - start, value


def distance(fit: mj.LeastSquares, x: Array) -> float:
    """`|Z x - y| / |y|`."""
    return float(jnp.linalg.norm(fit.measure(x) - fit.y) / jnp.linalg.norm(fit.y))


# As far as it takes to fit y to about 1e-12, which is a fair race, and to t = 30000, which is further than it takes.
@pytest.mark.parametrize(("a", "t_end"), [(0.0, 3e3), (-1.0, 1e4), (0.0, 3e4), (-1.0, 3e4)])
def test_limit_against_flow(benchmark, measure: Callable, a: float, t_end: float):
    problem, fit, w0, R = setting(a)
    strength, t1 = jnp.asarray(a), jnp.asarray(t_end)
    limit = measure(lambda a: predict_limit(R, fit, a), strength)
    flow = jax.jit(lambda t1: mj.solve(problem, w0, t1=t1, rtol=1e-12, max_steps=10**6, throw=False))
    compile_flow, _ = timed(lambda: flow(t1 / 1e3))
    seconds_flow, solution = timed(lambda: flow(t1))
    x = solution.last.x
    assert limit.result == RESULTS.successful
    benchmark.extra_info.update(
        seconds_flow=seconds_flow,
        ratio=seconds_flow / benchmark.stats.stats.median,
        compile_seconds_flow=compile_flow,
        steps_limit=int(limit.steps),
        steps_flow=int(solution.stats["steps"]),
        kkt_limit=float(limit.kkt_residual),
        kkt_flow=float(kkt_residual(R, fit, x, strength)),
        fit_limit=distance(fit, limit.x),
        fit_flow=distance(fit, x),
        difference=float(jnp.max(jnp.abs(x - limit.x))),
    )


@pytest.mark.parametrize("strongest", [-1.0, -50.0])
def test_thousand_strengths(benchmark, measure: Callable, strongest: float):
    _, fit, _, R = setting(-1.0)
    strengths = jnp.linspace(strongest, 0.0, 1000)
    limit = measure(jax.vmap(lambda a: predict_limit(R, fit, a)), strengths)
    assert jnp.all(limit.result == RESULTS.successful)
    benchmark.extra_info.update(
        steps_mean=float(jnp.mean(limit.steps)),
        steps_max=int(jnp.max(limit.steps)),
        kkt_worst=float(jnp.max(limit.kkt_residual)),
        fit_worst=float(jnp.max(limit.fit_residual)),
    )
