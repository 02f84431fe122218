"""Measures what `sweep(.., executor=..)` costs on this machine, with one and with two workers, and extrapolates.

    python benchmarks/executors.py [--groups 8] [--out benchmarks/results]     # one minute on two idle cores

A run of G groups on W workers takes about

    start + compile + max(G / W * group, G * caller)

seconds: workers start and compile side by side, a group is computed by one worker, and the caller hands groups out and
stores them one after the other. Workers compile anew in every run, since the lane travels to them anew: a group is what
a run of four times as many groups takes longer. The table for more workers is arithmetic with the four numbers.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

# One thread a worker: the workers share the cores.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import jax
import jax.numpy as jnp
import numpy as np
from first_answer import RESULTS, commit, machine

import mirrorjax as mj
from mirrorjax.runs import executors

N, D, CHUNK = 40, 100, 8  # the diagonal network of the other sweeps; a group is 8 * CHUNK lanes


def ready(number: int) -> int:
    """Imports what a worker needs; the process it returns tells workers apart."""
    jnp.zeros(1).block_until_ready()
    time.sleep(0.5)  # so that each worker gets one
    return os.getpid()


def problem() -> mj.LeastSquares:
    rng = np.random.default_rng(0)
    z, x = rng.normal(size=(N, D)), np.zeros(D)
    x[:3] = 1.0
    return mj.LeastSquares(jnp.asarray(z / N**0.5), jnp.asarray(z @ x / N**0.5))


def lanes(count: int) -> dict[str, np.ndarray]:
    return {"alpha": np.geomspace(1e-3, 1.0, count)}


def measure(workers: int, groups: int, folder: Path) -> dict[str, float]:
    """Runs a sweep of so many groups, and one of four times as many."""
    objective = problem()

    def lane(alpha):
        schedule = mj.SwitchOff(alpha, 5.5 / alpha)
        return mj.Problem(mj.Hadamard(), mj.WeightDecay(), schedule, objective), (0.1 * jnp.ones(D), jnp.zeros(D))

    def run(executor, count, name):
        begun, used = time.perf_counter(), time.process_time()
        ds = mj.sweep(lane, lanes(8 * CHUNK * count), t1=100.0, chunk=CHUNK, executor=executor, store=folder / name)
        assert set(ds.status.values) == {"successful"}
        return time.perf_counter() - begun, time.process_time() - used

    payloads, pickled = [], executors._pickled

    def keep(compute):
        payloads.append(pickled(compute))
        return payloads[-1]

    executors._pickled = keep
    begun = time.perf_counter()
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert len(set(pool.map(ready, range(workers)))) == workers
        start = time.perf_counter() - begun
        run(pool, workers, f"first {workers}")
        few, caller_few = run(pool, groups, f"few {workers}")
        many, caller_many = run(pool, 4 * groups, f"many {workers}")
    executors._pickled = pickled
    written = sum(file.stat().st_size for file in (folder / f"few {workers}").rglob("group-*"))
    return {
        "workers": workers,
        "start": start,
        "few": few,
        "many": many,
        "a_group": (many - few) / (3 * groups),
        "caller": (caller_many - caller_few) / (3 * groups),
        "payload": len(payloads[-1]),
        "result": written / groups,
    }


def extrapolated(cost: dict[str, float], groups: int, workers: int) -> float:
    """Returns the seconds of a run by the model above."""
    rounds = -(-groups // workers)
    return cost["start"] + cost["compile"] + max(rounds * cost["group"], groups * cost["caller"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=8, help="groups of the smaller of two runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record, executors-cpu.json")
    arguments = parser.parse_args()
    groups = arguments.groups
    jax.config.update("jax_enable_x64", True)
    with tempfile.TemporaryDirectory() as place:
        one, two = (measure(workers, groups, Path(place)) for workers in (1, 2))
    cost = {
        "start": one["start"],
        "compile": one["few"] - groups * one["a_group"],
        "group": one["a_group"],
        "caller": max(one["caller"], 1e-4),
    }
    about = {"machine_info": machine(), "commit_info": commit()}
    print(json.dumps(about))
    sent, back = (one[name] / 1e3 for name in ("payload", "result"))
    print(f"a group: {8 * CHUNK} lanes of {N} x {D}; sent {sent:.0f} kB, back {back:.0f} kB")
    print(f"\n| workers | start s | {groups} groups s | {4 * groups} groups s | s a group | times one worker |")
    print("|---|---|---|---|---|---|")
    for row in (one, two):
        times = one["a_group"] / row["a_group"]
        print(
            f"| {row['workers']} | {row['start']:.1f} | {row['few']:.1f} | {row['many']:.1f} | {row['a_group']:.3f} | "
            f"{times:.2f} |"
        )
    print("\nthe four numbers: " + ", ".join(f"{name} {seconds:.3g} s" for name, seconds in cost.items()))
    print(f"workers beyond which the caller is the slower side: {cost['group'] / cost['caller']:.0f}")
    print("\n| workers | s for 10,000 groups, on paper | efficiency |\n|---|---|---|")
    for workers in (1, 2, 10, 100, 1000):
        seconds = extrapolated(cost, 10_000, workers)
        print(f"| {workers} | {seconds:,.0f} | {10_000 * cost['group'] / workers / seconds:.2f} |")
    record = about | {"one": one, "two": two, "cost": cost}
    (arguments.out / "executors-cpu.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
