"""sweep(): many problems at once."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, PyTree

from ..checks import Numbers, refuted
from ..dynamics.flows.continuous import AbstractFlow, PrimalFlow, WeightFlow
from ..dynamics.integrate import saving, velocity
from ..dynamics.lane import Outcome
from ..dynamics.options import Metrics, Options, Solver, as_time_scalar, make_options
from ..dynamics.segments import FORWARD
from ..problem import Problem
from ..problem.problem import as_weights
from ..problem.reparam import Weights
from ..results import status_name
from ..runs.configuration import configuration, trace
from ..runs.dataset import EXECUTED, OF_FLOWS, USEFUL, Arrays, Dataset, flatten
from ..runs.devices import Device, choose_devices
from ..runs.engine import About, AbstractJob, Checkpoint, Lanes, failures, run
from ..runs.grid import Grid, OneLane, Zip
from ..runs.memory import choose_slots, size_of
from ..runs.progress import Callback, Reporter
from ..runs.store import recorded_slots
from .scheduler import Batch, Lane, Program, Scheduler, shapes

# Lanes of a group, in batches: enough that filling and emptying the slots costs little.
BATCHES = 8
# Moving the rest of a group into a smaller batch compiles that size anew, which takes seconds. It is done where a
# thousand evaluations of the whole batch take more operations than the device does in ten seconds.
WORTH = {"cpu": 3e12}
WORTH_ELSEWHERE = 1e13


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
    steady: ArrayLike | None = None,
    chunk: int | None = None,
    devices: Sequence[Device] | None = None,
    store: str | Path | None = None,
    resume: bool = False,
    checkpoint_every: float = 10.0,
    progress: bool | None = None,
    callback: Callback | None = None,
) -> Dataset:
    """Solve `lane(**parameters)` for every point of a grid, vmapped, as one labelled dataset.

    Lanes that have ended make room for waiting ones, so a slow lane holds up no other. The same call gives the same
    bits, also when it was killed and resumed; another `chunk`, other devices or versions change the last digits.

    **Arguments:**

    - `lane`: parameters -> `(Problem, w0)`, a pure JAX function; each parameter arrives as a scalar (or one slice).
    - `grid`: `{"alpha": alphas, "t_off": t_offs}` is a product, `Zip(alpha=.., t_off=..)` walks in step, and a `Zip`
      may be an entry of a product.
    - `t1`, `saveat`, `metrics`, `flow`, `solver`, `rtol`, `atol`: as in `solve`. `max_steps` too; it is looked at after
      every few steps.
    - `steady`: end a lane once `|dx/dt| <= steady |x|`, after its last breakpoint before t1; in 1/time. Its values stay
      as they are up to t1. A saddle looks steady too, and errors of size `rtol` do not look steady, so this is off
      (`None`) unless asked for.
    - `chunk`: lanes solved together on all devices; chosen from the memory that is free when `None`.
    - `devices`: where; all local ones of the first platform when `None`. Several hosts, after
      `jax.distributed.initialize()`, share the lanes; give them one `store`, and `open_sweep` it when all are through.
    - `store`: a new folder that keeps results as they come, so that the sweep survives being killed. Needed where they
      do not fit into memory. `resume`: go on with the one that is there (or begin it).
    - `checkpoint_every`: seconds between two checkpoints of lanes under way.
    - `progress`: show a bar; when `None`, on a terminal only. `callback`: gets a `SweepReport` every few segments.

    **Returns:** an `xarray.Dataset` with one dimension a parameter and `time`: `loss`, `a`, each metric, the final `x`
    (dimensions x_0, ..), and for each lane `status` (the name of a `RESULTS`), `steps`, `rejected_steps` and `t_end`. A
    failed lane holds NaN from the time it failed. `attrs["work"]`: the steps that all lanes took, or with
    `RKC` their evaluations of the velocity; `attrs["efficiency"]`: their share in those that slots of the batch were
    driven through.

    **Raises:** `ValueError` for an empty grid, a lane that does not return `(Problem, w0)` or is not pure, arguments
    that `solve` would refuse, results that fit neither memory nor disk, or a store that holds another run. `OSError`
    where the store cannot be written; what was finished is safe. Bad *values* of a lane do not raise: they are its
    status.
    """
    lanes, chosen = Grid(grid), choose_devices(devices)
    start = _Start(lane, as_time_scalar(t1, "t1"))
    one = jax.tree.map(lambda value: value[0], lanes.take(np.arange(1)))
    w0 = trace(lambda values: start(**values)[1], one).out_info
    options = make_options(
        w0,
        t1=t1,
        saveat=saveat,
        metrics=_no_metrics if metrics is None else metrics,
        flow=flow,
        solver=solver,
        rtol=rtol,
        atol=atol,
        max_steps=max_steps,
        adjoint=FORWARD,
    )
    if isinstance(options.flow, PrimalFlow):
        options = eqx.tree_at(lambda options: options.flow, options, WeightFlow())
    program = Program(start, options, _tolerance(steady))
    like = carried, outcome = shapes(program, one)
    named = _named(outcome)
    slots = recorded_slots(chunk, store, resume) or choose_slots(size_of(carried), len(lanes), chosen)
    traced = trace(lambda values: _probe(program, values), one)
    shrink = _operations(traced) * slots * 1000 > WORTH.get(chosen[0].platform, WORTH_ELSEWHERE)
    scheduler = Scheduler(program, lanes, min(slots, len(lanes)), chosen, like, shrink)
    settings = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    return run(
        _Job(scheduler=scheduler, group_size=BATCHES * scheduler.slots, lane_bytes=size_of(outcome)),
        lanes,
        about=About(np.asarray(options.ts), tuple(name for name in named if name not in PER_LANE), OF_FLOWS),
        configure=lambda: configuration(lanes, traced, slots, chosen, settings | {"steady": program.steady}),
        store=store,
        resume=resume,
        checkpoint_every=checkpoint_every,
        progress=progress,
        callback=callback,
    )


class _Start(eqx.Module):
    """A user's lane function, with everything checked that does not depend on values."""

    lane: Lane
    t1: Any

    def __call__(self, **values: Any) -> tuple[Problem, Weights]:
        made = self.lane(**values)
        if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], Problem)):
            raise ValueError(f"the lane function must return (Problem, w0), got {made!r}")
        problem, w0 = made[0], as_weights(made[1])
        problem.check(w0, self.t1)
        return problem, w0


class _Job(AbstractJob):
    """The flows of a sweep, group by group."""

    scheduler: Scheduler
    group_size: int
    lane_bytes: int

    def solve(self, group: Lanes, checkpoint: Checkpoint | None, reporter: Reporter) -> Arrays:
        fresh = self.scheduler.open(group)
        found = None if checkpoint is None else checkpoint.find(fresh)
        batch = fresh if found is None else found
        self._tell(group, reporter, fresh, batch)
        try:
            while not np.all(batch.ended):
                before, batch = batch, self.scheduler.step(group, batch)
                self._tell(group, reporter, before, batch)
                if checkpoint is not None:
                    checkpoint.offer(batch)
        except KeyboardInterrupt:
            if checkpoint is not None:
                checkpoint.offer(batch, now=True)
            raise
        return _named(batch.outcomes) | {USEFUL: batch.useful, EXECUTED: batch.executed}

    def _tell(self, group: Lanes, reporter: Reporter, before: Batch, after: Batch) -> None:
        new = after.ended & np.logical_not(before.ended)
        latest = _named(jax.tree.map(lambda leaf: leaf[new], after.outcomes))
        share = self.scheduler.underway(after)
        steps = int(after.useful - before.useful), int(after.executed - before.executed)
        reporter.moved(latest | {"lanes": group[new]}, failures(latest), share, *steps)


PER_LANE = ("x", "status", "steps", "rejected_steps", "t_end")


def _named(outcome: Outcome) -> dict[str, Any]:
    """The outcome as variables of a dataset."""
    metrics = flatten(outcome.metrics, "metric")
    named = {
        "loss": outcome.loss,
        "a": outcome.a,
        "x": outcome.x,
        "status": status_name(outcome.result) if isinstance(outcome.x, np.ndarray) else None,
        "steps": outcome.steps,
        "rejected_steps": outcome.rejected_steps,
        "t_end": outcome.t_end,
    }
    if clash := sorted(set(metrics) & set(named)):
        raise ValueError(f"the metrics {clash} have the names of variables every dataset holds; rename them")
    return named | metrics


def _no_metrics(t: Any, x: Any, w: Any) -> PyTree:
    return {}


def _tolerance(steady: ArrayLike | None) -> Any:
    if steady is None:
        return None
    tolerance = as_time_scalar(steady, "steady")
    if refuted(lambda: (tolerance > 0) & jnp.isfinite(tolerance), tolerance):
        raise ValueError(f"steady must be positive and finite, or None, got {steady}")
    return tolerance


def _probe(program: Program, values: OneLane) -> PyTree:
    """All that the numbers of a lane come from: its start, one velocity, and what is saved."""
    problem, w0 = program.start(**values)
    options: Options = program.options
    context, state = options.flow.start(problem, w0)
    tick = jnp.zeros((), jnp.result_type(*jax.tree.leaves(state)))
    args = (options.flow, context, state)
    return state, velocity(tick, state, args), saving(options)(tick, state, args)


def _operations(traced: jax.stages.Traced) -> float:
    """Floating-point operations of the program, as far as XLA can tell."""
    cost = traced.lower().cost_analysis()
    return float(cost.get("flops", 0.0)) if isinstance(cost, dict) else 0.0
