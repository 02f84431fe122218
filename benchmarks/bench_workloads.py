"""Sweeps of what many users integrate, beside plain `jax.vmap` of diffrax on the same equations, in one run.

`error`: the largest relative error of x at t1 over a few lanes, against Tsit5 at rtol 1e-11 (`median`: over these
lanes). `times_plain`: the seconds of plain diffrax over those of the row, in this run. Each way is compiled apart.
"""

import functools
from typing import Any

import diffrax
import jax
import numpy as np
import pytest
from workloads import WORKLOADS, Workload

import mirrorjax as mj

CHECKED = 5  # lanes whose error is measured, spread over the grid
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sweep": {},
    "solve": {},
    "weights": {"flow": mj.PrimalFlow()},
    "mirror": {"flow": mj.MirrorFlow()},
    "dual": {"flow": mj.DualFlow(), "solver": diffrax.Tsit5()},
}
# Every workload by plain diffrax and by a sweep with its defaults; the one that most users have by all ways.
CASES = [(name, way) for name in WORKLOADS for way in (WAYS if name == "W2" else ("plain", "sweep"))]
SECONDS: dict[str, float] = {}


@functools.cache
def workload(name: str) -> Workload:
    return WORKLOADS[name]()


@functools.cache
def truth(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A few lanes by number, and their x at t1."""
    problem = workload(name)
    alphas, t_offs = problem.lanes
    chosen = np.unique(np.linspace(0, alphas.size - 1, CHECKED).astype(int))
    tight = {"rtol": 1e-11, "solver": diffrax.Tsit5(), "max_steps": 10**7}

    def double(leaf: Any) -> Any:
        return leaf.astype(float) if isinstance(leaf, jax.Array) and leaf.dtype == np.float32 else leaf

    def lane(alpha: Any, t_off: Any) -> tuple[mj.Problem, Any]:
        return jax.tree.map(double, problem.lane(alpha, t_off))

    grid = mj.Zip(alpha=np.asarray(alphas)[chosen], t_off=np.asarray(t_offs)[chosen])
    return chosen, mj.sweep(lane, grid, t1=problem.t1, **tight).x.values


@pytest.mark.parametrize(("name", "way"), CASES)
def test_workload(benchmark: Any, measure_once: Any, name: str, way: str):
    problem, info = workload(name), benchmark.extra_info
    rounds = 5 if name.endswith("36 lanes") else 1  # those take less than a tenth of a second
    if way in ("plain", "solve"):
        run = jax.jit(jax.vmap(getattr(problem, way)))
        compiled = []
        x, steps = measure_once(
            lambda: compiled.append(run.lower(*problem.lanes).compile()),
            lambda: jax.block_until_ready(compiled[0](*problem.lanes)),
            rounds,
        )
    else:
        dataset = measure_once(lambda: problem.sweep(**WAYS[way]).x.values, lambda: problem.sweep(**WAYS[way]), rounds)
        x, steps = dataset.x.values.reshape(-1, dataset.x.shape[-1]), dataset.steps.values
        info |= {"representation": dataset.attrs["representation"], "efficiency": dataset.attrs["efficiency"]}
    chosen, expected = truth(name)
    errors = np.linalg.norm(np.asarray(x)[chosen] - expected, axis=1) / np.linalg.norm(expected, axis=1)
    seconds = SECONDS[f"{name} {way}"] = benchmark.stats.stats.min
    info |= {"workload": name, "lanes": len(x), "steps": float(np.mean(np.asarray(steps)))}
    info |= {"error": float(errors.max()), "median": float(np.median(errors))}
    if plain := SECONDS.get(f"{name} plain"):
        info["times_plain"] = plain / seconds
