"""sweep(): many problems at once, vmapped in chunks of one size, so that one trace serves all values.

No lane can spoil another: what is wrong with the values of one becomes its status, and its numbers are missing.
"""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, PyTree
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..dynamics.flows import AbstractFlow
from ..dynamics.solution import Solution
from ..dynamics.solve import Metrics, Options, Solver, integrate, make_options
from ..problem import Problem
from ..problem._checks import Numbers
from ..problem.problem import as_weights
from ..problem.reparam import Weights
from ..results import RESULTS, status_name
from .lanes import Grid, OneLane, Values, Zip
from .store import Dataset, to_dataset, versions

Lane = Callable[..., tuple[Problem, Weights]]


def sweep(
    lane: Lane,
    grid: Mapping[str, Numbers | Zip] | Zip,
    *,
    t1: ArrayLike,
    saveat: Numbers | None = None,
    metrics: Metrics | None = None,
    flow: AbstractFlow | None = None,
    solver: Solver | None = None,
    rtol: ArrayLike | None = None,
    atol: ArrayLike | None = None,
    max_steps: int = 100_000,
    chunk: int = 64,
    progress: bool | None = None,
) -> Dataset:
    """Solve `lane(**parameters)` for every point of a grid, vmapped, as one labelled dataset.

    **Arguments:**

    - `lane`: parameters -> `(Problem, w0)`, a pure JAX function; each parameter arrives as a scalar (or one slice).
    - `grid`: `{"alpha": alphas, "t_off": t_offs}` is a product, `Zip(alpha=.., t_off=..)` walks in step, and a `Zip`
      may be an entry of a product.
    - `t1`, `saveat`, `metrics`, `flow`, `solver`, `rtol`, `atol`, `max_steps`: as in `solve`.
    - `chunk`: lanes solved together; memory grows with it, and a chunk runs until its slowest lane ends.
    - `progress`: show a bar; when `None`, on a terminal only.

    **Returns:** an `xarray.Dataset` with one dimension a parameter and `time`: `loss`, `a`, each metric, the final `x`
    (dimensions x_0, ..), and for each lane `status` (the name of a `RESULTS`), `steps`, `rejected_steps` and `t_end`. A
    failed lane holds NaN from the time it failed.

    **Raises:** `ValueError` for an empty grid, a lane that does not return `(Problem, w0)`, or arguments that `solve`
    would refuse. Bad *values* of a lane do not raise: they are its status.
    """
    lanes = Grid(grid)
    if not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk must be a whole number of at least 1, got {chunk!r}")
    first = jax.tree.map(lambda value: value[0], lanes.take(np.arange(1)))
    w0 = jax.eval_shape(lambda values: _start(lane, values, t1, flow)[1], first)
    options = make_options(
        w0,
        t1=t1,
        saveat=saveat,
        metrics=metrics,
        flow=flow,
        solver=solver,
        rtol=rtol,
        atol=atol,
        max_steps=max_steps,
    )
    pieces = _solve_chunks(lane, lanes, options, min(chunk, len(lanes)), progress)
    solved = jax.tree.map(lambda *piece: np.concatenate(piece), *pieces)
    return to_dataset(lanes, solved, np.asarray(options.ts), {"versions": str(versions()), "t1": float(options.t1)})


def _start(lane: Lane, values: OneLane, t1: ArrayLike, flow: AbstractFlow | None) -> tuple[Problem, Weights]:
    """The problem of one lane, with everything checked that does not depend on values."""
    made = lane(**values)
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], Problem)):
        raise ValueError(f"the lane function must return (Problem, w0), got {made!r}")
    problem, w0 = made[0], as_weights(made[1])
    problem.check(w0, t1)
    return problem, w0


def _solve_lane(lane: Lane, values: OneLane, options: Options) -> Solution:
    problem, w0 = _start(lane, values, options.t1, options.flow)
    context, state = options.flow.start(problem, w0)
    return integrate(problem, context, state, options)


@eqx.filter_jit
def _solve_chunk(lane: Lane, values: Values, options: Options) -> Solution:
    return jax.vmap(lambda values: _solve_lane(lane, values, options))(values)


def _solve_chunks(lane: Lane, grid: Grid, options: Options, size: int, progress: bool | None) -> list[dict[str, Any]]:
    """Lanes in order, `size` at a time; the last chunk is filled up by repeating its last lane."""
    pieces = []
    with _progress_bar(progress) as bar:
        task = bar.add_task("lanes", total=len(grid))
        for start in range(0, len(grid), size):
            lanes = np.arange(start, min(start + size, len(grid)))
            padded = np.pad(lanes, (0, size - lanes.size), mode="edge")
            solution = jax.block_until_ready(_solve_chunk(lane, grid.take(padded), options))
            pieces.append(jax.tree.map(lambda leaf, count=lanes.size: np.asarray(leaf)[:count], _kept(solution)))
            bar.advance(task, lanes.size)
    return pieces


def _kept(solution: Solution) -> PyTree[Any]:
    """What a dataset holds of a batch of solutions; the state of failed lanes is missing, not wrong."""
    okay = solution.result == RESULTS.successful
    x = solution.last.x
    return {
        "loss": solution.loss,
        "a": solution.a,
        "x": jnp.where(okay.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.nan),
        "metrics": {} if solution.metrics is None else solution.metrics,
        "status": status_name(solution.result),
        "steps": solution.stats["steps"],
        "rejected_steps": solution.stats["rejected_steps"],
        "t_end": solution.t_end,
    }


def _progress_bar(progress: bool | None) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, TimeRemainingColumn())
    bar.disable = not bar.console.is_terminal if progress is None else not progress
    return bar
