"""Evaluations against error, for every problem, solver, dtype and tolerance: which solver should be the default?

    python benchmarks/work_precision.py            # all problems, about fifteen minutes on two cores
    python benchmarks/work_precision.py hadamard mirror --out /tmp

Work is counted, not timed: a tally inside the velocity hears of every value and every Jacobian-vector product that the
solver asks for, those of rejected steps too. Errors are those of x, at t1 and (the largest over six times) in the
transient after the switch-off, relative to |x| at that time, against Dopri8 at rtol 1e-12 in float64. It writes
`work-precision.json` and `work-precision-*.png`, and prints the tables of README.md.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from stiffness import LARGEST, size, stiffness, stiffness_table
from work_problems import PROBLEMS, Setting, relative_errors

import mirrorjax as mj
from mirrorjax import plot
from mirrorjax.dynamics import AbstractMotion

RESULTS = Path(__file__).parent / "results"
SOLVERS: dict[str, Callable[[], diffrax.AbstractSolver]] = {
    "Tsit5": diffrax.Tsit5,
    "Dopri8": diffrax.Dopri8,
    "RKC": mj.RKC,
}
COLORS = {"Tsit5": "tab:blue", "Dopri8": "tab:green", "RKC": "tab:red"}
TOLERANCES = {jnp.float64: 10.0 ** -np.arange(2, 10), jnp.float32: 10.0 ** -np.arange(2, 6)}
MOST_EVALUATIONS = 40_000  # a solver that has spent so many is not asked for the next smaller tolerance
MAX_STEPS = 20_000
TRUTH_RTOL = 1e-12
TARGETS = (1e-3, 1e-4, 1e-5, 1e-6)
ERRORS = {"error_final": "at the end", "error_transient": "in the transient after switch-off"}
STIFFNESS_TOLERANCES = (1e-4, 1e-6, 1e-8)

heard: Counter[str] = Counter()


def hear(kind: str) -> Callable[[Any], None]:
    return lambda _: heard.update([kind])


@jax.custom_jvp
def tally(t: Array, y: Any) -> Any:
    """y itself; the host is told of every value and every Jacobian-vector product taken at it."""
    jax.debug.callback(hear("values"), t)
    return y


@tally.defjvp
def tally_jvp(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    jax.debug.callback(hear("values"), primals[0])
    jax.debug.callback(hear("products"), jax.tree.leaves(tangents[1])[0].ravel()[0])
    return primals[1], tangents[1]


def velocity(t: Any, y: Any, motion: AbstractMotion) -> Any:
    return motion.velocity(jnp.asarray(t, float), tally(t, y))


@eqx.filter_jit
def integrate(problem: mj.Problem, w0: Any, flow: Any, ts: Array, solver: Any, rtol: Array) -> tuple[Any, dict, Any]:
    """x at ts, the last the end, as `mirrorjax.solve` integrates it (tolerances, jump, coordinates)."""
    motion = flow.prepare(problem, w0)
    state = motion.initial()
    dtype = jnp.result_type(*jax.tree.leaves(state))
    control = diffrax.PIDController(rtol=rtol.astype(dtype), atol=(rtol / 100).astype(dtype))
    ts = ts.astype(dtype)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(velocity),
        solver,
        t0=jnp.zeros((), dtype),
        t1=ts[-1],
        dt0=None,
        y0=state,
        args=motion,
        saveat=diffrax.SaveAt(ts=ts, fn=lambda t, y, args: motion.read(jnp.asarray(t, float), y).x),
        stepsize_controller=diffrax.ClipStepSizeController(control, jump_ts=problem.schedule.breakpoints.astype(dtype)),
        max_steps=MAX_STEPS,
        adjoint=diffrax.ForwardMode(),
        throw=False,
    )
    return solution.ys, solution.stats, solution.result == diffrax.RESULTS.successful


def counted(setting: Setting, dtype: Any, solver: diffrax.AbstractSolver, rtol: float) -> tuple[np.ndarray, dict]:
    """x in the transient and at t1, and what it took to get there."""
    problem, w0 = setting.make(dtype)
    jax.effects_barrier()
    heard.clear()
    run = integrate(problem, w0, setting.flow, setting.times, solver, jnp.asarray(rtol))
    x, stats, okay = jax.block_until_ready(run)
    jax.effects_barrier()
    return np.asarray(x, np.float64), {
        "steps": int(stats["num_steps"]),
        "rejected": int(stats["num_rejected_steps"]),
        "values": heard["values"],
        "products": heard["products"],
        "evaluations": heard["values"] + heard["products"],
        "finished": bool(okay),
    }


@cache
def exact(name: str) -> np.ndarray:
    return counted(PROBLEMS[name], jnp.float64, diffrax.Dopri8(), TRUTH_RTOL)[0]


def measure(setting: Setting) -> Iterator[dict[str, Any]]:
    """One record a solver, dtype and tolerance; the truth is compared with Tsit5 first."""
    truth = exact(setting.name)
    other, _ = counted(setting, jnp.float64, diffrax.Tsit5(), 10 * TRUTH_RTOL)
    yield {"problem": setting.name, "solver": "truth", **relative_errors(other, truth)}
    for dtype, tolerances in TOLERANCES.items():
        for name, solver in SOLVERS.items():
            for rtol in tolerances:
                x, work = counted(setting, dtype, solver(), rtol)
                record = {"problem": setting.name, "solver": name, "dtype": jnp.dtype(dtype).name, "rtol": float(rtol)}
                yield record | relative_errors(x, truth) | work
                if work["evaluations"] > MOST_EVALUATIONS:
                    break


def table(records: list[dict[str, Any]]) -> str:
    """One row a dtype and tolerance: evaluations, final and transient error of each solver."""
    cell = {(r["dtype"], r["rtol"], r["solver"]): r for r in records if r["solver"] in SOLVERS}
    rows = [
        f"| dtype | rtol | {' | '.join(f'{name}: evaluations (steps) | final | transient' for name in SOLVERS)} |",
        "|---|---|" + "---|---|---|" * len(SOLVERS),
    ]
    for dtype, rtol in dict.fromkeys((dtype, rtol) for dtype, rtol, _ in cell):
        cells = [shown(cell.get((dtype, rtol, name))) for name in SOLVERS]
        rows.append(f"| {dtype} | {rtol:.0e} | {' | '.join(cells)} |")
    return "\n".join(rows)


def shown(record: dict[str, Any] | None) -> str:
    if record is None:
        return "- | - | -"
    state = "" if record["finished"] else " gave up"
    work = f"{record['evaluations']} ({record['steps']}){state}"
    return f"{work} | {record['error_final']:.1e} | {record['error_transient']:.1e}"


def equal_accuracy(problems: dict[str, list[dict[str, Any]]], error: str) -> str:
    """One row a problem: the fewest evaluations, at any tolerance in float64, by which a solver got below a target."""
    names = ", ".join(SOLVERS)
    rows = [
        f"| problem | {' | '.join(f'{target:.0e}: {names}' for target in TARGETS)} |",
        "|---|" + "---|" * len(TARGETS),
    ]
    for name, records in problems.items():
        cells = []
        for target in TARGETS:
            good = [r for r in records if r.get("dtype") == "float64" and r[error] <= target and r["finished"]]
            fewest = {r["solver"]: r["evaluations"] for r in sorted(good, key=lambda r: -r["evaluations"])}
            cells.append(", ".join(str(fewest.get(solver, "-")) for solver in SOLVERS))
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def figure(problems: dict[str, list[dict[str, Any]]], error: str, title: str) -> Any:
    """One panel a problem: evaluations to the right, error upwards; dashed in float32."""
    panels = []
    for name, records in problems.items():
        lines = []
        for dtype, style in (("float64", "-"), ("float32", "--")):
            for solver, color in COLORS.items():
                points = [r for r in records if r["solver"] == solver and r["dtype"] == dtype and r["finished"]]
                work = np.array([point["evaluations"] for point in points])
                errors = np.array([point[error] for point in points])
                lines.append(plot.Line(work, errors, f"{solver}, {dtype}", style, color))
        panels.append(
            plot.Panel(lines, PROBLEMS[name].title, "evaluations a lane", "relative error of x", x_log=True, y_log=True)
        )
    return plot.line_panels(panels, title, "solver")


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluations against error of the flow solvers.")
    parser.add_argument("problems", nargs="*", default=list(PROBLEMS), help=f"any of {', '.join(PROBLEMS)}")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON and the figures")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    found: dict[str, list[dict[str, Any]]] = {}
    limited: list[dict[str, Any]] = []
    for name in arguments.problems:
        found[name] = list(measure(PROBLEMS[name]))
        print(f"\n### {PROBLEMS[name].title}\n\n{table(found[name])}", flush=True)
        if size(PROBLEMS[name]) <= LARGEST:
            limited += [stiffness(PROBLEMS[name], rtol, exact(name)) for rtol in STIFFNESS_TOLERANCES]
    print(f"\n### What limits the steps\n\n{stiffness_table(limited)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    record = {"records": [record for records in found.values() for record in records], "stiffness": limited}
    (arguments.out / "work-precision.json").write_text(json.dumps(record, indent=1) + "\n")
    for error, when in ERRORS.items():
        print(f"\n### Evaluations for an error {when} below ..\n\n{equal_accuracy(found, error)}")
        drawn = figure(found, error, f"Work and precision {when}")
        plot.save(drawn, arguments.out / f"work-precision-{error.removeprefix('error_')}.png")


if __name__ == "__main__":
    main()
