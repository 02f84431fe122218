"""Measures how the cost of a sweep grows with lanes, unknowns d, measurements n and t1, beside plain diffrax.

    python benchmarks/growth.py [--out benchmarks/results]

The lanes are those of workload W2, `x = m w` with weight decay that is switched off. Each row changes one of the four
sizes of the first row. Plain diffrax is `jax.vmap` of the same equations, see `workloads.py`; both are warm, and their
runs alternate in this process. Errors are those of x at t1, the largest of a few lanes against Tsit5 at rtol 1e-11.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from first_answer import RESULTS, commit, machine
from workloads import Workload, products

BASE = {"lanes": 64, "d": 100, "n": 40, "t1": 55.0}
CHANGES: dict[str, tuple[float, ...]] = {
    "lanes": (16, 256, 1024),
    "d": (300, 1000),
    "n": (10, 160),
    "t1": (5.5, 550),
}
RUNS, CHECKED = 3, 3


def workload(lanes: int, d: int, n: int, t1: float) -> Workload:
    return products(n, d, 2, side=round(lanes**0.5), t1=t1)


def seconds(calls: list[Callable[[], Any]]) -> list[float]:
    """The shortest of several runs of each call, which take turns, after one that compiles."""
    taken: list[list[float]] = [[] for _ in calls]
    for run in range(RUNS + 1):
        for call, own in zip(calls, taken, strict=True):
            start = time.perf_counter()
            call()
            own.extend([time.perf_counter() - start] if run else [])
    return [min(own) for own in taken]


def error(x: np.ndarray, problem: Workload) -> float:
    """The largest relative error of x at t1 over a few lanes."""
    alphas, t_offs = problem.lanes
    chosen = np.unique(np.linspace(0, alphas.size - 1, CHECKED).astype(int))
    exact = dataclasses.replace(problem, rtol=1e-11)
    truth = np.asarray(jax.jit(jax.vmap(exact.plain))(alphas[chosen], t_offs[chosen])[0])
    return float(np.max(np.linalg.norm(x[chosen] - truth, axis=1) / np.linalg.norm(truth, axis=1)))


def measure(changed: str, **size: Any) -> dict[str, Any]:
    """One row: the sizes, seconds and errors of both."""
    problem = workload(**size)
    plain, lanes = jax.jit(jax.vmap(problem.plain)), problem.lanes
    found: dict[str, Any] = {}

    def ours() -> None:
        found["dataset"] = problem.sweep(progress=False)

    def theirs() -> None:
        found["plain"] = jax.block_until_ready(plain(*lanes))

    sweep_seconds, plain_seconds = seconds([ours, theirs])
    dataset, (x, steps) = found["dataset"], found["plain"]
    return {
        "changed": changed,
        **size,
        "representation": dataset.attrs["representation"],
        "sweep": sweep_seconds,
        "plain": plain_seconds,
        "times_plain": plain_seconds / sweep_seconds,
        "sweep_error": error(dataset.x.values.reshape(-1, size["d"]), problem),
        "plain_error": error(np.asarray(x), problem),
        "sweep_steps": float(dataset.steps.mean()),
        "plain_steps": float(np.mean(np.asarray(steps))),
        "efficiency": dataset.attrs["efficiency"],
    }


TITLE = (
    f"{'lanes':>6} {'d':>6} {'n':>4} {'t1':>6} {'sweep s':>9} {'plain s':>9} {'ratio':>6} {'errors':>17} {'steps':>11}"
)
ROW = (
    "{lanes:6d} {d:6d} {n:4d} {t1:6.4g} {sweep:9.4f} {plain:9.4f} {times_plain:6.2f} {sweep_error:8.1e} "
    "{plain_error:8.1e} {sweep_steps:5.0f} {plain_steps:5.0f}  {representation}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record, growth-cpu.json")
    given = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    print(TITLE)
    rows = []
    for changed, size in [("", BASE), *((name, BASE | {name: value}) for name in CHANGES for value in CHANGES[name])]:
        rows.append(measure(changed, **size))
        print(ROW.format(**rows[-1]), flush=True)
    record = {"machine_info": machine(), "commit_info": commit(), "rows": rows}
    (given.out / "growth-cpu.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
