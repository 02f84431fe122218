"""The time to a first answer: import, first solve, first gradient, first sweep, beside plain diffrax.

    python benchmarks/first_answer.py [--runs 3] [--out benchmarks/results]

Every number comes from a process of its own, and is CPU time, user and system: nearly all of it is spent on tracing and
compiling, and seconds on the clock of a shared machine say little. The equation is the gradient flow of least squares
under x = u v with decay that is switched off (20 x 40, eleven save times); plain diffrax integrates it by Tsit5 with
the same tolerances, save times and breakpoint inside `jax.jit`. It is favoured: it integrates u and v alone and returns
u v, while this package follows weights that decay by e^-25, integrates the dual variable along, checks its input, and
returns weights, dual variable, losses and statuses too. Prints a table, writes `first-answer-cpu.json`.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
TASKS = ("import", "solve", "gradient", "gradient in jit", "sweep")
T1, RTOL, ATOL = 10.0, 1e-6, 1e-8
TS = np.linspace(0.0, T1, 11)
RNG = np.random.default_rng(0)
Z, Y = RNG.normal(size=(20, 40)), RNG.normal(size=20)
U0, V0 = np.full(40, 0.5), np.full(40, 0.3)
ALPHAS, T_OFFS = np.linspace(0.01, 0.1, 4), np.linspace(1.0, 5.0, 4)


def ours(task: str) -> Any:
    """The first answer of this package."""
    import jax
    import jax.numpy as jnp

    import mirrorjax as mj

    def lane(alpha: Any, t_off: Any) -> tuple[mj.Problem, Any]:
        schedule = mj.SwitchOff(alpha, t_off)
        return mj.Problem(mj.Hadamard(), mj.WeightDecay(), schedule, mj.LeastSquares(Z, Y)), (U0, V0)

    def end(p: Any) -> Any:
        problem, w0 = lane(p[0], p[1])
        return jnp.sum(mj.solve(problem, w0, t1=T1, saveat=TS, rtol=RTOL, atol=ATOL).x[-1] ** 2)

    match task:
        case "import":
            return mj.solve
        case "solve":
            problem, w0 = lane(0.1, 3.0)
            return mj.solve(problem, w0, t1=T1, saveat=TS, rtol=RTOL, atol=ATOL).x
        case "gradient":
            return jax.grad(end)(jnp.array([0.1, 3.0]))
        case "gradient in jit":
            return jax.jit(jax.grad(end))(jnp.array([0.1, 3.0]))
    grid = {"alpha": ALPHAS, "t_off": T_OFFS}
    return mj.sweep(lane, grid, t1=T1, saveat=TS, rtol=RTOL, atol=ATOL, progress=False).x.values


def plain(task: str) -> Any:
    """The same answer by diffrax alone."""
    import diffrax
    import jax
    import jax.numpy as jnp

    def trajectory(alpha: Any, t_off: Any) -> Any:
        def velocity(t: Any, w: Any, args: Any) -> Any:
            strength = jnp.where(t < t_off, alpha, 0.0)
            slope = jnp.asarray(Z).T @ (jnp.asarray(Z) @ (w[0] * w[1]) - jnp.asarray(Y)) / 20
            return -slope * w[1] - 2 * strength * w[0], -slope * w[0] - 2 * strength * w[1]

        control = diffrax.PIDController(rtol=RTOL, atol=ATOL)
        u, v = diffrax.diffeqsolve(
            diffrax.ODETerm(velocity),
            diffrax.Tsit5(),
            t0=0.0,
            t1=T1,
            dt0=None,
            y0=(jnp.asarray(U0), jnp.asarray(V0)),
            saveat=diffrax.SaveAt(ts=jnp.asarray(TS)),
            stepsize_controller=diffrax.ClipStepSizeController(control, jump_ts=jnp.asarray(t_off)[None]),
            max_steps=100_000,
        ).ys  # pyright: ignore[reportGeneralTypeIssues]
        return u * v

    def end(p: Any) -> Any:
        return jnp.sum(trajectory(p[0], p[1])[-1] ** 2)

    match task:
        case "import":
            return diffrax.diffeqsolve
        case "solve":
            return jax.jit(trajectory)(0.1, 3.0)
        case "gradient" | "gradient in jit":
            return jax.jit(jax.grad(end))(jnp.array([0.1, 3.0]))
    lanes = jax.vmap(jax.vmap(trajectory, (None, 0)), (0, None))
    return jax.jit(lanes)(ALPHAS, T_OFFS)


def measure(side: str, task: str) -> float:
    """CPU seconds of a task, the import of its packages left out unless the import is the task."""
    answer = {"mirrorjax": ours, "diffrax": plain}[side]
    before = time.process_time()
    import jax

    jax.config.update("jax_enable_x64", True)
    answer("import")
    imported = time.process_time()
    if task == "import":
        return imported - before
    np.asarray(answer(task))
    return time.process_time() - imported


def machine() -> dict[str, Any]:
    models = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "jaxlib", "diffrax")},
    }


def commit() -> dict[str, Any]:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=RESULTS, capture_output=True, text=True, check=True).stdout.strip()

    return {"id": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU seconds to a first answer.")
    parser.add_argument("--runs", type=int, default=3, help="processes for each number, of which the median counts")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(measure(*arguments.measure))
        return
    rows = []
    for task in TASKS:
        each: dict[str, list[float]] = {"mirrorjax": [], "diffrax": []}
        for _ in range(arguments.runs):  # by turns, since the speed of a machine drifts
            for side, taken in each.items():
                command = [sys.executable, __file__, "--measure", side, task]
                run = subprocess.run(command, capture_output=True, text=True, check=True)
                taken.append(float(run.stdout.split()[-1]))
        seconds = {side: statistics.median(taken) for side, taken in each.items()}
        rows.append({"task": task, **seconds, "ratio": seconds["mirrorjax"] / seconds["diffrax"]})
        print("{task:16s} {mirrorjax:7.2f} s {diffrax:7.2f} s  {ratio:5.2f}".format(**rows[-1]), flush=True)
    record = {"machine_info": machine(), "commit_info": commit(), "cpu_seconds": rows}
    (arguments.out / "first-answer-cpu.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
