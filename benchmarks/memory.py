"""Compares the memory that runs take with what they plan for, in fresh processes.

    python benchmarks/memory.py [--lanes 1000000] [--out benchmarks/results]

- `lanes`: a sweep of many lanes of a scalar flow, results in memory. The plan is `memory_of` the results; used is
  what the peak of the process rises by, against a sweep of two groups, which compiles the same programs.
- `wide`: a sweep of lanes of 1e6 numbers in a memory of a few GB, less than all lanes at a time would take. The plan is
  what the batch, a group and all results take; used is what the peak rises by from the call on.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from first_answer import RESULTS, commit, machine

import mirrorjax as mj
from mirrorjax.runs import engine, memory
from mirrorjax.sweeps import flows

SCALAR_CHUNK = 1024


def rise(call, at) -> tuple[int, Any]:
    """Returns what the peak rises by over the memory in use when `at` is called, and the result of the call."""
    begun = []
    module, name = at
    original = getattr(module, name)

    def spy(*args, **kwargs):
        begun.append(psutil.Process().memory_info().rss)
        return original(*args, **kwargs)

    setattr(module, name, spy)
    result = call()
    setattr(module, name, original)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - begun[0], result


def lanes(count: int) -> dict[str, int]:
    objective = mj.LeastSquares(jnp.ones((1, 1)), jnp.ones(1))
    planned = []

    def lane(alpha):
        return mj.Problem(mj.Hadamard(), mj.WeightDecay(), alpha, objective), (jnp.ones(1), jnp.zeros(1))

    original = memory.memory_of

    def spy(*args):
        planned.append(original(*args))
        return planned[-1]

    memory.memory_of = spy
    grid, how = {"alpha": np.linspace(0.1, 1, count)}, {"t1": 1.0, "saveat": [1.0], "rtol": 1e-3}
    used, ds = rise(lambda: mj.sweep(lane, grid, chunk=SCALAR_CHUNK, **how), (engine, "check_memory"))
    assert (ds.status == "successful").all()
    return {"planned": planned[0], "used": used}


def wide(free: int, count: int) -> dict[str, int]:
    d, planned = 1_000_000, []
    objective = mj.LeastSquares(jnp.asarray(np.random.default_rng(0).normal(size=(1, d)) / d**0.5), jnp.ones(1))

    def lane(alpha):
        return mj.Problem(mj.Hadamard(), mj.WeightDecay(), alpha, objective), (jnp.ones(d), jnp.zeros(d))

    class Machine:
        available = free

    def spy(lane_bytes, lanes, devices, *, result_bytes, batches, stored):
        slots = memory.choose_slots(
            lane_bytes, lanes, devices, result_bytes=result_bytes, batches=batches, stored=stored
        )
        group = slots * result_bytes * batches * memory.GROUP_COPIES
        planned.append(slots * lane_bytes * memory.COPIES + group + lanes * result_bytes)
        return slots

    flows.choose_slots = spy
    memory.psutil.virtual_memory = lambda: Machine
    used, ds = rise(
        lambda: mj.sweep(
            lane,
            {"alpha": np.linspace(0.1, 1, count)},
            t1=0.5,
            rtol=1e-3,
            saveat=[0.5],
            metrics=lambda t, x, w: {"sum": jnp.sum(x)},
        ),
        (memory, "_own_memory"),
    )
    assert (ds.status == "successful").all()
    return {"free": free, "planned": planned[0], "used": used}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="?", choices=("lanes", "wide"), help="one case in this process")
    parser.add_argument("numbers", nargs="*", type=int, help="lanes; or bytes and lanes")
    parser.add_argument("--lanes", type=int, default=1_000_000, help="lanes of the scalar flow")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record, memory-cpu.json")
    given = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    if given.case is not None:
        print(json.dumps({"lanes": lanes, "wide": wide}[given.case](*given.numbers)))
        return

    def fresh(*case: Any) -> dict[str, int]:
        command = [sys.executable, __file__, *map(str, case)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    few, many = (fresh("lanes", count) for count in (16 * SCALAR_CHUNK, given.lanes))
    scalar = {name: many[name] - few[name] for name in ("planned", "used")}
    planned, used = scalar.values()
    print(f"{given.lanes:,} lanes of a scalar flow: planned {planned / 1e6:.0f} MB, used {used / 1e6:.0f} MB")
    free = fresh("wide", 3 * 10**9, 40)
    print(f"40 lanes of 1e6 numbers in 3 GB: planned {free['planned'] / 1e9:.2f}, used {free['used'] / 1e9:.2f} GB")
    record = {"machine_info": machine(), "commit_info": commit(), "lanes": given.lanes, "scalar": scalar, "wide": free}
    (given.out / "memory-cpu.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
